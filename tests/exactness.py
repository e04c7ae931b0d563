"""Two runs that should be one: everything that they leave is compared, bit by bit."""

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
from engine.training.loggers import event_files

CLOCK = {
    "seconds", "train_seconds", "samples_per_second", "speed/samples_per_second", "peak_share", "speed/peak_share",
    "speed/memory_gigabytes", "events", "time_elapsed",
}  # fmt: skip # what no two runs share


def differences(one: Path, other: Path) -> list[str]:
    """Where the ends of two runs differ: checkpoints, figures, points of curves."""
    found = []
    for name in ("last", "best"):
        paths = [folder / f"checkpoints/{name}.ckpt" for folder in (one, other)]
        states = [torch.load(path, weights_only=True) if path.exists() else None for path in paths]
        found += different(*states, name)
    figures = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (one, other)]
    found += different(*figures, "metrics.json")
    return [*found, *different(points(one), points(other), "events")]


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in the event files as they lie there, in the order of writing, without TensorBoard's own cleaning."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(event_files(folder), key=lambda path: path.stat().st_mtime_ns):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tensor.float_val and not value.tag.startswith("pr_curves/"):  # when is the clock's
                    tag = str((path.parent / value.tag).relative_to(folder))
                    found.setdefault(tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def different(one: Any, other: Any, place: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other} - CLOCK, key=str):
            if key in one and key in other:
                yield from different(one[key], other[key], f"{place}.{key}")
            else:
                yield f"{place}.{key} is in one only"
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{place}: {len(one)} and {len(other)} values"
        for i, pair in enumerate(zip(one, other, strict=False)):
            yield from different(*pair, f"{place}[{i}]")
    elif isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield f"{place}: tensors differ"
    elif type(one) is not type(other) or (one != other and one == one):
        yield f"{place}: {one} and {other}"


@contextmanager
def signalled(
    monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool], signum: int = signal.SIGTERM
) -> Iterator[None]:
    """Send this process a signal before the first batch (training or validation) whose trainer fulfils `when`."""
    from lightning.pytorch.loops import _EvaluationLoop

    sent = []

    def watching(method: Callable) -> Callable:
        def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not sent and when(self.trainer):
                sent.append(signum)
                signal.raise_signal(signum)
            return method(self, *args, **kwargs)

        return watched

    with monkeypatch.context() as patch:
        patch.setattr(EpochLoop, "advance", watching(EpochLoop.advance))
        patch.setattr(_EvaluationLoop, "_evaluation_step", watching(_EvaluationLoop._evaluation_step))
        yield
    assert sent, "it ended before the signal was due"


def start(root: Path, *argv: str) -> tuple[int, Path]:
    """Train in this process; the exit code and the run's folder."""
    code = train.main([*argv, f"run.root={root}"])
    (folder,) = root.glob("*/*")
    return code, folder
