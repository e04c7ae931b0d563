"""The command `train.py`, from its arguments to the files that it writes."""

import ast
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import evaluate
import export
import train
from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.training.checkpoints import Checkpoints
from engine.training.clock import Clock
from engine.training.loggers import event_files
from engine.training.signals import Signals
from lit_models.mlp import LitMLP
from tests import files
from tests.runs import IRIS, WITHOUT_PICTURES, curve, events, figures, run

SHIPPED = files.shipped_configs()
FIGURES = {"epochs", "steps", "train_seconds", "samples_per_second", "best_checkpoint"}


@pytest.fixture(scope="module")
def iris(tmp_path_factory) -> Path:
    """A short run of the example config, which several tests use."""
    os.chdir(PROJECT)
    return run(tmp_path_factory.mktemp("iris"), "--config", IRIS, "trainer.max_epochs=5")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_runs(path, small_data, tmp_path):
    config = load_config(path)
    options = [f"data.{key}={value}" for key, value in files.options(config["data.name"], small_data).items()]
    if config["data.name"] == "text":
        options += ["data.dataset=null", "data.test=null", "data.text_column=text"]
    if config["model"].get("pretrained"):
        options += [f"model.pretrained={files.write_bert(tmp_path / 'bert')}"]
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "data.batch_size=16"]
    # other tests draw galleries of each kind of input; with these networks they would take seconds
    short += [
        "data.eval_batch_size=16",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
        "callbacks.gallery=null",
    ]
    folder = run(tmp_path / "runs", "--config", str(path), *short, *options)
    assert folder.parent.name == path.stem
    assert figures(folder)["steps"] == 1
    assert evaluate.main([str(folder)]) == 0
    again = json.loads((folder / "evaluations/test.json").read_text(encoding="utf-8"))
    expected = {name: value for name, value in figures(folder).items() if name.startswith("test")}
    assert {name: value for name, value in again.items() if name.startswith("test")} == expected


def test_files_of_a_run(iris):
    left = {str(path.relative_to(iris)) for path in iris.rglob("*") if path.is_file()}
    written = {str(path.relative_to(iris)) for path in event_files(iris)}
    assert sorted(str(Path(name).parent) for name in written) == [".", "test", "val"]
    assert left - written == {
        ".lock", "config.yaml", "environment.json", "metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "test/projector_config.pbtxt", "test/00015/features/metadata.tsv", "test/00015/features/tensors.tsv",
    }  # fmt: skip
    facts = json.loads((iris / "environment.json").read_text(encoding="utf-8"))
    assert {"command", "git_commit", "git_dirty", "packages", "device", "threads", "seed", "data_sha256"} <= set(facts)
    assert len(facts["data_sha256"]) == 64
    written = figures(iris)
    assert {f"{stage}/{name}" for stage in ("test", "val") for name in ("loss", "accuracy", "f1")} <= set(written)
    assert set(written) >= FIGURES
    assert (written["epochs"], written["steps"], written["best_checkpoint"]) == (5, 15, "checkpoints/best.ckpt")


def test_its_own_config_repeats_the_run_to_the_bit(iris, tmp_path):
    again = run(tmp_path / "runs", "--config", str(iris / "config.yaml"), "run.name=again")
    run(
        tmp_path / "third", "--config", str(again / "config.yaml"), "trainer.max_epochs=1"
    )  # the name of the run is not copied
    assert again.parent.name == "iris_mlp"
    for name in ("train/loss", "val/loss", "val/accuracy", "test/loss"):
        assert curve(again, name) == curve(iris, name)


def assert_metrics_are_those_of(
    folder: Path, checkpoint: str = "best", parts: tuple[str, ...] = ("test", "val")
) -> None:
    """Compute the metrics again, from the checkpoint only."""
    from datamodules.iris import Iris

    data = load_config(folder / "config.yaml").options("data")
    datamodule = Iris(**data)
    datamodule.setup()
    model = LitMLP.load_from_checkpoint(folder / f"checkpoints/{checkpoint}.ckpt", map_location="cpu").eval()
    loaders = {"test": datamodule.test_dataloader(), "val": datamodule.val_dataloader()}
    for part in parts:
        inputs, labels = next(iter(loaders[part]))
        accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
        assert figures(folder)[f"{part}/accuracy"] == pytest.approx(accuracy)
        temperature = 1 if part == "test" else model.temperature  # the training does not use it
        loss = torch.nn.functional.cross_entropy(temperature * model(inputs), labels).item()
        assert figures(folder)[f"{part}/loss"] == pytest.approx(loss, rel=1e-5)


def test_the_metrics_are_those_of_the_best_checkpoint(iris):
    assert_metrics_are_those_of(iris)


