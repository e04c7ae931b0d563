"""Quantization-aware training: agreement with the int8 file, resumption, the choice of the best checkpoint, refusals."""

import json
import signal
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch import nn

import evaluate
import export
import train
from callbacks import quantization
from callbacks.quantization import Quantization, QuantizedWeight, fake_quantize
from engine.contracts import OptionError
from engine.inference import export as formats
from engine.inference.quantization import quantize
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP
from tests import files, processes
from tests.exactness import differences, signalled, start
from tests.runs import IRIS, WITHOUT_PICTURES, curve, figures, run

QAT = "callbacks.quantization={}"
SMALL = [*WITHOUT_PICTURES, "trainer.precision=32-true"]
IRIS_QAT = ["--config", IRIS, "trainer.max_epochs=4", *SMALL, "callbacks.quantization={epochs: 2}"]
CNN = [
    "--config",
    "configs/mnist_cnn.yaml",
    "model.widths=[8, 8]",
    "data.batch_size=64",
    "trainer.max_epochs=2",
    *SMALL,
]


@pytest.fixture
def simulate():
    """A function that lets a model simulate int8."""
    callback = Quantization()
    yield callback._begin
    callback._end()


def trained(model):
    """A model in evaluation mode, with running means and variances as after a training."""
    for module in model.eval().requires_grad_(False).modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.normal_()
    return model.to(memory_format=torch.contiguous_format)


def int8_logits(model, inputs, folder):
    """The logits of the int8 file, whose ranges come from the same inputs."""
    source, path = folder / "model.onnx", folder / "model.int8.onnx"
    formats.write(model, formats.deployed_inputs(inputs), source, {})
    quantize(source, path, [(inputs, torch.zeros(512))])
    return formats.read(path, model)(formats.deployed_inputs(inputs))


def error(left, right):
    return float((left - right).square().mean().sqrt())


def test_a_network_without_convolutions_has_the_logits_of_the_int8_file(simulate, tmp_path):
    torch.manual_seed(0)
    model = trained(LitMLP((4,), 3, hidden_sizes=[32, 32], normalization="batch"))
    inputs = torch.randn(512, 4)
    plain, expected = model(inputs), int8_logits(model, inputs, tmp_path)
    simulate(model)
    assert error(model(inputs), expected) < 1e-6 < 1e-3 < error(plain, expected)


@pytest.mark.parametrize("options", [{}, {"whitening": True, "logit_scale": 0.1}], ids=str)
def test_a_network_with_convolutions_rounds_the_tensors_that_the_int8_file_rounds(
    options, simulate, tmp_path, monkeypatch
):
    """Given the ranges of the file, the logits are equal, except a few for which a sum lies halfway between two levels."""
    torch.manual_seed(0)
    model, inputs = trained(LitCNN((3, 32, 32), 10, widths=[8, 16], **options)), 3 * torch.randn(512, 3, 32, 32)
    plain, expected = model(inputs), int8_logits(model, inputs, tmp_path)
    graph = onnx.load(tmp_path / "model.int8.onnx").graph
    values = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    rounding = (node.input[1:] for node in graph.node if node.op_type == "QuantizeLinear")
    ranges = [(values[scale], values[zero].int()) for scale, zero in rounding]
    left = iter(ranges)
    monkeypatch.setattr(
        quantization, "fake_quantize", lambda x: torch.fake_quantize_per_tensor_affine(x, *next(left), -128, 127)
    )
    simulate(model)
    simulated = model(inputs)
    assert next(left, None) is None
    assert (simulated - expected).abs().lt(1e-5).float().mean() > 0.99
    assert (plain - expected).abs().lt(1e-5).float().mean() < 0.1


def test_folding_a_batch_normalization_does_not_change_which_weights_int8_can_represent():
    conv = nn.Conv2d(3, 8, 3)
    factors = 2.0 ** torch.randint(-3, 3, (8, 1, 1, 1)) * torch.tensor([1, -1]).repeat(4)[:, None, None, None]
    folded = nn.Conv2d(3, 8, 3)
    folded.weight.data = conv.weight.data * factors
    conv.__class__ = folded.__class__ = type("Quantized", (QuantizedWeight, nn.Conv2d), {})
    assert not torch.equal(conv.weight, conv._parameters["weight"])
    assert torch.equal(folded.weight, conv.weight * factors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_gradients_pass_through_the_rounding(dtype):
    values = torch.tensor([-1.0, 0.0, 0.123, 3.0], dtype=dtype, requires_grad=True)
    rounded = fake_quantize(values)
    assert rounded.dtype == dtype
    assert rounded.tolist() == pytest.approx([-1, 0, 0.123, 3], abs=0.016)
    rounded.sum().backward()
    assert values.grad.tolist() == [1, 1, 1, 1]


def test_zeros_and_nan_are_not_changed():
    assert fake_quantize(torch.zeros(3)).tolist() == [0, 0, 0]
    assert fake_quantize(torch.tensor([1.0, np.nan])).isnan().any()


def test_a_checkpoint_has_the_keys_of_a_plain_run_and_the_test_does_not_simulate(tmp_path):
    plain = run(tmp_path / "plain", *IRIS_QAT, "callbacks.quantization=null")
    folder = run(tmp_path / "qat", *IRIS_QAT)
    left, right = (torch.load(each / "checkpoints/best.ckpt", weights_only=True) for each in (plain, folder))
    assert list(left["state_dict"]) == list(right["state_dict"])
    assert "Quantization" not in str(right["callbacks"].keys())
    assert not torch.equal(
        left["state_dict"]["network.layers.0.weight"], right["state_dict"]["network.layers.0.weight"]
    )
    assert type(LitMLP.load_from_checkpoint(folder / "checkpoints/best.ckpt").network.layers[0]) is nn.Linear


def test_only_epochs_that_simulate_int8_choose_the_best_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "fake_quantize", lambda values: 0 * values)  # worse than all earlier epochs
    folder = run(tmp_path, *IRIS_QAT, "run.monitor=val/loss")
    losses = curve(folder, "val/loss")
    assert max(losses[:2]) < min(losses[2:])
    assert figures(folder)["best_epoch"] >= 3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_a_run_that_is_stopped_while_it_simulates_resumes_exactly(precision, tmp_path, monkeypatch):
    options = [*IRIS_QAT, f"trainer.precision={precision}", "model.dropout=0.1", "trainer.log_every_n_steps=1"]
    code, whole = start(tmp_path / "whole", *options)
    assert code == 0
    for stop in ((2, 0), (2, 2), (3, 1)):
        root = tmp_path / str(stop)

        def when(trainer, stop=stop):
            return trainer.training and (trainer.current_epoch, trainer.fit_loop.batch_idx + 1) == stop

        with signalled(monkeypatch, when):
            code, folder = start(root, *options)
        assert code == 143
        assert train.main(["--resume", str(folder)]) == 0
        assert differences(whole, folder) == []


