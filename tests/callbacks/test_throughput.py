"""What is said of speed: counted by hand where that can be done, and without a trace in the run."""

import pytest
import torch

import train
from callbacks import throughput
from callbacks.throughput import flops_per_unit, matmul_flops, num_units
from lit_models.bert import LitBERT
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP
from tests.exactness import points, signalled, start
from tests.runs import IRIS, curve, figures, run


def test_flops_of_a_multilayer_perceptron_are_those_counted_by_hand():
    """Twice a multiplication each: forward, weights' gradients, and inputs' gradients where a layer is below."""
    model = LitMLP((4,), 3, hidden_sizes=[8])
    assert flops_per_unit(model, torch.zeros(16, 4)) == 2 * (2 * 4 * 8 + 3 * 8 * 3)


def test_flops_of_a_convolution_are_those_counted_by_hand():
    model = LitCNN((1, 8, 8), 2, widths=[4], convs_per_stage=1)
    conv, head = 8 * 8 * 9 * 4, 4 * 2
    assert flops_per_unit(model, torch.zeros(5, 1, 8, 8, dtype=torch.uint8)) == 2 * (2 * conv + 3 * head)


def test_units_of_text_are_tokens_with_their_padding():
    model = LitBERT((), 2, vocab_size=50, max_length=16, hidden_size=16, num_layers=1, num_heads=2)
    short, long = ({"input_ids": torch.ones(4, length, dtype=torch.int64)} for length in (4, 16))
    assert num_units(short) == 16
    assert 1 < flops_per_unit(model, long) / flops_per_unit(model, short) < 1.2  # attention grows with the length


def test_counting_leaves_no_trace():
    model = LitCNN((1, 8, 8), 2, widths=[4], dropout=0.5).train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    random = torch.get_rng_state()
    flops_per_unit(model, torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(one.grad is None for one in model.parameters())


def test_a_matrix_product_is_timed():
    assert 1e8 < matmul_flops(torch.device("cpu"), torch.float32) < 1e15


def test_a_run_that_goes_on_within_an_epoch_counts_its_own_time(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(throughput, "MATRIX_SIDE", {"cpu": 256})
    options = ["--config", IRIS, "trainer.max_epochs=4", "data.batch_size=4"]
    stop = signalled(monkeypatch, lambda trainer: trainer.training and trainer.fit_loop.batch_idx == 5)
    with stop:
        _, folder = start(tmp_path, *options)
    assert train.main(["--resume", str(folder)]) == 0
    rates = [value for _, value in points(folder)["speed/samples_per_second"]]
    assert len(rates) == 4
    assert all(1 < rate < 1e6 for rate in [*rates, figures(folder)["samples_per_second"]])
    assert 0 <= figures(folder)["peak_share"] < 1  # rounded: 0 for so small steps on a busy machine


def test_a_network_that_cannot_be_counted_ends_no_run():
    model = LitMLP((4,), 3, hidden_sizes=[8])
    model.network.forward = lambda inputs: {}["missing"]
    assert flops_per_unit(model, torch.zeros(16, 4)) is None


def test_a_long_run_says_its_share_of_the_peak_and_a_short_one_does_not(tmp_path, monkeypatch, capsys):
    short = run(tmp_path / "short", "--config", IRIS, "trainer.max_epochs=2")
    assert "peak_share" not in figures(short)
    monkeypatch.setattr(throughput, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(throughput, "MATRIX_SIDE", {"cpu": 256})
    long = run(tmp_path / "long", "--config", IRIS, "trainer.max_epochs=2")
    assert 0 <= figures(long)["peak_share"] < 1
    assert curve(long, "train/peak_share") == [pytest.approx(figures(long)["peak_share"], abs=1e-4)]
    assert len(curve(long, "train/samples_per_second")) == 2
    assert "of what a matrix product reaches here" in capsys.readouterr().out
