"""Fine-tuning a pretrained BERT on SST-2 with `configs/sst2_bert.yaml`, compared with `Trainer` of Hugging Face.

The measure is the time per row after a warm-up. `Trainer` has the settings of its example script (rows padded to 128 tokens,
fp32, batch size 32, AdamW), once with this padding and once with rows padded to the longest row of their batch. The command
below trains with `Trainer` for whole epochs with dynamic padding, and prints the accuracy on the development set:

    python -m benchmarks.bert --model FOLDER [--data data/sst2] [--epochs 1] [--lr 5e-5] [--seed 0]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, seed_everything

from benchmarks.measure import Comparison, run_in_turn
from datamodules.parts.text_files import Columns, read_file
from datamodules.text import Text
from engine.config.config import load_config
from engine.runs.run_record import RunRecord
from engine.training.signals import Signals
from train import make, make_model, make_trainer

WARM_UP = 3  # steps that are not counted
STEPS = {"ours": 40, "padded": 8, "dynamic": 30}  # several hundred rows each
BATCH_SIZE, MAX_LENGTH = 32, 128  # of the example script


class RowCounter:
    """Counts rows and seconds after the warm-up."""

    def __init__(self) -> None:
        self.steps = self.rows = 0
        self.start = self.end = 0.0

    def end_step(self, rows: int) -> None:
        self.steps += 1
        self.end = time.perf_counter()
        if self.steps == WARM_UP:
            self.start, self.rows = self.end, 0
        else:
            self.rows += rows

    @property
    def rows_per_second(self) -> float:
        return self.rows / (self.end - self.start)


def train_ours(model: str, data: Path, cache: str, seed: int) -> tuple[float, float]:
    """Train as `train.py` does. Returns rows per second, and the fraction of padding in a whole epoch."""
    counter = RowCounter()

    class CountRows(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
            counter.end_step(len(batch[1]))

    config = load_config(
        "configs/sst2_bert.yaml",
        [
            f"model.pretrained={model}", "data.dataset=null", f"data.train={data}/train.tsv", f"data.test={data}/dev.tsv",
            f"data.cache={cache}", "trainer.limit_val_batches=0", "trainer.enable_progress_bar=false",
            "trainer.enable_checkpointing=false", f"trainer.max_steps={STEPS['ours'] + WARM_UP}",
        ],
    )  # fmt: skip
    seed_everything(seed, verbose=False)
    datamodule: Text = make(config, "data", seed=seed)
    network = make_model(config, datamodule.spec)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(config, Path(folder), RunRecord(Path(folder), "", config.flat()), Signals())
        trainer.callbacks.append(CountRows())  # type: ignore[attr-defined]
        trainer.fit(network, datamodule)
    loader = datamodule.train_dataloader()
    lengths = loader.inputs.lengths
    batches = [lengths[rows] for rows in loader.batch_sampler]
    num_padded = sum(len(batch) * int(loader.inputs.padded(batch.max())) for batch in batches)
    return counter.rows_per_second, 1 - int(lengths.sum()) / num_padded


def train_hugging_face(
    model: str, data: Path, is_padded: bool, steps: int, epochs: float, seed: int, lr: float = 5e-5
) -> tuple[float, float]:
    """Train with `Trainer`. Returns rows per second, and the accuracy on the development set, or 0 if `steps` is set."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # must be set before the import; the model is in a local folder
    import transformers
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        TrainingArguments,
    )

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer, counter = AutoTokenizer.from_pretrained(model), RowCounter()

    class CountRows(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            counter.end_step(BATCH_SIZE)

    def tokenize(split: str) -> list[dict[str, Any]]:
        rows = list(read_file("data", data / f"{split}.tsv", Columns("sentence", None, "label")))
        padding = "max_length" if is_padded else False
        encoded = tokenizer([row.text for row in rows], truncation=True, max_length=MAX_LENGTH, padding=padding)
        columns = zip(*encoded.values(), (int(row.label) for row in rows), strict=True)
        return [dict(zip([*encoded, "labels"], values, strict=True)) for values in columns]

    def compute_metrics(prediction: Any) -> dict[str, float]:
        labels = np.asarray(prediction.predictions).argmax(-1)
        return {"accuracy": float((labels == prediction.label_ids).mean())}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH_SIZE, num_train_epochs=epochs, max_steps=steps,
            seed=seed, learning_rate=lr,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=2),
            args=arguments,
            train_dataset=tokenize("train"),
            eval_dataset=tokenize("dev"),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=compute_metrics,
            callbacks=[CountRows()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return counter.rows_per_second, 0.0 if steps > 0 else trainer.evaluate()["eval_accuracy"]


def run(options: argparse.Namespace) -> list[Comparison]:
    data, padding = Path(options.data) / "sst2", list[float]()
    seeds = {name: iter(range(options.pairs)) for name in STEPS}  # so that each pair has other batches
    with tempfile.TemporaryDirectory() as cache:

        def time_ours() -> float:
            rows_per_second, fraction = train_ours(options.model, data, cache, next(seeds["ours"]))
            padding.append(fraction)
            return 1 / rows_per_second

        def time_hugging_face(name: str) -> float:
            steps, seed = STEPS[name] + WARM_UP, next(seeds[name])
            return 1 / train_hugging_face(options.model, data, name == "padded", steps, 1, seed)[0]

        sides = {
            "ours": time_ours,
            "padded": lambda: time_hugging_face("padded"),
            "dynamic": lambda: time_hugging_face("dynamic"),
        }
        times = run_in_turn(sides, options.pairs)
    note = f"{1 / statistics.median(times['ours']):,.0f} rows/s, {padding[0]:.1%} padding"
    padded, dynamic = "Trainer, padded to 128, fp32", "Trainer, dynamic padding"
    speedups = (4.0, 2.0) if options.gpu else (12.0, 4.0)
    work, name = "a row of SST-2", Path(options.model).name
    return [
        Comparison(work, padded, times["ours"], times["padded"], at_least=speedups[0], note=note),
        Comparison(work, dynamic, times["ours"], times["dynamic"], at_least=speedups[1], note=name),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train with `Trainer` of Hugging Face and print its accuracy.")
    parser.add_argument("--model", required=True, help="folder of a pretrained BERT")
    parser.add_argument("--data", type=Path, default=Path("data/sst2"), help="folder with train.tsv and dev.tsv")
    parser.add_argument("--epochs", type=int, default=1, help="number of epochs")
    parser.add_argument("--lr", type=float, default=5e-5, help="learning rate (default: 5e-5, the default of Trainer)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and of the last layer")
    options = parser.parse_args()
    rows_per_second, accuracy = train_hugging_face(
        options.model, options.data, False, -1, options.epochs, options.seed, options.lr
    )
    settings = f"{options.epochs} epochs, seed {options.seed}, lr {options.lr}"
    print(f"Trainer, {settings}: accuracy {accuracy:.4f}, {rows_per_second:.1f} rows/s")


if __name__ == "__main__":
    main()
