"""The content of the event files of real runs, as TensorBoard reads it."""

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from tensorboard.plugins.pr_curve.plugin_data_pb2 import PrCurvePluginData
from torch import nn

from callbacks.confusion_matrix import ConfusionMatrix
from callbacks.finite_steps import FiniteSteps
from callbacks.histograms import Histograms
from callbacks.model_graph import ModelGraph
from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.training.epoch_loop import is_last_batch
from engine.training.loggers import hparams_plugin, stage_and_tag
from lit_models.mlp import LitMLP
from tests.exactness import differences
from tests.runs import IRIS, events, run

PICTURES = [f"pictures/{name}" for name in ("class_accuracy", "confusion_matrix", "reliability_diagram")]
CALLBACKS = (
    "confusion_matrix", "first_filters", "gallery", "model_graph", "pr_curves", "projector", "reliability_diagram",
)  # fmt: skip
SMALL = ["trainer.max_epochs=2", "trainer.limit_train_batches=3"]


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds_per_call: float = 0.0) -> None:
    """Give evaluation callbacks a clock that only moves when it is read."""
    now = [1000.0]

    def monotonic() -> float:
        now[0] += seconds_per_call
        return now[0]

    monkeypatch.setattr("callbacks.evaluation.time", SimpleNamespace(monotonic=monotonic))


