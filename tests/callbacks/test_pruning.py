"""Structured pruning: what is removed, what the smaller network computes, and that its run is a run like any other."""

import shutil

import onnxruntime
import pytest
import torch
from lightning.pytorch import Trainer

import evaluate
import export
import train
from callbacks import pruning
from callbacks.pruning import Pruning, choose_sizes, count_multiply_adds, measure_importance
from engine.command_line import parse
from engine.contracts import ConfigError, OptionError
from lit_models.bert import LitBERT
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP
from tests import files, processes
from tests.exactness import differences, signalled, start
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

MODELS = {
    "mlp": lambda: LitMLP([8], 3, hidden_sizes=[24, 40, 16]),
    "mlp with batch norm": lambda: LitMLP([8], 3, hidden_sizes=(24, 20), normalization="batch", dropout=0.1),
    "linear ensemble": lambda: LitMLP([8], 3, hidden_sizes=[24, 20], num_members=4, dropout=0.1),
    "table": lambda: LitMLP(
        [3], 2, columns={"a": [], "b": ["x", "y"], "c": []}, hidden_sizes=[40], numeric_embedding="periodic"
    ),
    "mlp on images": lambda: LitMLP([1, 8, 8], 3, hidden_sizes=[40]),
    "cnn": lambda: LitCNN([3, 16, 16], 3, widths=(8, 16, 40)),
    "residual cnn": lambda: LitCNN([3, 16, 16], 3, widths=[8, 16], residual=True, convs_per_stage=3),
    "cnn with all options": lambda: LitCNN(
        [3, 16, 16], 3, widths=[8, 40], whitening=True, stem=True, dirac=True, norm_scale=False, dropout=0.1
    ),
    "bert on images": lambda: LitBERT([1, 8, 8], 3, hidden_size=24, num_heads=6, num_layers=2),
    "bert on features": lambda: LitBERT([8], 3, hidden_size=24, num_heads=3, num_layers=2, pooling="mean"),
}


def made(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.bias)
    return model


def batch(model, size=16):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, *model.hparams["input_shape"], generator=generator)
    return inputs, torch.randint(model.hparams["num_classes"], (size,), generator=generator)


def removed_by_gates(model, layers, kept, inputs):
    """The logits if the gates of the other units are 0."""
    count = len(inputs["input_ids"] if isinstance(inputs, dict) else inputs)
    with torch.no_grad(), pruning._gates(model.network, layers, count) as gates:
        for gate, units in zip(gates, kept, strict=True):
            gate.zero_()
            gate[:, units] = 1
        return model(inputs)


@pytest.mark.parametrize("name", MODELS)
def test_the_smaller_network_computes_what_the_network_computes_without_the_units(name):
    model = made(name)
    layers, (inputs, _) = model.prunable_layers(), batch(model)
    hparams, (before, after) = choose_sizes(model, layers, 0.4, model.normalized(inputs[:1]))
    sizes = [pruning._get(hparams, layer.option) for layer in layers]
    draw = torch.Generator().manual_seed(2)
    kept = [
        torch.randperm(layer.num_units, generator=draw)[:size].sort().values.tolist()
        for layer, size in zip(layers, sizes, strict=True)
    ]
    expected = removed_by_gates(model, layers, kept, inputs)
    assert not torch.allclose(expected, model(inputs), atol=1e-4)
    state = pruning._slice(model.network.state_dict(), layers, kept)
    pruning._replace_network(model, hparams)
    model.network.load_state_dict(state)
    torch.testing.assert_close(model.eval()(inputs), expected)
    assert after < before
    assert after == count_multiply_adds(model, dict(model.hparams), model.normalized(inputs[:1]))


