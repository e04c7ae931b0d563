"""A student learns from the probabilities of a trained model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import train
from datamodules.iris import Iris
from datamodules.mnist import MNIST
from datamodules.text import Text
from engine.contracts import OptionError
from engine.training import checkpoint_file
from engine.training.same_data import check_same_data
from lit_models.bert import LitBERT
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP
from lit_models.parts.distillation import Teacher, distillation_loss
from tests.contracts import trainer
from tests.exactness import differences, signalled, start
from tests.files import write_texts
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

SHORT = ["trainer.max_epochs=4", *WITHOUT_PICTURES]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A short run of Iris."""
    return run(tmp_path_factory.mktemp("teacher"), "--config", IRIS, "trainer.max_epochs=20", *WITHOUT_PICTURES)


def test_the_divergence_is_that_of_hinton():
    generator = torch.Generator().manual_seed(0)
    student, taught = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    probabilities = (taught / 4).softmax(1)
    expected = 16 * (probabilities * (probabilities.log() - (student / 4).log_softmax(1))).sum(1).mean()
    assert distillation_loss(student, taught, 4.0).item() == pytest.approx(expected.item(), rel=1e-12)
    assert distillation_loss(taught, taught, 4.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_members", [1, 3])
def test_the_training_loss_is_a_weighted_mean(teacher, tmp_path, weight, num_members):
    data = Iris()
    data.setup()
    options = {"teacher": str(teacher), "teacher_weight": weight, "teacher_temperature": 2.0}
    names = data.spec.class_names
    model = LitMLP((4,), 3, class_names=names, hidden_sizes=[5], num_members=num_members, **options)
    model.set_normalization(data.mean, data.std)
    model.hparams["optimizer"] = {"name": "sgd", "lr": 1e-12}
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    fit.fit(model, data)
    (inputs, labels, taught), *_ = fit.train_dataloader
    logits = model.network(model.normalized(inputs)).view(len(labels), num_members, 3)
    expected = torch.stack([
        (1 - weight) * F.cross_entropy(logits[:, i], labels) + weight * distillation_loss(logits[:, i], taught, 2.0)
        for i in range(num_members)
    ]).mean()  # fmt: skip
    assert fit.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_logits_are_kept_if_the_data_is_not_augmented(teacher, tmp_path):
    """Each sample gets the logits of its own row, also in a shuffled epoch."""
    data, model = Iris(), Teacher.load(str(teacher))
    calls = []
    data.setup()
    kept = data.teacher_logits(lambda inputs: calls.append(len(inputs)) or model(inputs))
    loader = data.train_dataloader()
    loader.teacher_logits = kept
    loader.batch_sampler.set_epoch(3)
    assert calls == [108]
    for inputs, _, taught in loader:
        torch.testing.assert_close(taught, model(inputs))


def test_augmented_batches_go_through_the_teacher(small_data):
    plain, augmented = MNIST(root=str(small_data)), MNIST(root=str(small_data), augment_images=True)
    for data in (plain, augmented):
        data.setup()
    ones = torch.ones(1, 10)
    assert plain.teacher_logits(lambda inputs: ones.expand(len(inputs), -1)).shape == (plain.num_samples("train"), 10)
    assert augmented.teacher_logits(lambda inputs: pytest.fail("it was called")) is None


class Noisy(MNIST):
    def augment(self, inputs, context):
        return inputs + 1


def test_an_own_augmentation_is_used(small_data):
    """Also if the option of the base class is off. The logits of a teacher are then not kept."""
    plain, noisy = (kind(root=str(small_data), augment_images=False) for kind in (MNIST, Noisy))
    for data in (plain, noisy):
        data.setup()
    assert (plain.is_augmented, noisy.is_augmented) == (False, True)
    for (inputs, *_), (expected, *_) in zip(noisy.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.equal(inputs, expected + 1)
    assert noisy.teacher_logits(lambda inputs: pytest.fail("it was called")) is None


def test_the_logits_are_kept_by_reloaded_batches(teacher, tmp_path, monkeypatch):
    sizes = []
    forward = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, inputs: sizes.append(len(inputs)) or forward(self, inputs))
    argv = ["--config", IRIS, f"model.teacher={teacher}", "trainer.reload_dataloaders_every_n_epochs=1", *SHORT]
    run(tmp_path, *argv)
    assert sizes == [96]


def test_another_family_teaches(small_data, tmp_path, monkeypatch):
    """A CNN teaches an MLP, with augmentation: both see the same images."""
    data = [f"data.root={small_data}", "data.batch_size=32", *SHORT]
    cnn = run(tmp_path / "cnn", "--config", "configs/mnist_cnn.yaml", "model.widths=[4, 8]", *data)
    seen: list[torch.Tensor] = []
    forward = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, inputs: seen.append(inputs) or forward(self, inputs))
    step = LitMLP.training_step
    taken: list[torch.Tensor] = []
    monkeypatch.setattr(LitMLP, "training_step", lambda self, batch, i: taken.append(batch[0]) or step(self, batch, i))
    argv = ["--config", "configs/mnist_mlp.yaml", f"model.teacher={cnn}", "data.augment_images=true", *data]
    run(tmp_path / "mlp", *argv)
    assert len(seen) == len(taken) > 0
    assert all(map(torch.equal, seen, taken))