def test_averaged_weights_are_tested(tmp_path, recwarn):
    average = ["--config", IRIS, "callbacks.ema_weight_averaging={decay: 0.9}", "trainer.max_epochs=5"]
    assert_metrics_are_those_of(run(tmp_path / "best", *average))
    last = run(tmp_path / "last", *average, "trainer.limit_val_batches=0")  # so there is no best checkpoint
    assert_metrics_are_those_of(last, "last", ("test",))
    assert not [warning for warning in recwarn if "WeightAveraging" in str(warning.message)]


@pytest.mark.parametrize(
    "options",
    [
        "update_starting_at_step: 15",
        "update_every_n_steps: 20, update_starting_at_step: 1",
        "update_starting_at_step: 15, update_starting_at_epoch: 5",
    ],
)
def test_averaging_that_never_starts_is_refused(options, tmp_path, capsys):
    argv = ["--config", IRIS, "trainer.max_epochs=5", f"callbacks.ema_weight_averaging={{{options}}}"]
    assert train.main([*argv, f"run.root={tmp_path}"]) == 2
    assert "update_starting_at_step: averaging would start after step" in capsys.readouterr().err


def test_best_is_the_best_and_last_is_the_last(tmp_path):
    """With a high learning rate the validation loss rises after some epochs."""
    worse = ["optimizer.lr=0.5", "schedule.name=constant", "trainer.max_epochs=8"]
    folder = run(tmp_path / "runs", "--config", IRIS, *worse)
    losses = curve(folder, "val/loss")
    best, last = (torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert losses.index(min(losses)) < 7  # otherwise this test shows nothing
    assert best["epoch"] == losses.index(min(losses))
    assert (last["epoch"], last["global_step"]) == (8, 24)  # finished epochs and steps
    assert figures(folder)["val/loss"] == pytest.approx(min(losses))
    assert figures(folder)["best_epoch"] == losses.index(min(losses)) + 1


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.max_steps=2"],  # an epoch has 3 steps
        ["trainer.max_steps=7"],
        ["trainer.max_steps=4", "trainer.max_epochs=null", "trainer.accumulate_grad_batches=2"],
        ["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"],
        ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=9"],
        ["trainer.max_epochs=1", "trainer.val_check_interval=2"],
        ["trainer.max_epochs=1", "trainer.val_check_interval=50", "trainer.check_val_every_n_epoch=null"],
        ["trainer.max_epochs=2", "trainer.limit_train_batches=1", "trainer.check_val_every_n_epoch=3"],
        ["callbacks.timer={duration: {milliseconds: 1}}", "trainer.check_val_every_n_epoch=9"],
        ["trainer.max_steps=2", "callbacks.ema_weight_averaging={decay: 0.5}"],
    ],
    ids=str,
)
def test_the_training_ends_with_a_validation(options, tmp_path):
    folder = run(tmp_path / "runs", "--config", IRIS, "run.monitor=val/loss", *WITHOUT_PICTURES, *options)
    last = events(folder, "val").Scalars("metrics/loss")[-1]
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert last.step == figures(folder)["steps"] - 1
    assert best["global_step"] == figures(folder)["steps"]  # the loss falls
    assert figures(folder)["val/loss"] == pytest.approx(last.value)


def test_points_of_the_test_stand_at_the_step_of_its_weights(tmp_path):
    options = ["run.monitor=val/loss", "optimizer.lr=0.5", "schedule.name=constant", "trainer.max_epochs=8"]
    folder = run(tmp_path / "runs", "--config", IRIS, *options)
    validation = min(events(folder, "val").Scalars("metrics/loss"), key=lambda point: point.value)
    (test,), (tested,) = events(folder, "test").Scalars("metrics/loss"), events(folder).Scalars("tested/val_loss")
    (picture,) = events(folder, "test").Images("pictures/confusion_matrix")
    assert test.step == validation.step < 7 * 3
    assert tested.step == picture.step == validation.step + 1 == 3 * figures(folder)["best_epoch"]
    assert figures(folder)["steps"] == 24


