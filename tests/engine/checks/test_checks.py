"""``--check``: correct runs pass, and every mistake is found."""

import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import train
from datamodules.iris import Iris
from datamodules.mnist import MNIST
from datamodules.parts.splits import stratified_split
from engine.checks import data_checks, model_checks, preflight
from engine.checks.device_checks import describe_device
from engine.checks.model_checks import check_gradients, check_initial_loss, check_model, check_overfitting
from engine.checks.preflight import _num_batches, _num_validations
from engine.terminal import count_of
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP
from tests import files
from tests.exactness import signalled
from tests.runs import IRIS

Results = dict[str, list[tuple[str, str]]]  # title -> level and text
SHORT = ["--config", IRIS, "trainer.max_epochs=2"]


def token_rows(*tensors: torch.Tensor) -> Any:
    from datamodules.parts.tokens import TokenRows

    return TokenRows(*tensors)


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the time limits, so that no result depends on the speed of the machine. The limits of steps remain."""
    for name in ("OVERFIT_SECONDS", "RATE_SECONDS"):
        monkeypatch.setattr(model_checks, name, 1000.0)


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Results]:
    """Runs ``--check`` with a command line, and returns its results. It must leave no files, and the exit code must fit."""

    def checked(*argv: str) -> Results:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        before = set(tmp_path.rglob("*"))
        code = train.main([*argv, f"run.root={tmp_path / 'runs'}", "--check"])
        assert {path for path in set(tmp_path.rglob("*")) - before if "cache" not in str(path)} == set()
        printed = capsys.readouterr()
        found: Results = {}
        for line in printed.out.splitlines():
            assert line[:8].strip() in ("ok", "note", "warning", "WRONG"), line
            found.setdefault(line[9:30].strip(), []).append((line[:8].strip(), line[30:]))
        num_wrong = sum(level == "WRONG" for results in found.values() for level, _ in results)
        num_results = sum(map(len, found.values()))
        error = f"error: --check: {num_wrong} of {num_results} checks are WRONG; fix them first\n" if num_wrong else ""
        assert (code, printed.err) == (2 if num_wrong else 0, error)
        return found

    return checked


def levels(results: Results) -> set[str]:
    return {level for lines in results.values() for level, _ in lines}


def wrong(results: Results) -> set[str]:
    return {title for title, lines in results.items() if "WRONG" in [level for level, _ in lines]}


def loads(monkeypatch: pytest.MonkeyPatch, change: Callable, datamodule: type = Iris) -> None:
    """Let `change` replace the training and the test set that a datamodule loads. A fifth becomes a missing test set."""
    load = datamodule.load

    def changed(self):
        (inputs, labels), test = load(self)
        if test is not None:
            return change((inputs, labels), test)
        first, second = stratified_split(labels, 0.2, self.split_seed)
        return change((inputs[first], labels[first]), (inputs[second], labels[second]))

    monkeypatch.setattr(datamodule, "load", changed)


def makes(monkeypatch: pytest.MonkeyPatch, change: Callable) -> None:
    """Let `change` modify the model after it has been made."""
    make_model = train.make_model

    def changed(config, spec):
        model = make_model(config, spec)
        change(model)
        return model

    monkeypatch.setattr(train, "make_model", changed)


def test_iris_has_no_problems(check):
    results = check(*SHORT)
    assert list(results) == [
        "class balance", "labels fit inputs", "duplicate rows", "device", "input scale", "initial loss", "gradients",
        "overfits one batch", "learning rate", "expected time",
    ]  # fmt: skip
    assert levels(results) == {"ok", "note"}
    assert results["gradients"] == [("ok", "all 6 parameters get a gradient")]
    threads = count_of(torch.get_num_threads(), "thread")
    assert results["device"] == [("note", f"CPU with {threads}, precision 32-true, fused optimizer Adam")]
    assert "for the whole training; memory" in results["expected time"][0][1]


def test_the_device_line_names_what_is_not_in_use():
    network = LitCNN((1, 28, 28), 10, widths=[8])
    for is_last, fused in ((True, True), (False, False)):
        network.to(memory_format=torch.channels_last if is_last else torch.contiguous_format)
        text = describe_device(
            torch.device("cpu"), "32-true", network, [torch.optim.SGD(network.parameters(), fused=fused)]
        )
        assert text.endswith(
            f"{'' if fused else 'not '}fused optimizer SGD, convolutions {'' if is_last else 'not '}channels-last"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_mlp", "cifar10_cnn", "text_bert", "sst2_bert"])
def test_other_models_and_data_have_no_problems(name, check, small_data, tmp_path):
    options = files.options("text" if "bert" in name else "mnist", small_data)
    more = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    if name == "cifar10_cnn":
        more += ["model.widths=[16, 32]", "model.convs_per_stage=1", "data.batch_size=64"]
    if "bert" in name:
        more += ["data.dataset=null", "data.test=null", "data.text_column=text", "data.val_fraction=0.1"]
    if name == "sst2_bert":
        more += [f"model.pretrained={files.minilm()}", "model.freeze_embeddings=true", "model.freeze_layers=5"]
        more += ["data.batch_size=8"]
    results = check(
        "--config", f"configs/{name}.yaml", *more, *(f"data.{key}={value}" for key, value in options.items())
    )
    assert levels(results) == {"ok", "note"}
    if name == "sst2_bert":
        assert results["gradients"][0][1] == "all 18 parameters get a gradient (85 are frozen)"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_labels_of_other_rows(seed, check, monkeypatch, small_data):
    def shuffled(labelled, test):
        inputs, labels = labelled
        return (inputs, labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]), test

    loads(monkeypatch, shuffled)
    loads(monkeypatch, shuffled, MNIST)
    mnist = ["--config", "configs/mnist_mlp.yaml", f"data.root={small_data}", "trainer.max_epochs=1"]
    for results in (check(*SHORT), check(*mnist)):
        assert wrong(results) <= {"labels fit inputs"}
        level, text = results["labels fit inputs"][0]
        assert level == ("WRONG" if "do not depend on" in text else "warning")  # both are possible with so few rows
        assert "by chance: " in text
        assert "in the same order" in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["features", pytest.param("tokens", marks=pytest.mark.needs("text"))])
@pytest.mark.parametrize("fraction", [0.5, 0.95])
def test_labels_of_other_rows_are_distinguished_from_correct_labels(kind, fraction, tmp_path):
    """Also if one class has nearly all rows, so that predicting only this class is right for most rows."""
    true, shuffled = [], []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        labels = (torch.rand(2000, generator=generator) > fraction).long()
        noise = torch.rand(2000, 8, generator=generator)
        inputs = noise + 0.5 * labels[:, None]
        if kind == "tokens":
            ids = (10 * inputs).int().flatten()  # eight tokens a row
            inputs = token_rows(ids, torch.arange(2000) * 8, torch.full((2000,), 8))
        true.append(data_checks.check_labels(inputs, labels)[0])
        shuffled.append(data_checks.check_labels(inputs, labels[torch.randperm(2000, generator=generator)])[0])
    assert set(true) == {"ok"}
    assert "ok" not in shuffled
    assert shuffled.count("WRONG") >= 18


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "slope", "fraction"),
    [(2000, 0.5, 0.5), (2000, 2.0, 0.03), (60, 4.0, 0.5), (120, 1.8, 0.5)],  # best accuracies of 60, 97, 87 and 77 %
)
def test_labels_that_are_hard_to_predict_are_not_wrong(rows, slope, fraction):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(rows, 6, generator=generator)
        threshold = torch.logit(torch.rand(rows, generator=generator)) + torch.logit(torch.tensor(1 - fraction))
        assert data_checks.check_labels(inputs, (slope * inputs[:, 0] > threshold).long())[0] != "WRONG"


@pytest.mark.needs("text")
def test_labels_that_depend_on_both_texts_of_a_pair_are_not_wrong():
    first = torch.randint(0, 50, (2000, 4), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(2000) % 2
    second = torch.where(labels[:, None] == 1, first, first.roll(1, 0))  # from the same row or from another one
    ids, starts = torch.cat([first, second], 1).int().flatten(), torch.arange(2000) * 8
    rows = token_rows(ids, starts, torch.full((2000,), 8), torch.full((2000,), 4))
    level, _, text = data_checks.check_labels(rows, labels)
    assert level == "note"
    assert "does not compare the two texts of a pair" in text


def test_one_label_for_all(check, monkeypatch):
    loads(monkeypatch, lambda labelled, test: ((labelled[0], torch.zeros_like(labelled[1])), test))
    results = check(*SHORT)
    assert wrong(results) == {"class balance"}
    assert results["class balance"][0][1] == "all 96 rows of train are 'setosa'; check how labels are read"
    assert results["labels fit inputs"][0][0] == results["overfits one batch"][0][0] == "note"


def test_a_class_that_is_not_in_train(check, monkeypatch):
    def without(labelled, test):
        return tuple(tensor[labelled[1] != 1] for tensor in labelled), test

    loads(monkeypatch, without)
    results = check(*SHORT)
    assert wrong(results) == {"class balance"}
    assert "train has no row of 'versicolor'; remove" in results["class balance"][0][1]


def test_a_class_that_is_rare(check, monkeypatch):
    def fewer(labelled, test):
        few = torch.cat([(labelled[1] < 2).nonzero().flatten(), (labelled[1] == 2).nonzero().flatten()[:2]])
        return tuple(tensor[few] for tensor in labelled), test

    loads(monkeypatch, fewer)
    results = check(*SHORT)
    (imbalance, missing) = results["class balance"]
    assert imbalance == ("warning", imbalance[1])
    assert "a ratio of 16; model.class_weights='[0.69, 0.69, 11]' compensates for it" in imbalance[1]
    assert missing == ("warning", "val has no row of 'virginica'; raise data.val_fraction")


@pytest.mark.parametrize("seed", range(2, 7))
def test_the_equal_rows_of_iris_are_not_wrong(seed, check):
    """Rows 102 and 143 are equal. If one of them is in a split of 30 rows, the split shares more than 1 % of its rows."""
    assert wrong(check(*SHORT, f"data.split_seed={seed}")) == set()


@pytest.mark.parametrize("copies", [0, 6])
def test_rows_of_the_test_that_are_in_train(copies, check, monkeypatch):
    def copied(labelled, test):
        return labelled, tuple(torch.cat([old, new[:copies]]) for old, new in zip(test, labelled, strict=True))

    loads(monkeypatch, copied)
    results = check(*SHORT)["duplicate rows"]
    assert results[0] == ("ok", "no row of val is in train")
    if copies:
        assert results[1][0] == "WRONG"
        assert results[1][1].startswith(
            "6 of 36 rows of test are also in train or val (row 30 (from 0) of test equals row 0 (from 0) of the training"
        )
        assert results[2:] == []
    else:
        assert results[1:] == [("ok", "no row of test is in train or val")]


def test_few_shared_rows_and_other_labels_are_noted():
    inputs, labels = torch.arange(2000.0)[:, None], torch.zeros(2000, dtype=torch.int64)
    train = torch.cat([inputs, inputs[:3]]), torch.cat([labels, labels[:2], labels[:1] + 1])
    val = inputs[:100] + 1998.5, labels[:100]
    test = torch.cat([inputs[:998] + 5000, inputs[5:6], val[0][7:8]]), labels[:1000]
    assert list(data_checks.check_duplicates({"train": train, "test": test, "val": val})) == [
        ("ok", "duplicate rows", "no row of val is in train"),
        (
            "note",
            "duplicate rows",
            "2 of 1,000 rows of test are also in train or val (row 998 (from 0) of test equals row 5 (from 0) of train)",
        ),
        (
            "note",
            "duplicate rows",
            "1 of 2,003 rows of train have the same inputs as an earlier row, but another label",
        ),
    ]
    crowded = {"train": train, "val": (inputs[:100], labels[:100]), "test": (val[0][:100], labels[:100] + 1)}
    assert [result.level for result in data_checks.check_duplicates(crowded)] == ["warning", "ok", "note"]
    crowded["test"] = crowded["val"]
    assert [result.level for result in data_checks.check_duplicates(crowded)] == ["warning", "WRONG", "note"]


@pytest.mark.needs("text")
def test_token_rows_are_equal_only_if_all_tokens_and_the_second_start_are_equal():
    def rows(ids, second):
        starts, lengths = torch.tensor([0, 2]), torch.tensor([2, 2])
        return token_rows(torch.tensor(ids, dtype=torch.int32), starts, lengths, torch.tensor(second))

    labels = torch.tensor([0, 1])
    splits = {
        "train": rows([1, 2, 3, 4], [1, 1]),
        "val": rows([1, 3, 1, 2], [1, 0]),
        "test": rows([3, 4, 9, 9], [1, 1]),
    }
    found = list(data_checks.check_duplicates({split: (inputs, labels) for split, inputs in splits.items()}))
    assert [result.level for result in found] == ["ok", "warning"]
    assert (
        "1 of 2 rows of test are also in train or val (row 0 (from 0) of test equals row 1 (from 0) of train); remove them"
        in found[1][2]
    )


def test_too_few_rows_to_judge():
    assert data_checks.check_labels(torch.randn(49, 3), torch.arange(49) % 2) == (
        "note", "labels fit inputs", "49 rows of train are too few to judge",
    )  # fmt: skip


def test_large_images_are_averaged_before_they_are_compared():
    """The difference between the classes is smaller than the noise of the pixels, but larger than that of their averages."""
    labels = torch.arange(100) % 2
    images = torch.randint(0, 250, (100, 3, 200, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[labels == 1] += 4
    assert data_checks.check_labels(images, labels)[2].startswith(
        "accuracy of nearest neighbours: 100% of 50 rows of train"
    )


def test_a_parameter_without_a_gradient(check, monkeypatch):
    def more(model):
        model.network.unused = nn.Linear(3, 3)

    makes(monkeypatch, more)
    results = check(*SHORT)
    assert wrong(results) == {"gradients"}
    assert "no gradient for 2 of 8 parameters: unused.weight, unused.bias; use them" in results["gradients"][0][1]


def test_a_parameter_behind_zeros_gets_its_gradient_after_a_step(check, monkeypatch):
    def zeroed(model):
        nn.init.zeros_(model.network.layers[-1].weight)

    makes(monkeypatch, zeroed)
    assert levels(check(*SHORT)) == {"ok", "note"}


def test_batches_of_one_sample_are_joined(check):
    results = check(*SHORT, "data.batch_size=1")
    assert results["overfits one batch"][0][0] == "ok"
    assert "(16 samples)" in results["overfits one batch"][0][1]


@pytest.mark.slow
def test_a_network_that_cannot_overfit_contradicting_samples_is_not_wrong():
    """A linear model of two binary features that make labels likely, but not certain."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        inputs = torch.randint(0, 2, (32, 2), generator=generator).float()
        labels = (torch.rand(32, generator=generator) < 0.2 + 0.3 * inputs.sum(1)).long()
        assert check_overfitting(LitMLP((2,), 2), (inputs, labels))[0] in ("ok", "note")
        inputs = torch.randn(32, 4, generator=generator)
        labels = (torch.rand(32, generator=generator) < inputs[:, 0].sigmoid()).long()
        assert check_overfitting(LitMLP((4,), 2, hidden_sizes=[]), (inputs, labels))[0] in ("ok", "warning")


