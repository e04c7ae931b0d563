"""A run that starts from the weights of another run: `model.start_from`."""

import shutil

import pytest
import torch

import evaluate
import predict
import train
from engine.command_line import parse
from engine.contracts import ConfigError, UserError
from lit_models.classifier import LitClassifier
from tests import files
from tests.exactness import differences, signalled, start
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

SHORT = ["--config", IRIS, "trainer.max_epochs=2", "trainer.precision=32-true", *WITHOUT_PICTURES]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return run(tmp_path_factory.mktemp("first"), *SHORT, "trainer.max_epochs=20", "run.name=first")


def state(folder, name="best"):
    return torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def refusal(*argv):
    with pytest.raises(UserError) as caught:
        parse([*SHORT, *argv], "")
    return str(caught.value)


def test_the_best_weights_and_their_normalization_are_the_initial_ones(first, tmp_path, capsys):
    """With a learning rate of almost 0, they stay. Other training samples would give another normalization."""
    options = ["optimizer={name: sgd, lr: 1e-30}", "data.split_seed=5", f"model.start_from={first}"]
    folder = run(tmp_path, *SHORT, *options)
    ours, theirs = state(folder, "last"), state(first)
    assert f"starting from {first}" in capsys.readouterr().out
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name != "temperature")
    assert theirs["temperature"] != 1
    assert ours["temperature"] == 1


def test_a_run_is_found_by_its_name_and_by_its_checkpoint(first, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(first, root / "iris_mlp/first")
    for name in ("iris_mlp/first", str(first), str(first / "checkpoints/best.ckpt")):
        assert parse([*SHORT, f"run.root={root}", f"model.start_from={name}"], "")
    for name in ("iris_mlp", "first"):  # another process of the run would find two such runs
        message = refusal(f"run.root={root}", f"model.start_from={name}")
        assert f"model.start_from: {name} is only a part of a name; write iris_mlp/first" in message


def test_other_samples_are_noted(first, tmp_path, capsys):
    note = f"note: model.start_from: {first} was trained on other samples. If samples of the test or validation set"
    run(tmp_path / "same", *SHORT, f"model.start_from={first}", "optimizer.lr=0.1")
    assert "note: model" not in capsys.readouterr().out
    run(tmp_path / "other", *SHORT, f"model.start_from={first}", "data.split_seed=5")
    assert note in capsys.readouterr().out


def test_64_bit_weights_are_not_rounded(tmp_path):
    double = run(tmp_path / "first", *SHORT, "trainer.precision=64-true")
    options = ["optimizer={name: sgd, lr: 1e-300}", f"model.start_from={double}"]
    again = run(tmp_path / "double", *SHORT, *options, "trainer.precision=64-true")
    ours, theirs = state(again, "last"), state(double)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name != "temperature")
    single = run(tmp_path / "single", *SHORT, *options)
    assert {weight.dtype for weight in state(single, "last").values() if weight.is_floating_point()} == {torch.float32}


def test_options_of_the_training_may_change(first, tmp_path):
    options = ["optimizer.lr=0.1", "model.label_smoothing=0.1", "model.class_weights=balanced", "seed=3"]
    assert figures(run(tmp_path, *SHORT, f"model.start_from={first}", *options))["test/accuracy"] > 0.8


def test_neither_resuming_nor_the_result_needs_the_other_run(first, tmp_path, monkeypatch, capsys):
    options = [*SHORT, f"model.start_from={tmp_path}/other/first"]
    shutil.copytree(first, tmp_path / "other/first")
    whole = run(tmp_path / "whole", *options)
    with signalled(monkeypatch, lambda trainer: trainer.training and trainer.current_epoch == 1):
        code, folder = start(tmp_path / "runs", *options)
    assert code == 143
    shutil.rmtree(tmp_path / "other")
    assert train.main(["--resume", str(folder)]) == 0
    assert differences(whole, folder) == []
    assert evaluate.main([str(folder)]) == 0
    (tmp_path / "new.csv").write_text("sepal length,sepal width,petal length,petal width\n5.1,3.5,1.4,0.2\n")
    assert predict.main([str(folder), str(tmp_path / "new.csv")]) == 0
    assert "setosa" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.start_from=nothing"], "command line: model.start_from: nothing: matches no run below"),
        (["model.start_from=''"], "command line: model.start_from: '': matches no run below"),
        (["model.start_from=a/b.ckpt"], "command line: model.start_from: a/b.ckpt: does not exist; give RUN"),
    ],
    ids=str,
)
def test_a_missing_run_is_found_without_torch(options, message, tmp_path):
    assert message in refusal(*options, f"run.root={tmp_path}")


def test_another_model_is_refused_without_torch(first):
    message = refusal("model={name: bert}", f"model.start_from={first}")
    assert message == (
        f"command line: model.start_from: {first} has the model mlp, not 'bert'; set model.name=mlp, with its options"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.hidden_sizes=[32, 16]"], "command line: model.hidden_sizes: is [32, 16], but [64, 64] in "),
        (["model.activation=relu"], "command line: model.activation: is 'relu', but 'tanh' in "),
        (["model.dropout=0.1"], "command line: model.dropout: is 0.1, but 0.0 in "),
        (["model.num_members=4", "model.normalization=none"], "model.num_members: is 4, but 1 in "),
    ],
    ids=str,
)
def test_other_options_are_refused_with_the_value_to_set(options, message, first, tmp_path):
    with pytest.raises(ConfigError, match=r"set model\.\w+=") as caught:
        raise_of(tmp_path, f"model.start_from={first}", *options)
    assert message in str(caught.value)
    assert list(tmp_path.glob("*/*")) == []


def test_other_data_is_refused(first, tmp_path, small_data):
    mnist = ["--config", "configs/mnist_mlp.yaml", f"data.root={small_data}", *WITHOUT_PICTURES]
    with pytest.raises(ConfigError) as caught:
        raise_of(tmp_path, f"model.start_from={first}", "model.hidden_sizes=[64, 64]", argv=mnist)
    assert "model.start_from: the classes are setosa, versicolor, virginica in " in str(caught.value)


@pytest.mark.needs("text", "bert")
def test_another_vocabulary_of_the_same_size_is_refused(tmp_path):
    small = [
        "model.hidden_size=16",
        "model.num_layers=1",
        "model.num_heads=2",
        "trainer.max_epochs=1",
        *WITHOUT_PICTURES,
    ]
    options = ["--config", "configs/text_bert.yaml", *small, f"data.cache={tmp_path}/cache", "data.vocab_size=100"]
    options.append(f"data.train={tmp_path}/train.tsv")
    files.write_texts(path := tmp_path / "train.tsv", 60)
    first = run(tmp_path / "first", *options)
    run(tmp_path / "same", *options, f"model.start_from={first}")
    files.write_texts(path, 60, seed=1)
    with pytest.raises(ConfigError, match=r"has another vocabulary .* set data.tokenizer="):
        raise_of(tmp_path / "runs", f"model.start_from={first}", argv=options)


def test_every_option_of_the_base_class_is_of_the_data_or_of_the_training():
    import inspect

    data = {"self", "input_shape", "num_classes", "class_names", "columns"}
    assert {*inspect.signature(LitClassifier.__init__).parameters} - data <= {*LitClassifier.training_options}


def raise_of(root, *options, argv=SHORT):
    """Train, and raise the error that the command prints as one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "report_exit", lambda end, folder, number: raise_again(end))
        train.main([*argv, *options, f"run.root={root}"])


def raise_again(error):
    raise error
