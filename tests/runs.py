"""Trains in this process, and reads the files of a run."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from engine.training.loggers import STAGES, stage_and_tag

IRIS = "configs/iris_mlp.yaml"
WITHOUT_PICTURES = [  # they take half of the time of a short run
    f"callbacks.{name}=null"
    for name in (
        "confusion_matrix", "first_filters", "gallery", "model_graph", "pr_curves", "projector",
        "reliability_diagram",
    )
]  # fmt: skip


def run(root: Path, *argv: str) -> Path:
    """Train in this process. Returns the run's folder."""
    assert train.main([*argv, f"run.root={root}"]) == 0
    (folder,) = root.glob("*/*")
    return folder


def events(folder: Path, stage: str = "train") -> EventAccumulator:
    """The events of a run's training, validation or test, as TensorBoard reads them."""
    (path,) = (folder / STAGES[stage]).glob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "tensors": 0, "histograms": 0})
    return accumulator.Reload()


def curve(folder: Path, name: str) -> list[float]:
    """The values of a metric that was logged under `name`, as in ``val/loss``."""
    stage, tag = stage_and_tag(name)
    return [point.value for point in events(folder, stage).Scalars(tag)]


def figures(folder: Path) -> dict:
    """The content of ``metrics.json``."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