def test_a_network_whose_outputs_do_not_depend_on_its_inputs(check, monkeypatch):
    monkeypatch.setattr(LitMLP, "normalized", lambda self, inputs: torch.zeros_like(inputs))
    results = check(*SHORT)
    assert wrong(results) == {"gradients", "overfits one batch"}
    assert results["input scale"][0][0] == "warning"
    assert "do not seem to depend on the inputs" in results["overfits one batch"][0][1]


def test_a_network_whose_loss_does_not_depend_on_its_parameters(check, monkeypatch):
    forward = LitMLP.forward
    monkeypatch.setattr(LitMLP, "forward", lambda self, inputs: forward(self, inputs).detach())
    results = check(*SHORT)
    assert wrong(results) == {"gradients", "overfits one batch", "first steps"}
    assert "the loss does not depend on any parameter; look for .detach()" in results["gradients"][0][1]


def test_a_gradient_that_is_not_finite():
    model = LitMLP((4,), 3)
    model.network.layers[0].register_forward_hook(lambda _, __, outputs: (0 * outputs).sqrt() + outputs)
    level, _, text = check_gradients(model, (torch.randn(8, 4), torch.arange(8) % 3))
    assert level == "WRONG"
    assert "not finite for 2 of 4 parameters: layers.0.weight, layers.0.bias; look for" in text


