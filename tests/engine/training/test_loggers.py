"""Learning curves go to every logger of a run, pictures to every logger that takes images."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger

import train
from engine.config.signatures import PROJECT
from engine.training import loggers
from engine.training.clock import Clock
from engine.training.loggers import CSV_FILE, CsvLogger, PictureWriter, RunLogger, missing_displays, stage_and_tag
from tests.exactness import differences, points, rows, signalled, start
from tests.runs import IRIS, curve, figures, run

SHORT = ["--config", IRIS, "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]


class ImageLogger(Logger):
    """Stands for a logger such as WandbLogger: curves, images and texts."""

    name, version = "images", ""

    def __init__(self) -> None:
        super().__init__()
        self.curves: dict[str, list[tuple[int | None, float]]] = {}
        self.images: dict[str, np.ndarray] = {}
        self.texts: dict[str, str] = {}

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        for name, value in metrics.items():
            self.curves.setdefault(name, []).append((step, value))

    def log_image(self, key: str, images: list[np.ndarray], step: int | None = None) -> None:
        (self.images[key],) = images

    def log_text(self, key: str, columns: list[str], data: list[list[str]], step: int | None = None) -> None:
        ((self.texts[key],),) = data


def column(folder: Path, metric: str) -> list[float]:
    """The values of a metric in the run's CSV file."""
    with (folder / CSV_FILE).open(encoding="utf-8", newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == metric]


def stopped_and_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch, *argv: str) -> Path:
    """The folder of a run that was stopped in its second epoch and resumed."""
    with signalled(monkeypatch, lambda trainer: trainer.training and trainer.global_step == 4):
        code, stopped = start(folder, *argv)
    assert code == 128 + signal.SIGTERM
    assert train.main(["--resume", str(stopped)]) == 0
    return stopped


def test_the_csv_file_has_the_curves_of_tensorboard(tmp_path):
    folder = run(tmp_path, *SHORT, "trainer.logger=[tensorboard, csv]")
    for name, count in (
        ("train/loss_step", 9),
        ("train/loss", 3),
        ("val/loss", 3),
        ("val/f1", 3),
        ("test/accuracy", 1),
    ):
        assert column(folder, name) == pytest.approx(curve(folder, name)), name
        assert len(column(folder, name)) == count
    assert column(folder, "test/accuracy") == pytest.approx([figures(folder)["test/accuracy"]])


@pytest.mark.parametrize("choice", ["csv", "[csv, tensorboard]"])
def test_a_resumed_run_has_every_row_once(choice, tmp_path, monkeypatch):
    options = [*SHORT, f"trainer.logger={choice}"]
    whole = run(tmp_path / "whole", *options)
    resumed = stopped_and_resumed(tmp_path / "stopped", monkeypatch, *options)
    assert len(rows(whole)) > 40
    assert differences(whole, resumed) == []


def test_rows_after_the_checkpoint_are_removed(tmp_path, monkeypatch):
    """As after SIGKILL, when the file is longer than at the last checkpoint."""
    options = [*SHORT, "trainer.logger=csv"]
    whole = run(tmp_path / "whole", *options)
    with signalled(monkeypatch, lambda trainer: trainer.training and trainer.global_step == 4):
        _, stopped = start(tmp_path / "stopped", *options)
    with (stopped / CSV_FILE).open("a", encoding="utf-8") as file:
        file.write("5,train/loss_step,0.5\n6,train/lo")
    assert train.main(["--resume", str(stopped)]) == 0
    assert differences(whole, stopped) == []


def test_a_run_without_tensorboard_says_what_is_missing(tmp_path, capsys):
    folder = run(tmp_path, *SHORT, "trainer.logger=csv")
    printed = capsys.readouterr().out
    assert "CsvLogger takes curves, but no pictures" in printed
    assert "histograms, PR curves, the graph and the projector need trainer.logger=tensorboard" in printed
    assert "tensorboard --logdir" not in printed
    assert not list(folder.rglob("events.*"))


def test_what_loggers_cannot_show(tmp_path):
    tensorboard, table, images = RunLogger(tmp_path, Clock()), CsvLogger(tmp_path, Clock()), ImageLogger()
    assert missing_displays([tensorboard, images]) == []
    assert missing_displays([tensorboard, table]) == ["CsvLogger takes curves, but no pictures"]
    assert len(missing_displays([table, images])) == 2
    assert missing_displays([]) == []


