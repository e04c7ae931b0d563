"""Predictions in memory, compared with a bare PyTorch loop, and of a CSV file, compared with reading it with pyarrow."""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch

from benchmarks.measure import Comparison, run_in_turn, run_python, time_call
from datamodules.mnist import MNIST
from engine.inference.predictor import Predictor, load

ROWS, COLUMNS = 1_000_000, 20  # of the CSV file
TRAINING_ROWS = 20_000
TEXTS = 872  # as in the development set of SST-2
LONGEST = 128  # tokens to which a usual loop pads

Loop = Callable[[Predictor, Any, int], Iterable[Any]]  # yields the batches of a bare loop


def run(options: Namespace) -> list[Comparison]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = [compare_images(root, options), *compare_table(root, options)]
        return [*found, *(compare_texts(root, options) if options.model else [])]


def compare_images(root: Path, options: Namespace) -> Comparison:
    trained = train(root, "mnist_cnn", f"data.root={options.data}", "trainer.limit_train_batches=20")
    _, (images, _) = MNIST(root=options.data).load()
    return compare("10,000 images of MNIST", load(trained), images, split, options.pairs)


def compare_table(root: Path, options: Namespace) -> Iterator[Comparison]:
    generator = np.random.default_rng(0)
    columns: dict[str, Any] = {f"number_{i}": generator.normal(size=ROWS).round(4) for i in range(COLUMNS - 3)}
    words = np.array(["red", "green", "blue", "yellow"])
    columns |= {f"word_{i}": words[generator.integers(0, 4, ROWS)] for i in range(3)}
    table = pa.table(columns)
    few = table.slice(0, TRAINING_ROWS)
    labels = np.where(few["number_0"].to_numpy() > 0, "yes", "no")
    pyarrow.csv.write_csv(table, root / "rows.csv")
    pyarrow.csv.write_csv(few.append_column("label", pa.array(labels)), root / "train.csv")
    data = [f"data.train={root}/train.csv", "data.target=label", "trainer.max_steps=50"]
    model = ["model.num_members=1", "model.numeric_embedding=none", "model.embedding_size=8", "model.hidden_sizes=[64]"]
    predictor = load(train(root, "table_mlp", *data, *model))
    rows = predictor.open({name: few[name].to_pylist() for name in few.column_names})
    inputs = torch.cat([part.inputs for part in rows.parts])
    yield compare(f"{TRAINING_ROWS:,} encoded rows of a table", predictor, inputs, split, options.pairs)

    def predict() -> None:
        count = sum(len(found) for found in predictor.predict_parts(predictor.open(root / "rows.csv")))
        assert count == ROWS

    sides = {"ours": predict, "pyarrow": lambda: pyarrow.csv.read_csv(root / "rows.csv")}
    predict()
    with private_memory() as memory:
        predict()
    note = f"at most {max(memory) / 1e9:.2f} GB of private memory"
    times = run_in_turn({name: partial(time_call, work) for name, work in sides.items()}, options.pairs)
    work = f"{ROWS:,} rows of a CSV file with {COLUMNS} columns"
    yield Comparison(work, "pyarrow reads the file", times["ours"], times["pyarrow"], at_most=2, note=note)


def compare_texts(root: Path, options: Namespace) -> Iterator[Comparison]:
    generator = np.random.default_rng(0)
    words = np.array("a the film is was good bad great dull story of and but actors plot very not".split())
    lengths = np.clip(generator.lognormal(2.8, 0.6, TEXTS).astype(int), 2, 60)  # about as in SST-2
    texts = [" ".join(words[generator.integers(0, len(words), length)]) for length in lengths]
    lines = [f"{text}\t{'good' in text}" for text in texts]
    (root / "texts.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]), encoding="utf-8")
    data = [f"data.train={root}/texts.tsv", "data.dataset=null", "data.test=null", f"data.cache={root}/cache"]
    model = [f"model.pretrained={options.model}", "trainer.max_steps=2", "data.max_length=128", "data.val_fraction=0.1"]
    predictor = load(train(root, "sst2_bert", *data, *model))
    loops = {
        "loop that pads each batch": (pad_batches, 0.9),
        f"loop that pads to {LONGEST} tokens": (pad_to_longest, 3),
    }
    for name, (loop, target) in loops.items():
        yield compare(f"{TEXTS} texts, {name}", predictor, texts, loop, options.pairs, target)


def compare(work: str, predictor: Predictor, data: Any, loop: Loop, pairs: int, at_least: float = 0.9) -> Comparison:
    """Compare `Predictor.predict` with a loop that has the same batch size and precision."""

    @torch.inference_mode()
    def run_loop() -> None:
        found = []
        with predictor.autocast():
            for batch in loop(predictor, data, predictor.batch_size):
                found.append(predictor.model(batch).float().softmax(1))
        torch.cat(found)

    predictor.predict(data)  # the first call of a side takes longer
    run_loop()
    sides = {"ours": partial(time_call, partial(predictor.predict, data)), "loop": partial(time_call, run_loop)}
    times = run_in_turn(sides, pairs)
    return Comparison(f"prediction of {work}", "bare loop", times["ours"], times["loop"], at_least=at_least)


def split(predictor: Predictor, inputs: torch.Tensor, batch_size: int) -> Iterable[Any]:
    return inputs.split(batch_size)


def pad_batches(predictor: Predictor, texts: list[str], batch_size: int, **padding: Any) -> Iterator[Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(predictor.run.folder / "tokenizer")
    options = padding or {"padding": True}
    for start in range(0, len(texts), batch_size):
        yield dict(tokenizer(texts[start : start + batch_size], truncation=True, return_tensors="pt", **options))


def pad_to_longest(predictor: Predictor, texts: list[str], batch_size: int) -> Iterator[Any]:
    return pad_batches(predictor, texts, batch_size, padding="max_length", max_length=LONGEST)


def train(root: Path, config: str, *overrides: str) -> Path:
    """Train for a moment. Returns the folder of the run."""
    run_python(
        "train.py", "--config", f"configs/{config}.yaml", *overrides, "trainer.max_epochs=1", f"run.root={root}/runs"
    )
    (folder,) = (root / "runs" / config).iterdir()
    return folder


@contextmanager
def private_memory() -> Iterator[list[int]]:
    """Collect the private memory of this process in bytes, ten times a second."""
    values, has_ended = [0], Event()

    def collect() -> None:
        while not has_ended.wait(0.1):
            (line,) = [
                line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
            ]
            values.append(1024 * int(line.split()[1]))

    thread = Thread(target=collect)
    thread.start()
    try:
        yield values
    finally:
        has_ended.set()
        thread.join()