def test_an_initial_loss_far_from_chance(check, monkeypatch):
    makes(monkeypatch, lambda model: model.network.layers[-1].weight.data.mul_(100))
    results = check(*SHORT)
    assert wrong(results) == {"initial loss"}
    assert "by chance: ln 3 = 1.10; initialize the last layer with smaller weights" in results["initial loss"][0][1]


def test_a_model_that_is_already_trained_on_the_classes():
    model = LitMLP((3,), 3, hidden_sizes=[])
    model.network.layers[0].weight.data = 10 * torch.eye(3)
    level, _, text = check_initial_loss(model, [(torch.eye(3), torch.arange(3))])
    assert level == "note"
    assert "trained on these classes already" in text


@pytest.mark.parametrize(
    ("activation", "levels"),
    [
        (lambda logits: logits.softmax(1), ["WRONG"]),
        (lambda logits: (5 * logits).softmax(1).bfloat16(), ["WRONG"]),
        (torch.sigmoid, ["warning"]),
        (lambda logits: logits.log_softmax(1), []),  # its softmax has the same loss
        (lambda logits: logits.tanh(), []),
        (lambda logits: 0 * logits, []),
        (lambda logits: logits, []),
    ],
)
def test_probabilities_instead_of_logits(activation, levels):
    torch.manual_seed(0)
    model = LitMLP((4,), 3)
    model.network.register_forward_hook(lambda _, __, logits: activation(logits))
    results = list(check_model(model, None, [(torch.randn(64, 4), torch.arange(64) % 3)]))
    found = [result for result in results if result.title == "outputs"]
    assert [result.level for result in found] == levels
    assert all("return logits, because the loss applies a softmax itself" in result.text for result in found)
    assert "WRONG" not in levels or len(results) == 2  # the other is the scale of the inputs