def test_a_checkpoint_does_not_contain_the_teacher(teacher, tmp_path, monkeypatch):
    lost = tmp_path / "teacher"
    shutil.copytree(teacher, lost)
    argv = ["--config", IRIS, "model.hidden_sizes=[4]", *SHORT]
    student = run(tmp_path / "student", *argv, f"model.teacher={lost}")
    plain = run(tmp_path / "plain", *argv)
    checkpoints = [checkpoint_file.read(folder / "checkpoints/best.ckpt") for folder in (student, plain)]
    assert checkpoints[0]["state_dict"].keys() == checkpoints[1]["state_dict"].keys()
    assert len(json.loads((student / "environment.json").read_text(encoding="utf-8"))["teacher"]) == 64
    shutil.rmtree(lost)
    model = LitMLP.load_from_checkpoint(student / "checkpoints/best.ckpt")
    assert model.teacher is None
    assert figures(student)["val/loss"] != figures(plain)["val/loss"]
    with pytest.raises(OptionError, match=r"model\.teacher: .* matches no run"):
        Teacher.load(str(lost))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_a_student_resumes_exactly(teacher, tmp_path, monkeypatch, precision):
    argv = ["--config", IRIS, f"model.teacher={teacher}", "model.dropout=0.1", f"trainer.precision={precision}", *SHORT]
    whole = run(tmp_path / "whole", *argv)
    with signalled(monkeypatch, lambda trainer: trainer.training and trainer.global_step == 5):
        code, folder = start(tmp_path / "stopped", *argv)
    assert code == 143
    assert train.main(["--resume", str(folder)]) == 0
    assert differences(whole, folder) == []


def test_a_name_is_found_below_the_root_of_the_runs(teacher, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(teacher, root / "iris_mlp/first")
    argv = ["--config", IRIS, "model.teacher=iris_mlp/first", f"run.root={root}", "run.name=second", *SHORT]
    assert train.main(argv) == 0
    assert f"teacher: {root}/iris_mlp/first" in (root / "iris_mlp/second/config.yaml").read_text(encoding="utf-8")


def refusal(capsys, *argv: str) -> str:
    assert train.main([*argv]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


def test_wrong_teachers(teacher, small_data, tmp_path, capsys):
    root = f"run.root={tmp_path}"
    text = refusal(capsys, "--config", IRIS, "model.teacher=nothing", root)
    assert text == (
        f"error: command line: model.teacher: nothing: matches no run below {tmp_path}; python runs.py shows all\n"
    )
    argv = ["--config", "configs/mnist_mlp.yaml", f"data.root={small_data}", f"model.teacher={teacher}", root]
    assert "model.teacher: the classes are setosa, versicolor, virginica in " in refusal(capsys, *argv)


def test_the_data_of_a_teacher_is_checked(teacher):
    same = dict(Teacher.load(str(teacher)).model.hparams)
    check_same_data("model.teacher", teacher, same, {**same, "input_shape": (4,)})
    for changes in ({"num_classes": 2}, {"class_names": ["x", "y", "z"]}, {"columns": {"a": []}}, {"vocab_size": 9}):
        with pytest.raises(OptionError, match=r"^model\.teacher: .* this run"):
            check_same_data("model.teacher", teacher, same, {**same, **changes})
    with pytest.raises(OptionError, match="takes at most None tokens"):
        check_same_data("model.teacher", teacher, same, {**same, "max_length": 8})


@pytest.mark.parametrize("swapped", [False, True])
def test_a_bert_and_a_cnn_teach_each_other(swapped):
    models = [LitBERT((1, 28, 28), 10, hidden_size=8, num_layers=1, num_heads=2), LitCNN((1, 28, 28), 10, widths=[4])]
    ours, theirs = reversed(models) if swapped else models
    check_same_data("model.teacher", Path("run"), theirs.hparams, ours.hparams)


def test_a_teacher_may_take_longer_texts():
    ours, theirs = {"max_length": 64}, {"max_length": 128}
    check_same_data("model.teacher", Path("run"), theirs, ours)
    with pytest.raises(OptionError, match=r"^model\.teacher: run takes at most 64 tokens; set data\.max_length=64"):
        check_same_data("model.teacher", Path("run"), ours, theirs)
    with pytest.raises(OptionError, match="takes at most 128 tokens"):
        check_same_data("model.start_from", Path("run"), theirs, ours)


def test_the_order_of_many_classes_is_compared():
    names = [f"class {i}" for i in range(10)]
    with pytest.raises(OptionError, match="have another order, or other names"):
        check_same_data(
            "model.teacher", Path("run"), {"class_names": [*names[:8], *names[:7:-1]]}, {"class_names": names}
        )


def test_the_tokenizer_of_a_teacher_is_compared(tmp_path):
    write_texts(tmp_path / "first.tsv", 60)
    header, *lines = (tmp_path / "first.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "other.tsv").write_text(header + "".join(lines).replace("e", "z"), encoding="utf-8")
    first, other = (
        Text(train=str(tmp_path / name), cache=str(tmp_path / "cache")) for name in ("first.tsv", "other.tsv")
    )
    for data in (first, other):
        data.setup()
    first.save(tmp_path)
    assert first.has_tokenizer_of(tmp_path)
    assert not other.has_tokenizer_of(tmp_path)
