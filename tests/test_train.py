"""The command `train.py`, from its arguments to the files that it writes."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.training.loggers import event_files
from lit_models.mlp import LitMLP
from tests import files
from tests.runs import IRIS, curve, figures, run

SHIPPED = sorted((PROJECT / "configs").glob("*.yaml"))
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
        loss = torch.nn.functional.cross_entropy(model(inputs), labels).item()
        assert figures(folder)[f"{part}/loss"] == pytest.approx(loss, rel=1e-5)


def test_the_metrics_are_those_of_the_best_checkpoint(iris):
    assert_metrics_are_those_of(iris)


def test_averaged_weights_are_tested(tmp_path, recwarn):
    average = ["--config", IRIS, "callbacks.ema_weight_averaging={decay: 0.9}", "trainer.max_epochs=5"]
    assert_metrics_are_those_of(run(tmp_path / "best", *average))
    last = run(tmp_path / "last", *average, "trainer.limit_val_batches=0")  # so there is no best checkpoint
    assert_metrics_are_those_of(last, "last", ("test",))
    assert not [warning for warning in recwarn if "WeightAveraging" in str(warning.message)]


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
    assert figures(folder)["test/accuracy"] > 0.98


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