def test_a_network_that_is_too_slow_to_judge_is_not_wrong(check, monkeypatch):
    for name in ("OVERFIT_SECONDS", "RATE_SECONDS"):
        monkeypatch.setattr(model_checks, name, 0.0)
    results = check(*SHORT)
    for title in ("overfits one batch", "learning rate"):
        ((level, text),) = results[title]
        assert level == "note"
        assert "in 1 step" in text
        assert text.endswith("; too few steps within the time limit to judge")


def test_inputs_that_are_not_scaled(check, small_data):
    options = [f"data.root={small_data}", "data.normalize=false", "trainer.max_epochs=1"]
    results = check("--config", "configs/mnist_mlp.yaml", *options)
    assert results["input scale"][0][0] == "warning"
    assert "data.normalize=true does it" in results["input scale"][0][1]


def test_a_rate_that_is_too_high(check):
    results = check(*SHORT, "optimizer.lr=100")
    assert levels(results) == {"ok", "note", "warning"}
    assert results["learning rate"][0][0] == "warning"
    assert "the loss explodes: divide optimizer.lr by 10" in results["learning rate"][0][1]


def test_a_rate_that_is_too_low(check):
    level, text = check(*SHORT, "optimizer.lr=1e-8")["learning rate"][0]
    assert level == "warning"
    assert "the loss hardly changes: multiply optimizer.lr by 10" in text


