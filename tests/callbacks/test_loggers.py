"""The callbacks with other loggers than TensorBoard, beside it or instead of it."""

import numpy as np
import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from engine.training.loggers import event_files
from tests.runs import events, figures, run

PICTURES = {"class_accuracy", "confusion_matrix", "mistakes", "reliability_diagram"}


class PictureLogger(DummyLogger):
    """Takes pictures, as the logger of Weights & Biases does."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: dict[str, list[np.ndarray]] = {}
        self.metrics: set[str] = set()

    def log_image(self, key, images, step=None, **options) -> None:
        self.pictures.setdefault(key, []).extend(images)

    def log_metrics(self, metrics, step=None) -> None:
        self.metrics |= set(metrics)


@pytest.fixture
def options(small_data) -> list[str]:
    config = ["--config", "configs/mnist_cnn.yaml", "model.widths=[8]", f"data.root={small_data}"]
    return [*config, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "callbacks.histograms={every_n_steps: 1}"]


def test_callbacks_do_nothing_with_a_logger_that_takes_no_pictures(options, tmp_path, capsys):
    folder = run(tmp_path / "runs", *options, "trainer.logger=csv")
    assert "failed" not in capsys.readouterr().out
    assert event_files(folder) == []
    assert not list(folder.rglob("*.tsv"))  # of the projector
    curves = (folder / "csv/metrics.csv").read_text(encoding="utf-8")
    for name in ("train/loss", "val/loss", "train/gradient_norm", "train/samples_per_second"):
        assert name in curves
    assert "test/accuracy" in figures(folder)


def test_any_logger_that_takes_pictures_gets_them(options, tmp_path, monkeypatch, capsys):
    logger = PictureLogger()
    monkeypatch.setattr("engine.training.loggers.make_loggers", lambda *_, **__: [logger])
    folder = run(tmp_path / "runs", *options)
    assert "failed" not in capsys.readouterr().out
    assert {f"{stage}/pictures/{name}" for stage in ("val", "test") for name in PICTURES} <= logger.pictures.keys()
    assert {"val/pictures/first_filters", "test/pictures/hits"} <= logger.pictures.keys()
    for picture in (picture for pictures in logger.pictures.values() for picture in pictures):
        assert picture.shape[2] == 3
        assert picture.dtype == np.uint8
    assert {"val/loss", "train/gradient_norm", "train/samples_per_second"} <= logger.metrics
    assert event_files(folder) == []


def test_tensorboard_gets_everything_as_the_second_logger(options, tmp_path, capsys):
    folder = run(tmp_path / "runs", *options, "trainer.logger=[csv, tensorboard]")
    assert "failed" not in capsys.readouterr().out
    assert (folder / "csv/metrics.csv").exists()
    training, test = events(folder).Tags(), events(folder, "test").Tags()
    assert training["graph"]
    assert "training/gradient_norm" in training["scalars"]
    assert "parameters/head.weight.gradient" in training["histograms"]
    assert {f"pictures/{name}" for name in PICTURES} <= set(test["images"])
    assert {f"pr_curves/{i}" for i in range(10)} <= set(test["tensors"])
    assert list(folder.glob("test/*/features/tensors.tsv"))
