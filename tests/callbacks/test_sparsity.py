"""Weights that are set to zero stay at zero."""

import pytest
import torch

import train
from engine.training import checkpoint_file
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP
from tests.exactness import differences, signalled, start
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

SHORT = [
    "--config",
    IRIS,
    "trainer.max_epochs=8",
    "callbacks.sparsity.amount=0.6",
    "optimizer.lr=0.01",
    *WITHOUT_PICTURES,
]


def test_the_fraction_of_zeros_is_the_amount(tmp_path):
    folder = run(tmp_path, *SHORT, "run.monitor=val/accuracy")
    model = LitMLP.load_from_checkpoint(folder / "checkpoints/last.ckpt")
    weights = torch.cat([weight.flatten() for weight in model.weight_tensors().values()])
    assert (weights == 0).float().mean().item() == pytest.approx(0.6, abs=1e-3)
    assert figures(folder)["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert figures(folder)["test/accuracy"] > 0.8
    assert all((parameter != 0).any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_the_best_checkpoint_has_all_zeros(tmp_path):
    """With this rate, the first validations are better than those of the sparse network."""
    folder = run(tmp_path, *SHORT, "callbacks.sparsity.amount=0.95", "optimizer.lr=0.03")
    model = LitMLP.load_from_checkpoint(folder / "checkpoints/best.ckpt")
    weights = torch.cat([weight.flatten() for weight in model.weight_tensors().values()])
    assert (weights == 0).float().mean().item() == pytest.approx(0.95, abs=1e-3) == figures(folder)["sparsity"]


def test_weights_are_removed_gradually_and_stay_zero(tmp_path, monkeypatch):
    zeros = []
    step = LitMLP.training_step

    def record(self, batch, batch_idx):
        zeros.append(torch.cat([weight.flatten() == 0 for weight in self.weight_tensors().values()]))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LitMLP, "training_step", record)
    run(tmp_path, *SHORT)
    fractions = [found.float().mean().item() for found in zeros[::3]]  # 3 steps per epoch
    assert fractions[0] == 0
    assert fractions == sorted(fractions)
    assert fractions[6] == fractions[7] == pytest.approx(0.6, abs=1e-3)
    assert 0.2 < fractions[1] < 0.4
    for i in range(0, len(zeros), 3):
        assert torch.equal(zeros[i], zeros[i + 1])
        assert torch.equal(zeros[i], zeros[i + 2])


@pytest.mark.parametrize("step", [4, 13])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_sparse_run_resumes_exactly(tmp_path, monkeypatch, step, precision):
    argv = [*SHORT, "model.dropout=0.1", f"trainer.precision={precision}"]
    whole = run(tmp_path / "whole", *argv)
    with signalled(monkeypatch, lambda trainer: trainer.training and trainer.global_step == step):
        code, folder = start(tmp_path / "stopped", *argv)
    assert code == 143
    assert train.main(["--resume", str(folder)]) == 0
    assert differences(whole, folder) == []
    assert "masks" in checkpoint_file.read(folder / "checkpoints/last.ckpt")["callbacks"]["Sparsity"]


def test_fixed_filters_are_not_removed():
    names = LitCNN((3, 16, 16), 3, widths=[4], whitening=True).weight_tensors()
    assert names
    assert not any("whitening" in name for name in names)


def test_biases_are_not_removed():
    """Also those of the members of an ensemble, which are a matrix."""
    model = LitMLP((4,), 3, hidden_sizes=[5], num_members=2)
    names = model.weight_tensors()
    assert any(parameter.ndim > 1 and name.endswith("bias") for name, parameter in model.network.named_parameters())
    assert names
    assert not any(name.endswith("bias") for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["trainer.max_epochs=null", "trainer.max_steps=5"],
            "callbacks.sparsity: the number of epochs is not known; set trainer.max_epochs",
        ),
        (["trainer.max_epochs=1"], "callbacks.sparsity: needs at least 2 epochs"),
        (
            ["callbacks.ema_weight_averaging={decay: 0.9}"],
            "callbacks.sparsity: cannot be combined with weight averaging",
        ),
    ],
)
def test_what_is_not_possible(options, message, tmp_path, capsys):
    assert train.main([*SHORT, *options, f"run.root={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