def test_a_rate_that_diverges_at_once(check):
    results = check(*SHORT, "optimizer={name: sgd, lr: 1.0e+38}")
    assert wrong(results) == {"first steps"}
    assert "diverged: " in results["first steps"][0][1]
    assert results["learning rate"][0][0] == "warning"


def test_a_frozen_network_is_not_wrong():
    inputs, labels = torch.randn(32, 4), torch.arange(32) % 3
    model = LitMLP((4,), 3, hidden_sizes=[64, 1])
    for parameter in model.network.layers[:3].parameters():
        parameter.requires_grad_(False)
    model.network.layers[-1].weight.data.zero_().requires_grad_(False)  # only a bias learns
    level, _, text = check_overfitting(model, (inputs, labels))
    assert level == "warning"
    assert "most of the network is frozen" in text
    assert check_gradients(model.requires_grad_(False), (inputs, labels))[2].startswith("all 6 parameters are frozen")


def test_the_checks_do_not_change_the_model():
    model = LitMLP((4,), 3, [8], normalization="batch", dropout=0.1)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = torch.randn(32, 4), torch.arange(32) % 3
    assert len(list(check_model(model, optimizer, [batch]))) == 5
    assert model.training
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
def test_a_datamodule_with_its_own_loaders(check, monkeypatch):
    def loader(split):
        def loads(self):
            dataset = torch.utils.data.TensorDataset(*self.own[split])
            return torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=split == "train")

        return loads

    def setup(self, stage=None):
        if not hasattr(self, "own"):
            super(Iris, self).setup(stage)
            self.own, self._splits = self._splits, {}

    monkeypatch.setattr(Iris, "setup", setup)
    monkeypatch.setattr(Iris, "training_inputs", lambda self: self.own["train"][0])
    for split in ("train", "val", "test"):
        monkeypatch.setattr(Iris, f"{split}_dataloader", loader(split))
    results = check(*SHORT)
    assert results["data"] == [("note", "Iris loads its data itself, so rows and labels are not checked")]
    assert levels(results) == {"ok", "note"}


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_the_time_is_estimated_from_a_few_steps(seconds, check, monkeypatch):
    monkeypatch.setattr(preflight, "TIMED_SECONDS", seconds)
    results = check("--config", IRIS, "trainer.max_epochs=3000")
    assert "for 9,000 training batches and 3,000 validations; memory" in results["expected time"][0][1]


