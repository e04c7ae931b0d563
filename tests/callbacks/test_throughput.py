"""Throughput: operations counted by hand, and a measurement that neither changes nor ends the run."""

import pytest
import torch

import train
from callbacks import throughput
from callbacks.throughput import flops_per_unit, matmul_flops, num_units
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP
from tests.exactness import points, signalled, start
from tests.runs import IRIS, curve, figures, run


@pytest.fixture
def measures_always(monkeypatch):
    """Measure the peak also after a short training, and with a small matrix."""
    monkeypatch.setattr(throughput, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(throughput, "MATRIX_SIDE", {"cpu": 256})


def test_flops_of_a_multilayer_perceptron_equal_those_counted_by_hand():
    """Two per multiplication: forward, gradients of weights, and gradients of inputs except in the first layer."""
    model = LitMLP((4,), 3, hidden_sizes=[8])
    assert flops_per_unit(model, torch.zeros(16, 4)) == 2 * (2 * 4 * 8 + 3 * 8 * 3)


def test_flops_of_a_convolution_equal_those_counted_by_hand():
    model = LitCNN((1, 8, 8), 2, widths=[4], convs_per_stage=1)
    conv, head = 8 * 8 * 9 * 4, 4 * 2
    assert flops_per_unit(model, torch.zeros(5, 1, 8, 8, dtype=torch.uint8)) == 2 * (2 * conv + 3 * head)


@pytest.mark.needs("bert")
def test_units_of_text_are_tokens_with_their_padding():
    from lit_models.bert import LitBERT

    model = LitBERT((), 2, vocab_size=50, max_length=16, hidden_size=16, num_layers=1, num_heads=2)
    short, long = ({"input_ids": torch.ones(4, length, dtype=torch.int64)} for length in (4, 16))
    assert num_units(short) == 16
    assert 1 < flops_per_unit(model, long) / flops_per_unit(model, short) < 1.2  # attention grows with the length


def test_counting_changes_neither_the_model_nor_random_states():
    model = LitCNN((1, 8, 8), 2, widths=[4], dropout=0.5).train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    random = torch.get_rng_state()
    flops_per_unit(model, torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_peak_performance_is_measured():
    assert 1e8 < matmul_flops(torch.device("cpu"), torch.float32) < 1e15


@pytest.mark.usefixtures("measures_always")
def test_resumed_run_counts_only_its_own_time(tmp_path, monkeypatch):
    options = ["--config", IRIS, "trainer.max_epochs=4", "data.batch_size=4"]
    stop = signalled(monkeypatch, lambda trainer: trainer.training and trainer.fit_loop.batch_idx == 5)
    with stop:
        _, folder = start(tmp_path, *options)
    assert train.main(["--resume", str(folder)]) == 0
    rates = [value for _, value in points(folder)["speed/samples_per_second"]]
    assert len(rates) == 4
    assert all(1 < rate < 1e6 for rate in [*rates, figures(folder)["samples_per_second"]])
    assert 0 <= figures(folder)["peak_share"] < 1  # rounded: 0 for so small steps on a busy machine


@pytest.mark.usefixtures("measures_always")
@pytest.mark.parametrize("name", ["flops_per_unit", "matmul_flops"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory\nleft"), KeyError("missing"), MemoryError()])
def test_error_in_the_measurement_does_not_cost_the_test(name, error, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(throughput, name, fail)
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1")
    reason = " ".join(str(error).split()) or type(error).__name__
    assert f"train/peak_share was not measured: {type(error).__name__}: {reason}\n" in capsys.readouterr().out
    assert figures(folder)["test/accuracy"] > 0
    assert figures(folder)["samples_per_second"] > 0
    assert "peak_share" not in figures(folder)


def test_network_whose_operations_depend_on_values_cannot_be_counted():
    model = LitMLP((4,), 3, hidden_sizes=[8])
    model.network.forward = lambda inputs: inputs * inputs.sum().item()
    with pytest.raises(RuntimeError, match="meta"):
        flops_per_unit(model, torch.zeros(16, 4))


def test_only_a_long_run_measures_its_fraction_of_the_peak(tmp_path, request, capsys):
    short = run(tmp_path / "short", "--config", IRIS, "trainer.max_epochs=2")
    assert "peak_share" not in figures(short)
    assert "peak_share" not in capsys.readouterr().out
    request.getfixturevalue("measures_always")
    long = run(tmp_path / "long", "--config", IRIS, "trainer.max_epochs=2")
    assert 0 <= figures(long)["peak_share"] < 1
    assert curve(long, "train/peak_share") == [pytest.approx(figures(long)["peak_share"], abs=1e-4)]
    assert len(curve(long, "train/samples_per_second")) == 2
    assert "of the speed of large matrix products" in capsys.readouterr().out