@pytest.mark.parametrize("with_tensorboard", [False, True])
def test_pictures_and_curves_reach_another_logger(with_tensorboard, tmp_path, monkeypatch):
    images = ImageLogger()

    def make_loggers(names: Any, folder: Path, clock: Clock, options: Any) -> list[Logger]:
        return [RunLogger(folder, clock), images] if with_tensorboard else [images]

    monkeypatch.setattr(loggers, "make_loggers", make_loggers)
    folder = run(tmp_path, *SHORT)
    assert {"val/pictures/confusion_matrix", "test/pictures/confusion_matrix"} <= set(images.images)
    assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in images.images.values())
    assert [step for step, _ in images.curves["train/loss_step"]] == list(range(9))
    assert [value for _, value in images.curves["test/accuracy"]] == pytest.approx([figures(folder)["test/accuracy"]])
    if with_tensorboard:
        for name in ("train/loss", "train/loss_step", "val/loss", "test/f1"):
            assert [value for _, value in images.curves[name]] == pytest.approx(curve(folder, name)), name


def writer_for(*loggers: Logger) -> PictureWriter:
    return PictureWriter(SimpleNamespace(loggers=list(loggers), global_step=7), "val")


def test_a_picture_writer_converts_images():
    logger = ImageLogger()
    writer = writer_for(logger)
    writer.add_image("gray", torch.tensor([[[0.0, 0.5, 1.0]]]))
    writer.add_image("rgb", np.zeros((2, 4, 3), np.uint8), dataformats="HWC")
    writer.add_text("note", "**bold**")
    writer.add_scalar("count", 3)
    assert logger.images["val/gray"].tolist() == [[[0], [128], [255]]]
    assert logger.images["val/rgb"].shape == (2, 4, 3)
    assert logger.texts == {"val/note": "**bold**"}
    assert logger.curves == {"val/count": [(7, 3.0)]}


def test_a_method_of_tensorboard_is_not_silently_ignored():
    with pytest.raises(AttributeError, match="add_histogram needs TensorBoard"):
        writer_for(ImageLogger()).add_histogram("weights", torch.zeros(3))


@pytest.mark.parametrize(
    ("name", "stage", "tag"),
    [
        ("val/loss", "val", "metrics/loss"),
        ("train/lr", "train", "training/lr"),
        ("epoch", "train", "training/epoch"),
        ("lr-Adam", "train", "lr-Adam"),
        ("some/metric", "train", "some/metric"),
    ],
)
def test_tags_of_metrics(name, stage, tag):
    assert stage_and_tag(name) == (stage, tag)


STOPS_AFTER_FOUR_STEPS = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
import train
from lit_models.classifier import LitClassifier
original = LitClassifier.training_step

def training_step(self, batch, batch_idx):
    if self.global_step == 4:
        signal.raise_signal(signal.SIGTERM)
    return original(self, batch, batch_idx)

LitClassifier.training_step = training_step
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    """Curves and images arrive, and a resumed run continues the same run of Weights & Biases."""
    pytest.importorskip("wandb")
    script = tmp_path / "stops.py"
    script.write_text(STOPS_AFTER_FOUR_STEPS, encoding="utf-8")
    folder = tmp_path / "iris_mlp/x"
    options = [*SHORT, "trainer.logger=[tensorboard, wandb]", f"run.root={tmp_path}", "run.name=x"]
    for expected, command in ((143, [str(script), *options]), (0, ["train.py", "--resume", str(folder)])):
        environment = os.environ | {"WANDB_MODE": "offline"}
        done = subprocess.run(
            [sys.executable, *command], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == expected, done.stderr
    records = b"".join(path.read_bytes() for path in folder.glob("wandb/offline-run-*/*.wandb"))
    curves = points(folder)  # in TensorBoard's files
    for name, tag in (("train/loss", "metrics/loss"), ("val/loss", "val/metrics/loss"), ("test/f1", "test/metrics/f1")):
        assert name.encode() in records
        assert [value for _, value in curves[tag] if json.dumps(value).encode() not in records] == []
    assert list(folder.glob("wandb/offline-run-*/files/media/images/test/pictures/confusion_matrix*.png"))
    runs = [path.name.rpartition("-")[2] for path in folder.glob("wandb/offline-run-*")]
    assert len(runs) == 2
    assert len(set(runs)) == 1
