"""Fine-tuning a pretrained BERT on SST-2: by `configs/sst2_bert.yaml`, and by Hugging Face's `Trainer`.

Seconds a row in steady training. `Trainer` is as its example script sets it (every row padded to 128 tokens, fp32, batch
32, AdamW), and the same with rows padded to the longest of their batch. For the accuracy on the development set that
`train.py` is to be compared with, `Trainer` trains for whole epochs with dynamic padding:

    python -m benchmarks.bert --model FOLDER [--data data/sst2] [--epochs 1] [--lr 5e-5] [--seed 0]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from lightning.pytorch import Callback, seed_everything

from benchmarks.measure import Row, in_turn
from datamodules.parts.text_files import Columns, read_file
from datamodules.text import Text
from engine.config.config import load_config
from engine.runs.run_record import RunRecord
from engine.training.signals import Signals
from train import make, make_model, make_trainer

WARM_UP = 3  # steps that are not counted
STEPS = {"ours": 40, "padded": 8, "dynamic": 30}  # a few hundred rows or more each
BATCH_SIZE, MAX_LENGTH = 32, 128  # of the example script


class Clock:
    """Rows and seconds since the warm-up."""

    def __init__(self) -> None:
        self.steps = self.rows = 0
        self.started = self.ended = 0.0

    def step(self, rows: int) -> None:
        self.steps += 1
        self.ended = time.perf_counter()
        if self.steps == WARM_UP:
            self.started, self.rows = self.ended, 0
        else:
            self.rows += rows

    @property
    def rate(self) -> float:
        return self.rows / (self.ended - self.started)


def ours(model: str, data: Path, cache: str, seed: int) -> tuple[float, float]:
    """Rows a second, and the share of padding in a whole epoch."""
    clock = Clock()

    class Ticks(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
            clock.step(len(batch[1]))

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
        trainer.callbacks.append(Ticks())  # type: ignore[attr-defined]
        trainer.fit(network, datamodule)
    loader = datamodule.train_dataloader()
    lengths = loader.inputs.lengths
    batches = [lengths[rows] for rows in loader.batch_sampler]
    padded = sum(len(one) * int(loader.inputs.padded(one.max())) for one in batches)
    return clock.rate, 1 - int(lengths.sum()) / padded


def theirs(
    model: str, data: Path, padded: bool, steps: int, epochs: float, seed: int, lr: float = 5e-5
) -> tuple[float, float]:
    """Rows a second, and the accuracy on the development set after whole epochs (0 if `steps` ends it before)."""
    import transformers
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        TrainingArguments,
    )

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer, clock = AutoTokenizer.from_pretrained(model), Clock()

    class Ticks(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            clock.step(BATCH_SIZE)

    def rows(part: str) -> list[dict[str, Any]]:
        read = read_file("data", data / f"{part}.tsv", Columns("sentence", None, "label"))
        padding = "max_length" if padded else False
        encoded = tokenizer(read.texts, truncation=True, max_length=MAX_LENGTH, padding=padding)
        columns = zip(*encoded.values(), map(int, read.labels), strict=True)
        return [dict(zip([*encoded, "labels"], values, strict=True)) for values in columns]

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
            train_dataset=rows("train"),
            eval_dataset=rows("dev"),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda made: {
                "accuracy": float((np.asarray(made.predictions).argmax(-1) == made.label_ids).mean())
            },
            callbacks=[Ticks()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return clock.rate, 0.0 if steps > 0 else trainer.evaluate()["eval_accuracy"]


def run(options: argparse.Namespace) -> list[Row]:
    data, paddings, accelerated = Path(options.data) / "sst2", list[float](), options.gpu
    with tempfile.TemporaryDirectory() as cache:
        seeds = {
            name: iter(range(options.pairs)) for name in ("ours", "padded", "dynamic")
        }  # other batches in each pair

        def by_us() -> float:
            rate, padding = ours(options.model, data, cache, next(seeds["ours"]))
            paddings.append(padding)
            return 1 / rate

        def by_them(name: str) -> float:
            padded = name == "padded"
            return 1 / theirs(options.model, data, padded, STEPS[name] + WARM_UP, 1, next(seeds[name]))[0]

        sides = {"ours": by_us, "padded": lambda: by_them("padded"), "dynamic": lambda: by_them("dynamic")}
        times = in_turn(sides, options.pairs)
    note = f"{1 / statistics.median(times['ours']):,.0f} rows/s, {100 * paddings[0]:.1f} % padding"
    work, name = "a row of SST-2", Path(options.model).name
    return [
        Row(
            work,
            "Trainer, padded to 128, fp32",
            times["ours"],
            times["padded"],
            at_least=4.0 if accelerated else 12.0,
            note=note,
        ),
        Row(
            work,
            "Trainer, dynamic padding",
            times["ours"],
            times["dynamic"],
            at_least=2.0 if accelerated else 4.0,
            note=name,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a pretrained BERT")
    parser.add_argument("--data", type=Path, default=Path("data/sst2"), help="folder with train.tsv and dev.tsv")
    parser.add_argument("--epochs", type=int, default=1, help="how many are trained")
    parser.add_argument("--lr", type=float, default=5e-5, help="learning rate; 5e-5 is Trainer's own")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the head")
    arguments = parser.parse_args()
    options = (arguments.epochs, arguments.seed, arguments.lr)
    rate, accuracy = theirs(arguments.model, arguments.data, False, -1, *options)
    print(
        f"Trainer, {options[0]} epochs, seed {options[1]}, lr {options[2]}: accuracy {accuracy:.4f}, {rate:.1f} rows/s"
    )


if __name__ == "__main__":
    main()
