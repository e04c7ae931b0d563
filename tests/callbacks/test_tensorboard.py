"""What a person finds in TensorBoard, read from the event files of real runs."""

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
from callbacks.evaluation import is_last_validation
from callbacks.finite_steps import FiniteSteps
from callbacks.histograms import Histograms
from callbacks.model_graph import ModelGraph
from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.training.loggers import hparams_plugin, stage_and_tag
from lit_models.mlp import LitMLP
from tests.runs import IRIS, events, run

PICTURES = [f"pictures/{name}" for name in ("class_accuracy", "confusion_matrix", "reliability_diagram")]
SMALL = ["trainer.max_epochs=2", "trainer.limit_train_batches=3"]


@pytest.fixture(scope="module")
def iris(tmp_path_factory) -> Path:
    os.chdir(PROJECT)
    return run(tmp_path_factory.mktemp("iris"), "--config", IRIS, "trainer.max_epochs=5")


@pytest.fixture
def mnist(small_data, tmp_path) -> Path:
    return run(tmp_path / "runs", "--config", "configs/mnist_cnn.yaml", f"data.root={small_data}", *SMALL)


def text(folder: Path, name: str, stage: str = "train") -> str:
    return events(folder, stage).Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_training_and_validation_of_one_metric_share_a_chart(iris):
    tags = {stage: set(events(iris, stage).Tags()["scalars"]) for stage in ("train", "val", "test")}
    quality = {f"metrics/{name}" for name in ("loss", "accuracy", "f1", "calibration_error")}
    assert tags["val"] == tags["test"] == quality
    assert tags["train"] == {
        "metrics/loss", "metrics/accuracy", "training/loss_step", "training/lr", "training/gradient_norm", "training/epoch",
        "speed/samples_per_second", "speed/memory_gigabytes",
        *(f"tested/val_{name}" for name in ("loss", "accuracy", "f1", "calibration_error")),
    }  # fmt: skip
    assert [one.step for one in events(iris, "val").Scalars("metrics/accuracy")] == [2, 5, 8, 11, 14]


def test_a_metric_of_ones_own_has_its_place(iris):
    assert stage_and_tag("val/kappa") == ("val", "metrics/kappa")
    assert stage_and_tag("train/lr") == ("train", "training/lr")
    assert stage_and_tag("lr-Adam") == ("train", "lr-Adam")
    assert stage_and_tag("test_mirrored/accuracy") == ("train", "test_mirrored/accuracy")


def test_hparams_have_every_hyperparameter_and_the_final_metrics(iris):
    content = {name: one.plugin_data.content for name, one in events(iris).summary_metadata.items()}
    session = hparams_plugin(content["_hparams_/session_start_info"]).session_start_info
    config = load_config(iris / "config.yaml")
    assert set(session.hparams) == set(config.flat())
    shown = [
        (one.name.group, one.name.tag)
        for one in hparams_plugin(content["_hparams_/experiment"]).experiment.metric_infos
    ]
    names = ("accuracy", "calibration_error", "f1", "loss")
    assert sorted(shown) == sorted(
        [*(("test", f"metrics/{name}") for name in names), *(("", f"tested/val_{name}") for name in names)]
    )
    for group, tag in shown:
        assert tag in events(iris, group or "train").Tags()["scalars"]


def test_hparams_open_with_what_is_varied(tmp_path):
    """TensorBoard shows five of them without being asked."""
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1", "model.dropout=0.1")
    content = events(folder).summary_metadata["_hparams_/experiment"].plugin_data.content
    first = {one.name for one in hparams_plugin(content).experiment.hparam_infos if one.differs}
    usual = {"data.batch_size", "model.name", "optimizer.lr", "optimizer.name", "seed"}
    assert first == usual | {"trainer.max_epochs", "model.dropout"}


def test_texts_say_what_the_run_was(iris):
    assert "hidden_sizes" in text(iris, "run/config")
    assert "| packages | lightning " in text(iris, "run/environment")
    assert text(iris, "run/command").strip("`\n")
    assert b"metrics/loss" in events(iris).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]


def test_pictures_of_the_last_validation_and_of_the_test(iris):
    for stage in ("val", "test"):
        assert sorted(events(iris, stage).Tags()["images"]) == PICTURES
        assert "pr_curves/virginica" in events(iris, stage).Tags()["tensors"]
    assert [one.step for one in events(iris, "val").Images("pictures/confusion_matrix")] == [
        15
    ]  # one, of the last epoch
    assert events(iris).Graph().node


def test_validations_are_shown_as_often_as_asked_for(tmp_path):
    often = run(tmp_path, "--config", IRIS, "trainer.max_epochs=3", "callbacks.confusion_matrix={every_seconds: 0}")
    assert len(events(often, "val").Images("pictures/confusion_matrix")) == 3
    assert len(events(often, "val").Images("pictures/class_accuracy")) == 1


