"""Training in this process, and reading what it leaves."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train

IRIS = "configs/iris_mlp.yaml"


def run(root: Path, *argv: str) -> Path:
    """Train in this process; the run's folder comes back."""
    assert train.main([*argv, f"run.root={root}"]) == 0
    (folder,) = root.glob("*/*")
    return folder


def events(folder: Path) -> EventAccumulator:
    (path,) = folder.glob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return accumulator.Reload()


def curve(folder: Path, name: str) -> list[float]:
    return [one.value for one in events(folder).Scalars(name)]


def figures(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