@pytest.mark.parametrize("name", [name for name in MODELS if "bert" not in name])
def test_every_unit_is_prunable_and_every_module_of_a_unit_is_named(name):
    """All tensors of hidden layers shrink, except for the inputs and the classes."""
    model = made(name)
    layers = model.prunable_layers()
    kept = [list(range(max(1, layer.num_units // 2))) for layer in layers]
    state = pruning._slice(model.network.state_dict(), layers, kept)
    same = {key for key, value in model.network.state_dict().items() if value.shape == state[key].shape}
    fixed = ("embeddings.", "whitening.", "members.", "layers.0.x", "head.bias")
    last = f"layers.{len(getattr(model.network, 'layers', [1])) - 1}.bias"
    assert {key for key in same if not key.startswith(fixed) and "num_batches" not in key} <= {last}


def test_importance_is_the_mean_squared_derivative_of_the_loss_of_a_sample():
    """Against finite differences in float64."""
    model = made("residual cnn").double()
    layers, (inputs, labels) = model.prunable_layers(), batch(model, 6)
    batches = [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])]
    for layer, found in zip(layers, measure_importance(model, layers, batches), strict=True):
        for unit in range(0, layer.num_units, 3):
            losses = []
            for change in (-1e-5, 1e-5):
                with torch.no_grad(), pruning._gates(model.network, [layer], len(inputs)) as (gate,):
                    gate[:, unit] += change
                    losses.append(torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none"))
            expected = ((losses[1] - losses[0]) / 2e-5).square().mean()
            torch.testing.assert_close(found[unit], expected, rtol=1e-4, atol=1e-12)


def test_a_unit_without_influence_has_no_importance_and_training_mode_is_kept():
    model = made("mlp with batch norm").train()
    consumer = model.network.get_submodule(model.prunable_layers()[1].consumers[0])
    torch.nn.init.zeros_(consumer.weight[:, 3])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    importance = measure_importance(model, model.prunable_layers(), [batch(model)])
    assert importance[1][3] == 0
    assert (importance[1] > 0).sum() > 10  # a ReLU may be 0 for all samples
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_the_amount_is_the_fraction_of_multiply_adds(amount):
    model = LitCNN([3, 32, 32], 10)
    hparams, (before, after) = choose_sizes(model, model.prunable_layers(), amount, torch.zeros(1, 3, 32, 32))
    assert 1 - after / before == pytest.approx(amount, abs=0.07)
    assert all(width % 16 == 0 or width < 16 for width in hparams["widths"])
    by_hand, channels, side = 0, 3, 32
    for width in hparams["widths"]:
        by_hand += 9 * side**2 * channels * width + 9 * (side // 2) ** 2 * width**2
        channels, side = width, side // 2
    assert after == by_hand + 10 * channels
    assert list(model.hparams["widths"]) == [32, 64, 128]


def test_a_layer_can_keep_all_units():
    """Also if their number is not a multiple of 16."""
    model = LitMLP([4], 3, hidden_sizes=[40, 40])
    hparams, (before, after) = choose_sizes(model, model.prunable_layers(), 0.05, torch.zeros(1, 4))
    assert (hparams["hidden_sizes"], after) == ([40, 40], before)


def test_at_least_one_unit_remains():
    model = LitMLP([4], 3, hidden_sizes=[4, 4])
    assert choose_sizes(model, model.prunable_layers(), 0.8, torch.zeros(1, 4))[0]["hidden_sizes"] == [1, 1]
    with pytest.raises(
        OptionError, match=r"amount: 0.9 is too large; with one unit in each layer, pruning removes 81.82% of the"
    ):
        choose_sizes(model, model.prunable_layers(), 0.9, torch.zeros(1, 4))


# --- runs

SHORT = ["--config", IRIS, "trainer.max_epochs=3", "trainer.precision=32-true", *WITHOUT_PICTURES]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return run(tmp_path_factory.mktemp("first"), *SHORT, "trainer.max_epochs=30")


def test_pruning_needs_a_trained_network():
    with pytest.raises(ConfigError, match=r"callbacks.pruning: removes .* then set model.start_from=RUN"):
        parse([*SHORT, "callbacks.pruning={}"], "")


def test_a_pruned_run_is_smaller_and_exports(first, tmp_path, capsys):
    folder = run(tmp_path, *SHORT, f"model.start_from={first}", "callbacks.pruning={amount: 0.5}")
    line = "pruned LitMLP: hidden_sizes [64, 64] -> [48, 48], multiply-adds of a sample 4,544 -> 2,640 (-42%)"
    assert line in capsys.readouterr().out
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["hidden_sizes"] == [48, 48]
    model = LitMLP.load_from_checkpoint(folder / "checkpoints/best.ckpt").eval()
    assert model.network.layers[2].weight.shape == (48, 48)
    assert figures(folder)["test/accuracy"] > 0.8
    shutil.rmtree(folder / "evaluations", ignore_errors=True)
    assert evaluate.main([str(folder)]) == 0
    assert export.main([str(folder), "--to", "onnx"]) == 0
    (path,) = folder.rglob("*.onnx")
    inputs = torch.tensor([[5.1, 3.5, 1.4, 0.2], [6.0, 3.0, 5.0, 2.0]])
    session = onnxruntime.InferenceSession(path)
    outputs = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(outputs), model(inputs), rtol=1e-4, atol=1e-5)


def test_a_pruned_run_can_be_pruned_again(first, tmp_path):
    options = [*SHORT, "callbacks.pruning={amount: 0.3}"]
    second = run(tmp_path / "second", *options, f"model.start_from={first}")
    widths = torch.load(second / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]["hidden_sizes"]
    third = run(tmp_path / "third", *options, f"model.start_from={second}", f"model.hidden_sizes={widths}")
    again = torch.load(third / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]["hidden_sizes"]
    assert again[0] < widths[0] < 64


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["callbacks.ema_weight_averaging={decay: 0.9}"],
        ["trainer.precision=64-true"],
        ["trainer.precision=bf16-mixed"],
    ],
    ids=str,
)
def test_stopped_and_resumed(changes, first, tmp_path, monkeypatch):
    options = [*SHORT, *changes, "callbacks.pruning={}", f"model.start_from={tmp_path}/other"]
    shutil.copytree(first, tmp_path / "other")
    whole = run(tmp_path / "whole", *options)
    with signalled(
        monkeypatch, lambda trainer: trainer.training and trainer.fit_loop.batch_idx + trainer.current_epoch
    ):
        code, folder = start(tmp_path / "runs", *options)
    assert code == 143
    shutil.rmtree(tmp_path / "other")
    assert train.main(["--resume", str(folder)]) == 0
    assert differences(whole, folder) == []


@pytest.mark.slow
def test_with_two_processes_one_of_them_chooses_the_units(first, tmp_path):
    options = ["--config", IRIS, *processes.TWO, "trainer.max_epochs=3", f"model.start_from={first}"]
    done = processes.run(*options, "callbacks.pruning={}", "run.name=two", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pruned LitMLP") == 1
    folder = tmp_path / "iris_mlp/two"
    model = LitMLP.load_from_checkpoint(folder / "checkpoints/best.ckpt")
    assert model.network.layers[2].weight.shape == (48, 48)
    assert figures(folder)["test/accuracy"] > 0.8


def test_check(first, capsys):
    assert train.main([*SHORT, "callbacks.pruning={}", f"model.start_from={first}", "--check"]) == 0
    assert "pruned LitMLP" in capsys.readouterr().out


@pytest.mark.parametrize("hidden", ["[]"])
def test_a_model_without_such_units_is_refused(hidden, tmp_path, capsys):
    linear = [*SHORT, f"model.hidden_sizes={hidden}"]
    folder = run(tmp_path / "linear", *linear)
    assert train.main([*linear, f"model.start_from={folder}", "callbacks.pruning={}", f"run.root={tmp_path}/runs"]) == 2
    assert "callbacks.pruning.amount: LitMLP has no layer with units to remove" in capsys.readouterr().err


def test_only_training_prunes():
    Pruning().setup(Trainer(logger=False, accelerator="cpu"), LitMLP([4], 3), "test")


def test_a_pretrained_bert_loses_heads(tmp_path):
    """The heads keep their size, so a checkpoint needs the size as well as the number."""
    files.write_bert(tmp_path / "bert")
    options = {"vocab_size": 50, "max_length": 16, "pretrained": str(tmp_path / "bert"), "pooling": "mean"}
    model = LitBERT((), 2, **options).eval()
    ids = torch.randint(1, 50, (6, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.arange(9) < torch.tensor([[9], [3], [5], [9], [1], [7]])}
    layers = model.prunable_layers()
    importance = measure_importance(model, layers, [(inputs, torch.arange(6) % 2)])
    assert [len(values) for values in importance] == [2, 128] * 2
    hparams, (before, after) = choose_sizes(model, layers, 0.4, inputs)
    assert hparams["architecture"]["num_attention_heads"] == 1
    assert hparams["architecture"]["attention_head_size"] == 16
    assert after < 0.7 * before
    kept = [list(range(pruning._get(hparams, layer.option))) for layer in layers]
    expected = removed_by_gates(model, layers, kept, inputs)
    state = pruning._slice(model.network.state_dict(), layers, kept)
    pruning._replace_network(model, hparams)
    model.network.load_state_dict(state)
    torch.testing.assert_close(model.eval()(inputs), expected)
    again = LitBERT(**dict(model.hparams)).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(inputs), expected)