def test_each_has_an_off_switch(tmp_path):
    names = [
        "class_accuracy",
        "confusion_matrix",
        "gallery",
        "model_graph",
        "pr_curves",
        "projector",
        "reliability_diagram",
    ]
    off = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1", *(f"callbacks.{name}=null" for name in names))
    for stage in ("val", "test"):
        tags = events(off, stage).Tags()
        assert tags["images"] == []
        assert tags["tensors"] == []
    assert events(off).Tags()["graph"] is False
    assert not (off / "test/projector_config.pbtxt").exists()


def test_an_image_run_shows_its_images(mnist):
    assert sorted(events(mnist, "test").Tags()["images"]) == sorted([*PICTURES, "pictures/hits", "pictures/mistakes"])
    assert "pictures/first_filters" in events(mnist, "val").Tags()["images"]
    rows = (mnist / "test/00006/features/metadata.tsv").read_text(encoding="utf-8").splitlines()
    vectors = (mnist / "test/00006/features/tensors.tsv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "true\tpredicted\tright"
    assert len(rows) - 1 == len(vectors) > 50
    assert len(vectors[0].split("\t")) == 128
    with Image.open(mnist / "test/00006/features/sprite.png") as sprite:
        assert sprite.width % 28 == 0


def test_a_text_run_shows_its_texts_with_a_weight_per_token(small_data, tmp_path):
    options = [
        "data.test=null",
        f"data.train={small_data}/text/train.tsv",
        "data.text_column=text",
        f"data.cache={tmp_path}",
    ]
    folder = run(tmp_path / "runs", "--config", "configs/text_bert.yaml", *SMALL, *options)
    shown = text(folder, "examples/mistakes", "test") + text(folder, "examples/hits", "test")
    assert r"\[CLS\] +" in shown.replace(" -", " +")
    assert "| predicted, true, input" in shown


def test_a_picture_that_fails_costs_no_run(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("a strange\nname")

    monkeypatch.setattr("callbacks.confusion_matrix.draw", broken)
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1")
    assert "ConfusionMatrix shows nothing: ValueError: a strange name\n" in capsys.readouterr().out
    assert events(folder, "test").Tags()["images"] == [one for one in PICTURES if "confusion" not in one]


def test_a_model_whose_steps_give_no_logits_has_no_pictures(tmp_path, monkeypatch):
    step = LitMLP.test_step
    monkeypatch.setattr(LitMLP, "test_step", lambda *arguments: {"logits": step(*arguments)})
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1")
    assert events(folder, "test").Tags()["images"] == []
    assert sorted(events(folder, "val").Tags()["images"]) == PICTURES


def test_what_takes_long_to_draw_is_drawn_less_often(monkeypatch):
    callback, now = ConfusionMatrix(every_seconds=10.0), 100.0
    monkeypatch.setattr("callbacks.evaluation.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("callbacks.evaluation.is_last_validation", lambda trainer: False)
    trainer = SimpleNamespace(sanity_checking=False, strategy=SimpleNamespace(broadcast=lambda due: due))
    callback._shown, callback._took = 89.0, 0.2
    assert not callback._is_due(trainer)
    callback._took = 0.1
    assert callback._is_due(trainer)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["trainer.max_epochs=3"], 3),
        (["trainer.max_epochs=5", "trainer.check_val_every_n_epoch=2"], 2),
        (["trainer.max_epochs=1", "trainer.val_check_interval=1", "data.batch_size=10"], 10),
        (["trainer.max_epochs=2", "trainer.val_check_interval=4", "data.batch_size=10"], 4),
        (["trainer.max_epochs=null", "trainer.max_steps=7"], 2),
        (["trainer.max_steps=7", "trainer.val_check_interval=2", "trainer.accumulate_grad_batches=2"], 4),
        (["trainer.max_steps=7", "trainer.val_check_interval=2", "data.batch_size=10"], 3),
        (["trainer.max_steps=7", "trainer.val_check_interval=5", "trainer.check_val_every_n_epoch=null"], 1),
        (["trainer.max_epochs=3", "trainer.val_check_interval=4", "trainer.check_val_every_n_epoch=null"], 2),
    ],
)
def test_the_last_validation_is_always_looked_at(options, count, tmp_path, monkeypatch):
    """Batches of 32 are 3 an epoch, of 10 are 10."""
    last = []

    def noted(trainer):
        last.append(is_last_validation(trainer))
        return last[-1]

    monkeypatch.setattr("callbacks.evaluation.is_last_validation", noted)
    others = ("confusion_matrix", "reliability_diagram", "gallery", "first_filters", "pr_curves", "model_graph")
    off = [f"callbacks.{name}=null" for name in others]
    folder = run(tmp_path, "--config", IRIS, "schedule.name=constant", *off, *options)
    assert last == [False] * (count - 1) + [True]
    assert len(events(folder, "val").Images("pictures/class_accuracy")) == 1


