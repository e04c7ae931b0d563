"""Training from files that do not fit in the memory for data, compared with training from memory.

The data is generated: a table of 10 million rows by 20 columns, 80,000 pictures of 224x224 pixels (12 GB decoded), and
2 million texts. The peak of the private memory (RssAnon, on Linux) is in the notes.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import BenchmarkError, Comparison

NUM_ROWS, NUM_NUMBERS, NUM_CATEGORIES = 10_000_000, 15, 5
NUM_PICTURES, NUM_DIFFERENT, NUM_CLASSES = 80_000, 800, 8
NUM_TEXTS = 2_000_000
PART = 100_000  # rows that are generated at a time
PAIRS = 2
IN_FILES, IN_MEMORY = 0, 1000  # data.memory_gigabytes
LIMITS = [
    "trainer.max_epochs=1", "trainer.limit_val_batches=20", "trainer.limit_test_batches=20", "run.name=run",
]  # fmt: skip


def run(options: Namespace) -> list[Comparison]:
    comparisons = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        kinds = {
            "table": ["configs/table_mlp.yaml", f"data.train={write_table(root)}", "trainer.max_steps=500"],
            "texts": ["configs/text_bert.yaml", f"data.train={write_texts(root)}", "trainer.max_steps=300"],
            "pictures": [
                "configs/pictures_cnn.yaml", f"data.train={write_pictures(root)}", "data.image_size=224",
                "data.batch_size=32", "data.eval_batch_size=100", "model.stem=true", "model.widths=[16, 32, 64, 128]",
                "trainer.max_steps=100",
            ],
        }  # fmt: skip
        for name, arguments in kinds.items():
            sides = {IN_FILES: [Run(root, arguments, IN_FILES)], IN_MEMORY: [Run(root, arguments, IN_MEMORY)]}
            for _ in range(min(options.pairs, PAIRS)):
                for limit, found in sides.items():
                    found.append(Run(root, arguments, limit))
            first, *ours = sides[IN_FILES]
            _, *theirs = sides[IN_MEMORY]
            if any(one.accuracy != first.accuracy for one in (*ours, *theirs)):
                raise BenchmarkError(f"{name}: the accuracies differ")
            peak = max(one.peak for one in (first, *ours)) / 1e9
            note = f"private memory {peak:.2f} GB; start {first.start:.0f} s, later {ours[-1].start:.0f} s"
            steps = [one.steps for one in ours], [one.steps for one in theirs]
            comparisons.append(Comparison(name, "from memory", *steps, at_most=1 / 0.7, note=note))
    return comparisons


class Run:
    """A run in its own process.

    Attributes:
        steps: Seconds of the training steps.
        start: Seconds before the first step.
        accuracy: Accuracy in the test.
        peak: Largest private memory in bytes; 0 if it is unknown.
    """

    def __init__(self, root: Path, arguments: list[str], memory_gigabytes: int) -> None:
        subprocess.run(["rm", "-rf", str(root / "runs")], check=True)
        options = [f"data.cache={root}/cache", f"data.memory_gigabytes={memory_gigabytes}", f"run.root={root}/runs"]
        command = [sys.executable, "train.py", "--config", *arguments, *options, *LIMITS]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.peak = 0
        while process.poll() is None:
            self.peak = max(self.peak, private_memory(process.pid))
            time.sleep(0.05)
        if process.returncode:
            raise BenchmarkError(f"{' '.join(command)} ended with exit code {process.returncode}")
        metrics = json.loads(next(root.glob("runs/*/run/metrics.json")).read_text(encoding="utf-8"))
        self.start, self.accuracy = metrics["seconds"]["start"], metrics["test/accuracy"]
        self.steps = metrics["seconds"]["step"] + metrics["seconds"]["data"]


def private_memory(pid: int) -> int:
    """Return the private memory of a process in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def write_table(root: Path) -> Path:
    generator, words = np.random.default_rng(0), np.array(["red", "green", "blue", "yellow", "black"])
    path = root / "table.csv"
    with path.open("w", encoding="utf-8") as file:
        names = [*(f"n{i}" for i in range(NUM_NUMBERS)), *(f"c{i}" for i in range(NUM_CATEGORIES)), "label"]
        file.write(",".join(names) + "\n")
        for _ in range(NUM_ROWS // PART):
            numbers = generator.normal(size=(PART, NUM_NUMBERS)).round(3)
            codes = generator.integers(0, len(words), (PART, NUM_CATEGORIES))
            labels = numbers[:, 0] + numbers[:, 1] * numbers[:, 2] + (codes[:, 0] == 1) > 0.3
            columns = [numbers.astype(str), words[codes], np.where(labels, "yes", "no")[:, None]]
            file.writelines(",".join(row) + "\n" for row in np.concatenate(columns, 1))
    return path


def write_texts(root: Path) -> Path:
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(5000)])
    path = root / "texts.tsv"
    with path.open("w", encoding="utf-8") as file:
        file.write("text\tlabel\n")
        for _ in range(NUM_TEXTS // PART):
            rows = generator.integers(0, len(words), (PART, 16))
            file.writelines(f"{' '.join(words[row])}\t{'good' if row[0] < 2500 else 'bad'}\n" for row in rows)
    return path


def write_pictures(root: Path) -> Path:
    """Different JPEG files, each with many names."""
    generator = np.random.default_rng(0)
    for number in range(NUM_DIFFERENT):
        folder = root / f"pictures/class{number % NUM_CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 100, (8, 10, 3)).astype(np.uint8) + 20 * (number % NUM_CLASSES)
        path = folder / f"{number}-0.jpg"
        Image.fromarray(pixels.astype(np.uint8)).resize((320, 256), Image.Resampling.BICUBIC).save(path)
        for copy in range(1, NUM_PICTURES // NUM_DIFFERENT):
            os.link(path, folder / f"{number}-{copy}.jpg")
    return root / "pictures"
