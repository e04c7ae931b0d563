"""Sides that do the same work, measured in turn; a table of ratios for people, and a file of them for programs."""

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
    """A side could not do its work, or not as well as the other; the message is for a person."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: The work.
        against: Who else does it.
        ours: Seconds of ours for it, in each pair.
        theirs: Seconds of theirs.
        at_most: The bar for ours / theirs; null where less is no aim.
        at_least: The bar for theirs / ours, where ours is to be faster.
        note: Accuracy, rates, whatever shows that the work was the same.
    """

    what: str
    against: str
    ours: list[float]
    theirs: list[float]
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.ours, self.theirs, strict=True)
        return [other / mine if self.at_least is not None else mine / other for mine, other in pairs]

    @property
    def reached(self) -> bool | None:
        ratio = statistics.median(self.ratios)
        if self.at_least is not None:
            return ratio >= self.at_least
        return ratio <= self.at_most if self.at_most is not None else None

    def shown(self) -> list[str]:
        ratio = statistics.median(self.ratios)
        faster = "times faster" if self.at_least is not None else "times its time"
        spread = f"{ratio:.2f} {faster} ({min(self.ratios):.2f} to {max(self.ratios):.2f})"
        bar = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}" if self.at_most else ""
        answer = {True: "reached", False: "MISSED", None: ""}[self.reached]
        times = f"{seconds(statistics.median(self.ours))} / {seconds(statistics.median(self.theirs))}"
        return [self.what, self.against, times, spread, f"{bar} {answer}".strip(), self.note]


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"


def in_turn(sides: Mapping[str, Callable[[], float]], pairs: int) -> dict[str, list[float]]:
    """Seconds of each side in each round; in every second round the last comes first, so that none always follows."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(pairs):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            times[name].append(sides[name]())
        print("  " + "   ".join(f"{name} {seconds(values[-1])}" for name, values in times.items()), flush=True)
    return times


def timed(work: Callable[[], Any]) -> float:
    """Seconds of `work`, and of what it has queued on a GPU."""
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def process(*arguments: str, code: int = 0, **environment: str) -> str:
    """What a Python process prints.

    Raises:
        BenchmarkError: if it does not end with `code`.
    """
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode != code:
        raise BenchmarkError(f"{shlex.join(command)} ended with {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


def hardware() -> str:
    """The machine in words: "2 cores of an AMD EPYC", "NVIDIA H200"."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # of Linux only
    return f"{cores} cores of {name}"


def show(rows: list[Row]) -> None:
    """Print a table."""
    cells = [["work", "against", "ours / theirs", "median (spread)", "bar", "note"], *(row.shown() for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def save(name: str, rows: list[Row]) -> Path:
    """Write the rows of a benchmark into the file of this hardware, beside those of others."""
    path = RESULTS / (re.sub(r"[^a-z0-9]+", "-", hardware().lower()).strip("-") + ".json")
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    packages = ("torch", "lightning", "torchmetrics", "tensorboard")
    content[name] = {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in packages},
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m benchmarks {name} --pairs {len(rows[0].ours)}",
        "rows": [
            {
                "work": row.what,
                "against": row.against,
                "our_seconds": [round(one, 5) for one in row.ours],
                "their_seconds": [round(one, 5) for one in row.theirs],
                "ratio": round(statistics.median(row.ratios), 3),
                "spread": [round(min(row.ratios), 3), round(max(row.ratios), 3)],
                "bar": {"at_most": row.at_most, "at_least": row.at_least},
                "reached": row.reached,
                "note": row.note,
            }
            for row in rows
        ],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