def test_a_picture_that_fails_in_one_of_two_processes_costs_no_run(capsys):
    one = ConfusionMatrix()
    with one._told():
        raise ValueError("no room")
    assert "ConfusionMatrix shows nothing: ValueError: no room" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no room"), one._told(together=True):
        raise ValueError("no room")


def test_histograms_on_request(tmp_path):
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=2", "callbacks.histograms={every_n_steps: 3}")
    tags = events(folder).Tags()["histograms"]
    assert {"parameters/layers.0.weight", "parameters/layers.0.weight.gradient"} <= set(tags)
    assert [one.step for one in events(folder).Histograms("parameters/layers.0.weight")] == [0, 3]


def test_what_is_not_finite_has_no_histogram(monkeypatch):
    monkeypatch.setattr("callbacks.histograms.RunLogger", SimpleNamespace)
    network = nn.Linear(2, 2)
    network.weight.data.fill_(float("nan"))
    shown = []
    writer = SimpleNamespace(add_histogram=lambda name, *_: shown.append(name))
    logger = SimpleNamespace(clock=SimpleNamespace(part=nullcontext), writer=lambda _: writer)
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, logger=logger)
    Histograms().on_before_optimizer_step(trainer, SimpleNamespace(network=network), None)
    assert shown == ["parameters/bias"]


def test_one_graph_is_enough_also_after_a_resumption():
    before, after = ModelGraph(), ModelGraph()
    before._done = True
    after.load_state_dict(before.state_dict())
    after.load_state_dict(ModelGraph().state_dict())  # of the best checkpoint, which the test loads
    after.see(SimpleNamespace(normalized=lambda inputs: inputs), torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1))
    after.show(SimpleNamespace(strategy=SingleDeviceStrategy()), None, "val", None, None)  # it would look for a network


def test_a_network_that_cannot_be_traced_is_told_and_trained(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("no way\nat all")

    monkeypatch.setattr("torch.utils.tensorboard.writer.graph", refuse)
    run(tmp_path, "--config", IRIS, "trainer.max_epochs=1")
    assert "no graph of the network in TensorBoard: RuntimeError no way\n" in capsys.readouterr().out


def test_the_norm_is_that_of_the_whole_gradient_before_clipping():
    network, logged = nn.Linear(3, 2), {}
    network(torch.ones(1, 3)).square().sum().backward()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.update(metrics))
    loop = SimpleNamespace(batch_idx=0)
    trainer = SimpleNamespace(
        logger=logger, global_step=50, log_every_n_steps=50, current_epoch=0, fit_loop=loop, precision="32"
    )
    module = SimpleNamespace(device=torch.device("cpu"))
    callback = FiniteSteps()
    callback.on_train_start(trainer, module)
    callback.on_before_optimizer_step(trainer, module, optimizer)
    whole = torch.cat([one.grad.flatten() for one in network.parameters()]).norm()
    assert logged == {"train/gradient_norm": pytest.approx(whole.item())}


def test_pr_curves_are_those_of_counting_by_hand(iris):
    """At a threshold of one half of the last validation, class by class."""
    from datamodules.iris import Iris

    config = load_config(iris / "config.yaml")
    data = Iris(**config.options("data"))
    data.setup()
    inputs, labels = next(iter(data.test_dataloader()))
    model = LitMLP.load_from_checkpoint(iris / "checkpoints/best.ckpt", map_location="cpu").eval()
    sure = model(inputs).softmax(1)
    for i, name in enumerate(model.hparams["class_names"]):
        event = events(iris, "test").Tensors(f"pr_curves/{name}")[-1].tensor_proto
        counts = np.array(event.float_val).reshape(6, 127)
        yes, true = sure[:, i] >= 63 / 126, labels == i
        by_hand = [(yes & true).sum(), (yes & ~true).sum(), (~yes & ~true).sum(), (~yes & true).sum()]
        assert counts[:4, 63].tolist() == [int(one) for one in by_hand]
        assert counts[4, 63] == pytest.approx(float((yes & true).sum() / yes.sum().clamp(min=1))) or not yes.any()
    content = events(iris, "test").summary_metadata["pr_curves/setosa"].plugin_data.content
    assert PrCurvePluginData.FromString(content).num_thresholds == 127


def test_of_many_classes_the_worst_have_curves(small_data, tmp_path):
    options = [f"data.root={small_data}", *SMALL, "callbacks.pr_curves={num_classes: 3}"]
    folder = run(tmp_path / "runs", "--config", "configs/mnist_mlp.yaml", *options)
    assert sum(tag.startswith("pr_curves/") for tag in events(folder, "test").Tags()["tensors"]) == 3
