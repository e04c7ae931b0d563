"""What a command costs before it does any work: in turn with what it cannot do without."""

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Row, in_turn, timed

IRIS = ["train.py", "--config", "configs/iris_mlp.yaml"]


def run(options: Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[], float]] = {
            "import torch, lightning": lambda: python("-c", "import torch, lightning"),
            "first step": lambda: first_step(Path(folder)),
            "whole run": lambda: python(*IRIS, f"run.root={folder}"),
            "import omegaconf": lambda: python("-c", "import omegaconf"),
            "help": lambda: python(*IRIS, "--help"),
            "mistake": lambda: python(*IRIS, "optimizer.l=1"),
        }
        for side in sides.values():
            side()  # fills the caches of files
        times = in_turn(sides, options.pairs)
    imports, light = times["import torch, lightning"], times["import omegaconf"]
    return [
        Row(
            "process start to first step, iris_mlp",
            "import torch, lightning",
            times["first step"],
            imports,
            at_most=1.25,
        ),
        Row("whole iris_mlp: 100 epochs, test, files", "import torch, lightning", times["whole run"], imports),
        Row("--help of a config", "import omegaconf", times["help"], light),
        Row("a mistake in a key", "import omegaconf", times["mistake"], light),
    ]


def python(*arguments: str) -> float:
    """Seconds of one Python process."""
    return timed(lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=False))


def first_step(folder: Path) -> float:
    """From the start of the process, as the run itself tells it."""
    root = Path(tempfile.mkdtemp(dir=folder))
    python(*IRIS, f"run.root={root}", "trainer.max_epochs=1")
    (path,) = root.glob("*/*/metrics.json")
    seconds: float = json.loads(path.read_text(encoding="utf-8"))["seconds"]["start"]
    return seconds