@pytest.mark.slow
@pytest.mark.needs("pictures")
def test_a_killed_run_of_a_network_with_convolutions_resumes_exactly(tmp_path):
    files.write_pictures(tmp_path / "photos", 60)
    options = [
        "--config",
        "configs/pictures_cnn.yaml",
        f"data.train={tmp_path}/photos",
        "model.widths=[8]",
        "run.name=x",
    ]
    options += ["trainer.max_epochs=40", "callbacks.quantization={epochs: 40}", "run.checkpoint_every_steps=3", *SMALL]
    options += ["data.batch_size=16", f"data.cache={tmp_path}/cache"]
    done = processes.run(*options, f"run.root={tmp_path}/whole")
    assert done.returncode == 0, done.stderr
    process = processes.started_run(sys.executable, "train.py", *options, f"run.root={tmp_path}/killed")
    process.kill()
    process.communicate()
    killed = tmp_path / "killed/pictures_cnn/x"
    assert not (killed / "metrics.json").exists()
    done = processes.run("--resume", str(killed))
    assert done.returncode == 0, done.stderr
    assert "resuming in epoch" in done.stdout
    assert differences(tmp_path / "whole/pictures_cnn/x", killed) == []


@pytest.mark.slow
def test_two_processes_train_and_resume(tmp_path):
    options = [*processes.EXACT, "callbacks.quantization={epochs: 60}", "run.name=x"]
    done = processes.run(*options, f"run.root={tmp_path}/whole")
    assert done.returncode == 0, done.stderr
    process = processes.started_run(sys.executable, "train.py", *options, f"run.root={tmp_path}/stopped")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    stopped = tmp_path / "stopped/iris_mlp/x"
    done = processes.run("--resume", str(stopped))
    assert done.returncode == 0, done.stderr
    assert differences(tmp_path / "whole/iris_mlp/x", stopped) == []


@pytest.mark.slow
def test_evaluate_and_export_find_the_figures_of_a_run(tmp_path, small_data, monkeypatch):
    """The test is in the precision of the training, and `evaluate.py` repeats it. The int8 file is compared with it."""
    folder = run(tmp_path / "runs", *CNN, f"data.root={small_data}", QAT)
    assert evaluate.main([str(folder)]) == 0
    again = json.loads((folder / "evaluations/test.json").read_text(encoding="utf-8"))
    assert again["test/accuracy"] == figures(folder)["test/accuracy"]
    monkeypatch.setattr(
        "engine.inference.quantization.refusal", lambda *_: None
    )  # a small network is not faster in int8
    assert export.main([str(folder), "--to", "onnx", "--int8"]) == 0
    measured = json.loads((folder / "exports/model.int8.onnx.json").read_text(encoding="utf-8"))["measurements"]
    assert measured["PyTorch"]["accuracy"] == pytest.approx(again["test/accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "trainer.max_epochs=null",
            "callbacks.quantization: the number of epochs is not known; set trainer.max_epochs",
        ),
        ("callbacks.quantization.bits=4", "callbacks.quantization.bits: 4 is not accepted; accepts 8"),
        ("callbacks.quantization.epochs=0", "callbacks.quantization.epochs: 0 is out of range"),
        ("callbacks.quantization.epochs=9", "callbacks.quantization.epochs: 9 is more than trainer.max_epochs="),
    ],
)
def test_mistakes_are_one_line(option, message, tmp_path, capsys):
    argv = [*IRIS_QAT, "trainer.max_steps=4", option, f"run.root={tmp_path}"]
    assert train.main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "device"), [(SingleDeviceStrategy, "xla"), (ModelParallelStrategy, "cpu")])
def test_other_devices_and_sharded_models_are_refused(kind, device, monkeypatch):
    monkeypatch.setattr(kind, "root_device", torch.device(device))
    trainer = SimpleNamespace(max_epochs=3, strategy=kind.__new__(kind))
    with pytest.raises(OptionError, match=f"is not possible with {kind.__name__} on the device {device}; it needs"):
        Quantization().on_fit_start(trainer, None)


def test_a_training_that_ends_earlier_says_so(tmp_path, capsys):
    run(tmp_path, *IRIS_QAT, "trainer.max_steps=4")
    assert (
        "callbacks.quantization: int8 was not simulated, because training ended before epoch 3"
        in capsys.readouterr().out
    )
