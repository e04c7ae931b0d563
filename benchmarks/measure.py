"""Run the sides of a comparison in turn, print a table of ratios, and save the results as JSON."""

import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


class BenchmarkError(Exception):
    """A side failed, or it learned less than the other side. The message is for the user."""


@dataclass(frozen=True)
class Comparison:
    """One line of the results: the time of this project (ours) and of a baseline (theirs) for the same work.

    A comparison has at most one of the two targets.

    Attributes:
        work: Name of the work.
        baseline: Name of the baseline.
        ours: Seconds of this project, in each pair.
        theirs: Seconds of the baseline, in each pair.
        at_most: Target for the ratio ours / theirs; None for no target.
        at_least: Target for the ratio theirs / ours, if ours should be faster; None for no target.
        note: Accuracies, samples per second, or other evidence that both sides did the same work.
    """

    work: str
    baseline: str
    ours: list[float]
    theirs: list[float]
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """The ratio that has a target, in each pair: theirs / ours with `at_least`, otherwise ours / theirs."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [theirs / ours if self.at_least is not None else ours / theirs for ours, theirs in pairs]

    @property
    def is_reached(self) -> bool | None:
        """Whether the median of the ratios reaches the target. None if there is no target."""
        ratio = statistics.median(self.ratios)
        if self.at_least is not None:
            return ratio >= self.at_least
        return ratio <= self.at_most if self.at_most is not None else None

    def cells(self) -> list[str]:
        """The cells of a table row."""
        ratio = statistics.median(self.ratios)
        meaning = "times faster" if self.at_least is not None else "times its time"
        spread = f"{ratio:.2f} {meaning} ({min(self.ratios):.2f} to {max(self.ratios):.2f})"
        target = (
            f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}" if self.at_most else ""
        )
        result = {True: "reached", False: "MISSED", None: ""}[self.is_reached]
        times = f"{format_seconds(statistics.median(self.ours))} / {format_seconds(statistics.median(self.theirs))}"
        return [self.work, self.baseline, times, spread, f"{target} {result}".strip(), self.note]


def format_seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"


def run_in_turn(sides: Mapping[str, Callable[[], float]], pairs: int) -> dict[str, list[float]]:
    """Run each side `pairs` times and return its seconds.

    Every second round runs in reverse order, so that no side has an advantage from its position.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(pairs):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            times[name].append(sides[name]())
        print("  " + "   ".join(f"{name} {format_seconds(values[-1])}" for name, values in times.items()), flush=True)
    return times


def time_call(work: Callable[[], Any]) -> float:
    """Seconds of a call, including the work that it starts on a GPU."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def run_python(*arguments: str, code: int = 0, **environment: str) -> str:
    """Run a Python process and return what it prints.

    Raises:
        BenchmarkError: if its exit code is not `code`.
    """
    command = [sys.executable, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if result.returncode != code:
        raise BenchmarkError(f"{shlex.join(command)} ended with exit code {result.returncode}\n{result.stderr.strip()}")
    return result.stdout


def describe_hardware() -> str:
    """The machine, such as "2 cores of AMD EPYC" or "NVIDIA H200"."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # Linux only
    return f"{cores} cores of {name}"


def print_table(comparisons: list[Comparison]) -> None:
    header = ["work", "baseline", "ours / theirs", "median (spread)", "target", "note"]
    rows = [header, *(comparison.cells() for comparison in comparisons)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def results_file() -> Path:
    """The file of the results on this hardware."""
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", describe_hardware().lower()).strip("-") + ".json")


def save_results(name: str, comparisons: list[Comparison]) -> Path:
    """Write the results of a benchmark into the file of this hardware. Results of other benchmarks stay in the file."""
    path = results_file()
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    packages = ("torch", "lightning", "torchmetrics", "tensorboard")
    content[name] = {
        "hardware": describe_hardware(),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in packages},
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m benchmarks {name} --pairs {len(comparisons[0].ours)}",
        "rows": [
            {
                "work": comparison.work,
                "against": comparison.baseline,
                "our_seconds": [round(seconds, 5) for seconds in comparison.ours],
                "their_seconds": [round(seconds, 5) for seconds in comparison.theirs],
                "ratio": round(statistics.median(comparison.ratios), 3),
                "spread": [round(min(comparison.ratios), 3), round(max(comparison.ratios), 3)],
                "bar": {"at_most": comparison.at_most, "at_least": comparison.at_least},
                "reached": comparison.is_reached,
                "note": comparison.note,
            }
            for comparison in comparisons
        ],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
