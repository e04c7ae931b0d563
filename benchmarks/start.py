"""What a command costs before it does any work: in turn with what it cannot do without.

The first step and the imports are measured alike, by the age that their processes have when they are done with them.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable

from benchmarks.measure import Row, in_turn, process, timed

IRIS = ["train.py", "--config", "configs/iris_mlp.yaml"]
IMPORTS = """
import torch, lightning
from engine.training.clock import process_seconds
print(process_seconds())
"""
# the command's own `main`, with a hook that ends the process after the first optimizer step
FIRST_STEP = """
import os, sys
from engine.training import clock, epoch_loop

class First(epoch_loop.FastStep):
    def run(self, *batch):
        super().run(*batch)
        print(clock.process_seconds(), flush=True)
        os._exit(0)

epoch_loop.FastStep = First
import train
train.main(sys.argv[1:])
"""


def run(options: Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[], float]] = {
            "imports": lambda: age(IMPORTS),
            "first step": lambda: age(FIRST_STEP, *IRIS[1:], f"run.root={folder}"),
            "python -c": lambda: python("-c", "import torch, lightning"),
            "whole run": lambda: python(*IRIS, f"run.root={folder}"),
            "import omegaconf": lambda: python("-c", "import omegaconf"),
            "help": lambda: python(*IRIS, "--help"),
            "mistake": lambda: python(*IRIS, "optimizer.l=1", code=2),
        }
        for side in sides.values():
            side()  # fills the caches of files
        times = in_turn(sides, options.pairs)
    light, title = times["import omegaconf"], "import torch, lightning"
    return [
        Row("process start to first step, iris_mlp", title, times["first step"], times["imports"], at_most=1.25),
        Row("whole iris_mlp: 100 epochs, test, files", f"python -c '{title}'", times["whole run"], times["python -c"]),
        Row("--help of a config", "import omegaconf", times["help"], light),
        Row("a mistake in a key", "import omegaconf", times["mistake"], light),
    ]


def python(*arguments: str, code: int = 0) -> float:
    """Seconds of one Python process, which ends with `code`."""

    return timed(lambda: process(*arguments, code=code))


def age(code: str, *arguments: str) -> float:
    """Seconds that `code` prints in a process of its own."""
    return float(process("-c", code, *arguments).split()[-1])
