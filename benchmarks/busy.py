"""Measures training beside 0, 1 and 2 busy processes, and compares it with the defaults of libgomp and Linux.

Each side is a process that trains on request, so the sides take turns every few seconds.
"""

import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.experiment import Experiment, train_ours
from benchmarks.measure import BenchmarkError, Comparison, run_in_turn
from engine.terminal import quiet_lightning
from engine.threads import SPIN_COUNT, THREAD_VARIABLES
from engine.training import spread_threads
from engine.training.clock import core_waiting_seconds

SECONDS = 1.5  # of each measurement
PAIRS = 3
SPIN_COUNTS = {"ours": SPIN_COUNT, "libgomp": 300_000}  # https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
CONFIGS = {
    "mnist_cnn": ["data.root={data}"],
    "mnist_mlp": ["data.root={data}"],
    "text_bert": ["data.train={data}/sst2/train.tsv", "data.text_column=sentence"],
}
ENDLESS = ["trainer.max_epochs=100000", "trainer.limit_val_batches=0", "trainer.accelerator=cpu"]
ANSWER = "measured "


def run(options: Namespace) -> list[Comparison]:
    comparisons = []
    for name, overrides in CONFIGS.items():
        arguments = [f"configs/{name}.yaml", *(text.format(data=options.data) for text in overrides)]
        comparisons += _compare(name, arguments, min(options.pairs, PAIRS))
    return comparisons


def _compare(name: str, arguments: list[str], pairs: int) -> list[Comparison]:
    with ExitStack() as stack:
        trainings = {side: stack.enter_context(Training(arguments, count)) for side, count in SPIN_COUNTS.items()}
        found, waiting = {}, {}
        for number in (0, 1, 2):
            with busy_processes(number):
                found[number] = run_in_turn({side: training.measure for side, training in trainings.items()}, pairs)
            waiting[number] = f"waits {trainings['ours'].waiting:.0%} of the time for a core"
    rows = []
    for number, times in found.items():
        work = f"{name}, 1000 rows, {f'beside {number} busy' if number else 'alone'}"
        at_most = None if number else 1.05
        rows.append(Comparison(work, "defaults", times["ours"], times["libgomp"], at_most, note=waiting[number]))
        if number:
            rows.append(Comparison(work, "alone", times["ours"], found[0]["ours"], at_most=2.5))
    return rows


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Keep `number` processes busy."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Training:
    """A process that trains for `SECONDS` when it reads a line.

    Attributes:
        waiting: Fraction of the last measurement in which the main thread waited for a core.
    """

    def __init__(self, arguments: list[str], spin_count: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.busy", *arguments, *ENDLESS],
            env=environment | {"GOMP_SPINCOUNT": str(spin_count)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.waiting = 0.0

    def __enter__(self) -> "Training":
        self.measure()
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.communicate("\n")

    def measure(self) -> float:
        """Seconds per 1000 rows."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("measure\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                seconds, self.waiting = map(float, line.removeprefix(ANSWER).split())
                return seconds
        raise BenchmarkError("a training process ended early")


class Measurements(Callback):
    """Measures training for `SECONDS` after each line on standard input. An empty line ends training."""

    def __init__(self) -> None:
        self.end = self.start = self.waited = 0.0
        self.samples = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.samples += len(batch[1])
        if now < self.end:
            return
        if self.start:
            seconds, waited = now - self.start, (core_waiting_seconds() or 0.0) - self.waited
            print(f"{ANSWER}{1000 * seconds / self.samples} {waited / seconds}", flush=True)
        trainer.should_stop = not sys.stdin.readline().strip()
        self.samples, self.waited = 0, core_waiting_seconds() or 0.0
        self.start = time.perf_counter()
        self.end = self.start + SECONDS


if __name__ == "__main__":
    quiet_lightning()
    if os.environ["GOMP_SPINCOUNT"] == str(SPIN_COUNTS["libgomp"]):
        spread_threads.MAX_WAITING = float("inf")  # never binds a thread
    train_ours(Experiment(sys.argv[1], sys.argv[2:]), callbacks=[Measurements()])