@pytest.fixture(autouse=True)
def clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validations that are shown must not depend on the speed of the machine."""
    set_clock(monkeypatch)


@pytest.fixture(scope="module")
def iris(tmp_path_factory) -> Path:
    os.chdir(PROJECT)
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_clock(monkeypatch)
        return run(tmp_path_factory.mktemp("iris"), "--config", IRIS, "trainer.max_epochs=5")


@pytest.fixture
def mnist(small_data, tmp_path) -> Path:
    options = ["--config", "configs/mnist_cnn.yaml", "model.widths=[8]", f"data.root={small_data}"]
    return run(tmp_path / "runs", *options, *SMALL)


def text(folder: Path, name: str, stage: str = "train") -> str:
    return events(folder, stage).Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_metrics_of_training_and_validation_share_a_chart(iris):
    tags = {stage: set(events(iris, stage).Tags()["scalars"]) for stage in ("train", "val", "test")}
    quality = {f"metrics/{name}" for name in ("loss", "accuracy", "f1", "calibration_error")}
    assert tags["val"] == quality
    assert tags["test"] == quality | {"metrics/uncalibrated_error"}
    assert tags["train"] == {
        "metrics/loss", "metrics/accuracy", "training/loss_step", "training/lr", "training/gradient_norm", "training/epoch",
        "speed/samples_per_second", "speed/memory_gigabytes",
        *(f"tested/val_{name}" for name in ("loss", "accuracy", "f1", "calibration_error")),
    }  # fmt: skip
    assert [event.step for event in events(iris, "val").Scalars("metrics/accuracy")] == [2, 5, 8, 11, 14]


def test_metric_of_the_users_own_has_a_tag():
    assert stage_and_tag("val/kappa") == ("val", "metrics/kappa")
    assert stage_and_tag("train/lr") == ("train", "training/lr")
    assert stage_and_tag("lr-Adam") == ("train", "lr-Adam")
    assert stage_and_tag("test_mirrored/accuracy") == ("train", "test_mirrored/accuracy")


def test_hparams_have_every_hyperparameter_and_the_final_metrics(iris):
    content = {name: summary.plugin_data.content for name, summary in events(iris).summary_metadata.items()}
    session = hparams_plugin(content["_hparams_/session_start_info"]).session_start_info
    config = load_config(iris / "config.yaml")
    assert set(session.hparams) == set(config.flat())
    infos = hparams_plugin(content["_hparams_/experiment"]).experiment.metric_infos
    columns = [(info.name.group, info.name.tag) for info in infos]
    names = ("accuracy", "calibration_error", "f1", "loss")
    tested = [("", f"tested/val_{name}") for name in names]
    assert sorted(columns) == sorted(
        [*(("test", f"metrics/{name}") for name in (*names, "uncalibrated_error")), *tested]
    )
    for group, tag in columns:
        assert tag in events(iris, group or "train").Tags()["scalars"]


def test_hparams_open_with_the_options_that_vary(tmp_path):
    """TensorBoard shows five of them at first."""
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1", "model.dropout=0.1")
    content = events(folder).summary_metadata["_hparams_/experiment"].plugin_data.content
    first = {info.name for info in hparams_plugin(content).experiment.hparam_infos if info.differs}
    usual = {"data.batch_size", "model.name", "optimizer.lr", "optimizer.name", "seed"}
    assert first == usual | {"trainer.max_epochs", "model.dropout"}


def test_texts_describe_the_run(iris):
    assert "hidden_sizes" in text(iris, "run/config")
    assert "| packages | lightning " in text(iris, "run/environment")
    assert text(iris, "run/command").strip("`\n")
    assert b"metrics/loss" in events(iris).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]


def test_last_validation_and_test_have_pictures(iris):
    for stage in ("val", "test"):
        assert sorted(events(iris, stage).Tags()["images"]) == PICTURES
        assert "pr_curves/virginica" in events(iris, stage).Tags()["tensors"]
    for name in PICTURES:
        assert [event.step for event in events(iris, "val").Images(name)] == [15]  # only the last of five
    assert events(iris).Graph().node


def test_every_seconds_sets_how_often_validations_are_shown(tmp_path):
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=3", "callbacks.confusion_matrix={every_seconds: 0}")
    for name, count in (("confusion_matrix", 3), ("class_accuracy", 3), ("reliability_diagram", 1)):
        assert len(events(folder, "val").Images(f"pictures/{name}")) == count


def test_validation_is_shown_after_every_seconds_and_a_hundred_times_the_cost(monkeypatch):
    callback, now = ConfusionMatrix(every_seconds=10.0), 100.0
    monkeypatch.setattr("callbacks.evaluation.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("callbacks.evaluation.is_last_batch", lambda trainer: False)
    trainer = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda is_due: is_due))
    callback.on_train_start(trainer, None)
    now = 109.9
    assert not callback.is_due(trainer)
    now = 110.0
    assert callback.is_due(trainer)
    callback._cost_seconds = 0.2
    assert not callback.is_due(trainer)
    now = 120.0
    assert callback.is_due(trainer)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["trainer.max_epochs=3"], 3),
        (["trainer.max_epochs=5", "trainer.check_val_every_n_epoch=2"], 3),
        (["trainer.max_epochs=1", "trainer.val_check_interval=1", "data.batch_size=10"], 10),
        (["trainer.max_epochs=2", "trainer.val_check_interval=4", "data.batch_size=10"], 5),
        (["trainer.max_epochs=null", "trainer.max_steps=7"], 3),
        (["trainer.max_steps=7", "trainer.val_check_interval=2", "trainer.accumulate_grad_batches=2"], 4),
        (["trainer.max_steps=7", "trainer.val_check_interval=2", "data.batch_size=10"], 4),
        (["trainer.max_steps=7", "trainer.val_check_interval=5", "trainer.check_val_every_n_epoch=null"], 2),
        (["trainer.max_epochs=3", "trainer.val_check_interval=4", "trainer.check_val_every_n_epoch=null"], 3),
    ],
)
def test_last_validation_is_always_shown(options, count, tmp_path, monkeypatch):
    """An epoch has 3 batches of 32 samples, or 10 batches of 10 samples. The training ends with a validation."""
    answers = []

    def record(trainer):
        answers.append(is_last_batch(trainer))
        return answers[-1]

    monkeypatch.setattr("callbacks.evaluation.is_last_batch", record)
    off = [f"callbacks.{name}=null" for name in CALLBACKS if name != "confusion_matrix"]
    folder = run(tmp_path, "--config", IRIS, "schedule.name=constant", *off, *options)
    assert answers == [False] * (count - 1) + [True]
    assert len(events(folder, "val").Images("pictures/confusion_matrix")) == 1


def test_callbacks_can_be_switched_off(tmp_path):
    off = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1", *(f"callbacks.{name}=null" for name in CALLBACKS))
    for stage in ("val", "test"):
        tags = events(off, stage).Tags()
        assert tags["images"] == []
        assert tags["tensors"] == []
    assert events(off).Tags()["graph"] is False
    assert not (off / "test/projector_config.pbtxt").exists()


def test_image_run_has_galleries_filters_and_features(mnist):
    assert sorted(events(mnist, "test").Tags()["images"]) == sorted([*PICTURES, "pictures/hits", "pictures/mistakes"])
    assert "pictures/first_filters" in events(mnist, "val").Tags()["images"]
    (best,) = (mnist / "test").glob("*/features")
    rows = (best / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    vectors = (best / "tensors.tsv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "true\tpredicted\tcorrect"
    assert len(rows) - 1 == len(vectors) > 50
    assert len(vectors[0].split("\t")) == 8
    with Image.open(best / "sprite.png") as sprite:
        assert sprite.width % 28 == 0


@pytest.mark.slow
@pytest.mark.needs("bert", "text")
def test_text_run_has_examples_with_an_attribution_per_token(small_data, tmp_path):
    options = [
        "data.test=null",
        f"data.train={small_data}/text/train.tsv",
        "data.text_column=text",
        f"data.cache={tmp_path}",
    ]
    folder = run(tmp_path / "runs", "--config", "configs/text_bert.yaml", *SMALL, *options)
    tables = text(folder, "examples/mistakes", "test") + text(folder, "examples/hits", "test")
    assert r"\[CLS\] +" in tables.replace(" -", " +")
    assert "| predicted, true, input" in tables


def test_error_in_a_picture_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("a strange\nname")

    monkeypatch.setattr("callbacks.confusion_matrix.draw_matrix", fail)
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1")
    assert "ConfusionMatrix failed: ValueError: a strange name\n" in capsys.readouterr().out
    assert events(folder, "test").Tags()["images"] == ["pictures/reliability_diagram"]


@pytest.mark.parametrize("convert", [lambda logits: {"logits": logits}, lambda logits: logits.mean()])
def test_model_whose_step_returns_no_logits_has_no_pictures(convert, tmp_path, monkeypatch, capsys):
    step = LitMLP.test_step
    monkeypatch.setattr(LitMLP, "test_step", lambda *arguments: convert(step(*arguments)))
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1")
    assert events(folder, "test").Tags()["images"] == []
    assert sorted(events(folder, "val").Tags()["images"]) == PICTURES
    assert "failed" not in capsys.readouterr().out


def test_error_in_one_of_several_processes_ends_the_run(capsys):
    """The other processes would wait for this one. A single process continues."""
    callback = ConfusionMatrix()
    with callback._report_errors():
        raise ValueError("no room")
    assert "ConfusionMatrix failed: ValueError: no room" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no room"), callback._report_errors(others_wait=True):
        raise ValueError("no room")


def test_histograms_are_written_every_n_steps(tmp_path):
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=2", "callbacks.histograms={every_n_steps: 3}")
    tags = events(folder).Tags()["histograms"]
    assert {"parameters/layers.0.weight", "parameters/layers.0.weight.gradient"} <= set(tags)
    assert [event.step for event in events(folder).Histograms("parameters/layers.0.weight")] == [0, 3]


def test_values_that_are_not_finite_have_no_histogram(monkeypatch):
    network = nn.Linear(2, 2)
    network.weight.data.fill_(float("nan"))
    names = []
    writer = SimpleNamespace(add_histogram=lambda name, *_: names.append(name))
    logger = SimpleNamespace(clock=SimpleNamespace(measure=nullcontext), writer=lambda _: writer)
    monkeypatch.setattr("callbacks.histograms.tensorboard_of", lambda trainer: logger)
    trainer = SimpleNamespace(global_step=0, is_global_zero=True)
    Histograms().on_before_optimizer_step(trainer, SimpleNamespace(network=network), None)
    assert names == ["parameters/bias"]


def test_resumed_run_writes_no_second_graph():
    before, after = ModelGraph(), ModelGraph()
    before._is_written = True
    after.load_state_dict(before.state_dict())
    after.load_state_dict(ModelGraph().state_dict())  # of the best checkpoint, which the test loads
    after.update(SimpleNamespace(normalized=lambda inputs: inputs), torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1))
    after.show(SimpleNamespace(strategy=SingleDeviceStrategy()), None, "val", None, None)  # would need a network
    assert not after.is_due(None)


def test_checkpoints_do_not_depend_on_the_clock(tmp_path, monkeypatch):
    folders = []
    for seconds in (0.0, 1000.0):
        set_clock(monkeypatch, seconds)
        folders.append(run(tmp_path / f"{seconds:.0f}", "--config", IRIS, "trainer.max_epochs=3"))
    pictures = [len(events(folder, "val").Images("pictures/confusion_matrix")) for folder in folders]
    assert pictures == [1, 2]  # the clock decides which validations are shown
    assert differences(*folders) == []


def test_network_that_cannot_be_traced_is_reported_and_trained(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("no way\nat all")

    monkeypatch.setattr("torch.utils.tensorboard.writer.graph", refuse)
    run(tmp_path, "--config", IRIS, "trainer.max_epochs=1")
    assert "ModelGraph failed: RuntimeError: no way at all\n" in capsys.readouterr().out


def test_gradient_norm_is_that_of_the_whole_gradient_before_clipping():
    network, logged = nn.Linear(3, 2), {}
    network(torch.ones(1, 3)).square().sum().backward()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.update(metrics))
    loop = SimpleNamespace(batch_idx=0)
    trainer = SimpleNamespace(
        loggers=[logger], global_step=50, log_every_n_steps=50, current_epoch=0, fit_loop=loop, precision="32"
    )
    module = SimpleNamespace(device=torch.device("cpu"))
    callback = FiniteSteps()
    callback.on_train_start(trainer, module)
    callback.on_before_optimizer_step(trainer, module, optimizer)
    norm = torch.cat([parameter.grad.flatten() for parameter in network.parameters()]).norm()
    assert logged == {"train/gradient_norm": pytest.approx(norm.item())}


def test_pr_curves_equal_those_counted_by_hand(iris):
    """At a threshold of one half, in the test, for each class."""
    from datamodules.iris import Iris

    config = load_config(iris / "config.yaml")
    data = Iris(**config.options("data"))
    data.setup()
    inputs, labels = next(iter(data.test_dataloader()))
    model = LitMLP.load_from_checkpoint(iris / "checkpoints/best.ckpt", map_location="cpu").eval()
    probabilities = model(inputs).softmax(1)
    for i, name in enumerate(model.class_names):
        event = events(iris, "test").Tensors(f"pr_curves/{name}")[-1].tensor_proto
        curves = np.array(event.float_val).reshape(6, 127)
        predicted, true = probabilities[:, i] >= 63 / 126, labels == i
        counts = [predicted & true, predicted & ~true, ~predicted & ~true, ~predicted & true]
        assert curves[:4, 63].tolist() == [int(count.sum()) for count in counts]
        precision = float((predicted & true).sum() / predicted.sum().clamp(min=1))
        assert curves[4, 63] == pytest.approx(precision) or not predicted.any()
    content = events(iris, "test").summary_metadata["pr_curves/setosa"].plugin_data.content
    assert PrCurvePluginData.FromString(content).num_thresholds == 127


def test_number_of_pr_curves_is_limited(small_data, tmp_path):
    options = [f"data.root={small_data}", *SMALL, "callbacks.pr_curves={max_classes: 3}"]
    folder = run(tmp_path / "runs", "--config", "configs/mnist_mlp.yaml", *options)
    assert sum(tag.startswith("pr_curves/") for tag in events(folder, "test").Tags()["tensors"]) == 3
