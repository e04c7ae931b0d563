"""Compares everything that two runs leave behind, bit by bit. Stops a run with a signal at a chosen batch."""

import csv
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import Tensor

import train
from engine.training.epoch_loop import EpochLoop
from engine.training.loggers import CSV_FILE, event_files, stage_and_tag

CLOCK = {
    "seconds", "train_seconds", "samples_per_second", "speed/samples_per_second", "peak_share", "speed/peak_share",
    "speed/memory_gigabytes", "log_sizes", "time_elapsed", "content_sha256", "ModelGraph",
}  # fmt: skip # values that depend on time, or on names of files


def differences(left: Path, right: Path) -> list[str]:
    """The differences between the folders of two runs: checkpoints, metrics, points of curves."""
    found = []
    for name in ("last", "best"):
        paths = [folder / f"checkpoints/{name}.ckpt" for folder in (left, right)]
        states = [torch.load(path, weights_only=True) if path.exists() else None for path in paths]
        found += different(*states, name)
    metrics = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (left, right)]
    found += different(*metrics, "metrics.json")
    found += different(rows(left), rows(right), CSV_FILE)
    return [*found, *different(points(left), points(right), "events")]


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in the event files, in the order of writing, also points that TensorBoard would discard."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(event_files(folder), key=lambda path: path.stat().st_mtime_ns):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tensor.float_val and not value.tag.startswith("pr_curves/"):  # their steps depend on time
                    tag = str((path.parent / value.tag).relative_to(folder))
                    found.setdefault(tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def rows(folder: Path) -> list[list[str]]:
    """The rows of the run's CSV file, except for values that depend on time."""
    if not (folder / CSV_FILE).exists():
        return []
    with (folder / CSV_FILE).open(encoding="utf-8", newline="") as file:
        return [row for row in csv.reader(file) if stage_and_tag(row[1])[1] not in CLOCK]


def different(left: Any, right: Any, place: str) -> Iterator[str]:
    """The places where two nested values differ. NaN equals NaN."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right} - CLOCK, key=str):
            if key in left and key in right:
                yield from different(left[key], right[key], f"{place}.{key}")
            else:
                yield f"{place}.{key} is on one side only"
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) != len(right):
            yield f"{place}: {len(left)} and {len(right)} values"
        for i, pair in enumerate(zip(left, right, strict=False)):
            yield from different(*pair, f"{place}[{i}]")
    elif isinstance(left, Tensor) and isinstance(right, Tensor):
        if left.dtype != right.dtype or not torch.equal(left, right):
            yield f"{place}: tensors differ"
    elif type(left) is not type(right) or (left != right and left == left):
        yield f"{place}: {left} and {right}"


@contextmanager
def signalled(
    monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool], signum: int = signal.SIGTERM
) -> Iterator[None]:
    """Send this process a signal before the first batch of training or evaluation for which `when(trainer)` is true."""
    from lightning.pytorch.loops import _EvaluationLoop

    sent = []

    def sends_signal(method: Callable) -> Callable:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not sent and when(self.trainer):
                sent.append(signum)
                signal.raise_signal(signum)
            return method(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(EpochLoop, "advance", sends_signal(EpochLoop.advance))
        patch.setattr(_EvaluationLoop, "_evaluation_step", sends_signal(_EvaluationLoop._evaluation_step))
        yield
    assert sent, "the run ended before the signal was due"


def start(root: Path, *argv: str) -> tuple[int, Path]:
    """Train in this process. Returns the exit code and the run's folder."""
    code = train.main([*argv, f"run.root={root}"])
    (folder,) = root.glob("*/*")
    return code, folder