@pytest.mark.parametrize(
    ("options", "batches", "validations"),
    [
        ({}, 100, 10),
        ({"max_epochs": -1, "max_steps": 15, "accumulate_grad_batches": 2}, 30, 3),
        ({"check_val_every_n_epoch": 2}, 100, 5),
        ({"val_check_batch": 5}, 100, 20),
        ({"val_check_batch": 20, "check_val_every_n_epoch": None}, 100, 5),
        ({"enable_validation": False}, 100, 0),
        ({"max_steps": 3}, 3, 1),
        ({"max_steps": 13}, 13, 2),
        ({"check_val_every_n_epoch": 3}, 100, 4),
        ({"val_check_batch": 4, "max_epochs": 1}, 10, 3),
        ({"val_check_batch": 30, "check_val_every_n_epoch": None}, 100, 4),
        ({"val_check_batch": 300, "check_val_every_n_epoch": None}, 100, 1),
    ],
)
def test_batches_and_validations_are_counted(options, batches, validations):
    plain = {
        "max_epochs": 10, "max_steps": -1, "num_training_batches": 10, "accumulate_grad_batches": 1,
        "val_check_batch": 10, "check_val_every_n_epoch": 1, "enable_validation": True,
    }  # fmt: skip
    trainer = SimpleNamespace(**{**plain, **options})
    assert _num_batches(trainer) == batches
    assert _num_validations(trainer, batches) == validations


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("callbacks.early_stopping={monitor: val/loss}", " per batch; the run has no fixed number of batches; memory "),
        ("trainer.max_time='00:00:00:30'", "about 30 s, the time limit of the run, with "),
    ],
)
def test_a_run_without_a_fixed_number_of_batches(end, text, check, monkeypatch):
    monkeypatch.setattr(preflight, "TIMED_SECONDS", 0.0)
    results = check("--config", IRIS, "trainer.max_epochs=null", "schedule.name=constant", end)
    assert text in results["expected time"][0][1]


def test_the_check_uses_one_process(check):
    results = check(*SHORT, "trainer.devices=2", "trainer.strategy=ddp")
    assert levels(results) == {"ok", "note"}


@pytest.mark.parametrize("when", ["data", "steps"])
def test_ctrl_c(when, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if when == "data":
        monkeypatch.setattr(data_checks, "check_labels", lambda *_: signal.raise_signal(signal.SIGINT))
        code = train.main(["--config", IRIS, "--check"])
    else:
        with signalled(monkeypatch, lambda trainer: trainer.global_step == 2, signal.SIGINT):
            code = train.main(["--config", IRIS, "--check"])
    assert code == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_a_new_run_can_be_checked(capsys):
    assert train.main(["--resume", "auto", "--config", IRIS, "--check"]) == 2
    expected = "error: command line: --check: checks a new run; leave out --resume\n"
    assert capsys.readouterr().err == expected


def test_mistakes_in_a_config_are_reported_as_in_a_run(capsys):
    assert train.main(["--config", IRIS, "optimizer.lrr=1", "--check"]) == 2
    assert capsys.readouterr().err == "error: command line: optimizer.lrr: unknown key; did you mean lr?\n"
