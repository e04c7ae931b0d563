"""Time of a command without its training: until the first step and until the end, and time of `--help` and of an error.

The baselines are the imports that the command needs. "First step" and "imports" are measured within their processes, which
print how long they have run.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable

from benchmarks.measure import Comparison, run_in_turn, run_python, time_call

IRIS = ["--config", "configs/iris_mlp.yaml"]
IMPORTS = """
import torch, lightning
from engine.training.clock import process_seconds
print(process_seconds())
"""
# `train.main`, in a process that ends after the first optimizer step
FIRST_STEP = """
import os, sys
from engine.training import clock, epoch_loop

class FirstStep(epoch_loop.FastStep):
    def run(self, *batch):
        super().run(*batch)
        print(clock.process_seconds(), flush=True)
        os._exit(0)

epoch_loop.FastStep = FirstStep
import train
train.main(sys.argv[1:])
"""


def run(options: Namespace) -> list[Comparison]:
    torch_imports, omegaconf_import = "import torch, lightning", "import omegaconf"
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[], float]] = {
            "imports": lambda: printed_seconds(IMPORTS),
            "first step": lambda: printed_seconds(FIRST_STEP, *IRIS, f"run.root={folder}"),
            "python -c": lambda: process_seconds("-c", torch_imports),
            "whole run": lambda: process_seconds("train.py", *IRIS, f"run.root={folder}"),
            omegaconf_import: lambda: process_seconds("-c", omegaconf_import),
            "help": lambda: process_seconds("train.py", *IRIS, "--help"),
            "mistake": lambda: process_seconds("train.py", *IRIS, "optimizer.l=1", code=2),
        }
        for side in sides.values():
            side()  # fills the file cache of the system
        times = run_in_turn(sides, options.pairs)
    imports, whole_run = times["imports"], "whole iris_mlp: 100 epochs, test, files"
    return [
        Comparison("process start to first step, iris_mlp", torch_imports, times["first step"], imports, at_most=1.25),
        Comparison(whole_run, f"python -c '{torch_imports}'", times["whole run"], times["python -c"]),
        Comparison("--help of a config", omegaconf_import, times["help"], times[omegaconf_import]),
        Comparison("a mistake in a key", omegaconf_import, times["mistake"], times[omegaconf_import]),
    ]


def process_seconds(*arguments: str, code: int = 0) -> float:
    """Seconds of a Python process, whose exit code must be `code`."""
    return time_call(lambda: run_python(*arguments, code=code))


def printed_seconds(script: str, *arguments: str) -> float:
    """The seconds that a Python script prints last."""
    return float(run_python("-c", script, *arguments).split()[-1])