def test_a_run_without_validation_says_what_it_tests(tmp_path, capsys):
    run(tmp_path / "runs", "--config", IRIS, "trainer.max_epochs=1", "trainer.limit_val_batches=0", *WITHOUT_PICTURES)
    assert "checkpoint   there is no best checkpoint, so the last weights were tested\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "losses", "saved"),
    [
        ([1, 1, 1], [0.9, 0.5, 0.7], [0, 1]),
        ([1, 0.9, 1], [0.9, 0.1, 0.9], [0]),
        ([0.5, 0.9, 0.9], [0.1, 0.8, 0.7], [0, 1, 2]),
        ([1, 1, 1], [math.nan, 0.5, math.nan], [0, 1]),
        ([1, 1], [math.inf, math.inf], [0]),
        ([math.nan, 1], [0.1, 0.5], [1]),
        ([1, 1, 1], [None, None, None], [0]),
    ],
)
@pytest.mark.parametrize("stops_after", [None, 1])
def test_the_loss_decides_between_checkpoints_of_the_same_accuracy(values, losses, saved, stops_after, monkeypatch):
    found = []
    monkeypatch.setattr(Checkpoints, "_save", lambda self, trainer, name, position: found.append(position))

    def checkpoints() -> Checkpoints:
        return Checkpoints(Path(), Signals(), Clock(), "val/accuracy", "max")

    callback = checkpoints()
    for epoch, (value, loss) in enumerate(zip(values, losses, strict=True)):
        if epoch == stops_after:
            state, callback = callback.state_dict(), checkpoints()
            callback.load_state_dict(state)
        callback._before_validation = epoch
        metrics = {"val/accuracy": value, "val/loss": loss} if loss is not None else {"val/accuracy": value}
        callback.on_validation_end(SimpleNamespace(callback_metrics=metrics, barebones=False), None)
    assert found == saved


def test_prediction_in_the_docs_works_on_raw_data(small_data, tmp_path, capsys):
    options = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "model.widths=[8]", f"data.root={small_data}"]
    folder = run(tmp_path / "runs", "--config", "configs/mnist_cnn.yaml", *options)
    page = (PROJECT / "docs/configuration.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "LitCNN" in block]
    code = re.sub(r'"runs/.*?"', repr(str(folder / "checkpoints/best.ckpt")), code)
    capsys.readouterr()
    exec(compile(code, "configuration.md", "exec"), {"__name__": "__main__"})
    predicted = ast.literal_eval(capsys.readouterr().out)
    assert len(predicted) == 8
    assert set(predicted) <= set("0123456789")


@pytest.mark.parametrize("option", ["trainer.check_val_every_n_epoch=2", "trainer.val_check_interval=2"])
def test_last_is_the_last_without_a_validation_at_the_end(tmp_path, option):
    folder = run(tmp_path / "runs", "--config", IRIS, "trainer.max_epochs=3", option)
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (3, 9)


def test_a_checkpoint_loads_without_its_config(iris):
    model = LitMLP.load_from_checkpoint(iris / "checkpoints/best.ckpt")
    assert model.hparams["hidden_sizes"] == [64, 64]
    assert model.class_names[0] == "setosa"


def test_losses_of_iris_mlp_are_as_recorded(iris):
    """Notices accidental changes. After a deliberate change of the model or the data, record the losses again by hand."""
    recorded = json.loads((PROJECT / "tests/golden/iris_mlp.json").read_text(encoding="utf-8"))
    for name, values in recorded.items():
        assert curve(iris, name) == pytest.approx(values, rel=1e-3), name


@pytest.mark.real_data
def test_mnist_mlp_on_the_real_files(real_data, tmp_path):
    folder = run(tmp_path, "--config", "configs/mnist_mlp.yaml", f"data.root={real_data}", "trainer.max_epochs=2")
    assert figures(folder)["test/accuracy"] > 0.965


@pytest.mark.real_data
def test_mnist_cnn_on_the_real_files(real_data, tmp_path):
    folder = run(tmp_path, "--config", "configs/mnist_cnn.yaml", f"data.root={real_data}", "trainer.max_epochs=1")
    found = figures(folder)
    assert found["test/accuracy"] > 0.98
    assert found["test/calibration_error"] < 0.005 < 0.05 < found["test/uncalibrated_error"]
    assert export.main([str(folder), "--to", "onnx"]) == 0
    comparison = json.loads((folder / "exports/model.onnx.json").read_text(encoding="utf-8"))["comparison"][
        "model.onnx"
    ]
    assert (comparison["num_rows"], comparison["equal_classes"]) == (10_000, 1)


@pytest.mark.real_data
def test_cifar10_cnn_on_the_real_files(real_data, tmp_path):
    small = ["model.widths=[16, 32, 64]", "trainer.max_epochs=1", "trainer.limit_train_batches=100"]
    folder = run(tmp_path, "--config", "configs/cifar10_cnn.yaml", f"data.root={real_data}", *small)
    assert figures(folder)["test/accuracy"] > 0.35


def test_help_in_a_pipe_that_is_closed_early():
    done = subprocess.run(
        f"{sys.executable} train.py --config {IRIS} --help | head -1",
        shell=True, cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""
