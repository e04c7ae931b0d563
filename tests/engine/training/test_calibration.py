"""Temperature scaling: the fit, the checkpoint that holds the temperature, and the metrics of the test."""

import threading

import pytest
import torch

from engine.training import checkpoint_file
from engine.training.calibration import fit_temperature
from lit_models.mlp import LitMLP
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

QUICK = ["trainer.max_epochs=20", *WITHOUT_PICTURES]


def samples(temperature: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 5 classes, and labels that are drawn with the probabilities of the logits divided by `temperature`."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, 5, generator=generator)
    return logits, (logits / temperature).softmax(1).multinomial(1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_of_the_labels_is_found(temperature):
    logits, labels = samples(temperature)
    batches = list(zip(logits.split(3000), labels.split(3000), strict=True))
    assert fit_temperature(batches) == pytest.approx(temperature, rel=0.03)


def test_a_few_samples_without_errors_change_little():
    """Their cross-entropy alone is smallest at temperature 0."""
    logits = 3 * torch.eye(5)
    assert 0.6 < fit_temperature([(logits, torch.arange(5))]) < 1


def test_processes_find_the_same_temperature_as_one():
    logits, labels = samples(2.0, 1000)
    barrier, slopes, found = threading.Barrier(2), [torch.zeros(()), torch.zeros(())], [0.0, 0.0]

    def fit(number: int) -> None:
        def add(slope: torch.Tensor) -> torch.Tensor:
            slopes[number] = slope
            barrier.wait()
            total = slopes[0] + slopes[1]
            barrier.wait()
            return total

        found[number] = fit_temperature([(logits[number::2], labels[number::2])], add)

    threads = [threading.Thread(target=fit, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [pytest.approx(fit_temperature([(logits, labels)]), rel=1e-5)] * 2


@pytest.mark.parametrize("options", [[], ["callbacks.ema_weight_averaging={}"]], ids=["plain", "averaged weights"])
def test_the_best_checkpoint_has_the_temperature(tmp_path, options, capsys):
    folder = run(tmp_path, "--config", IRIS, *QUICK, *options)
    best, last = (checkpoint_file.read(folder / f"checkpoints/{name}.ckpt")["state_dict"] for name in ("best", "last"))
    metrics = figures(folder)
    assert metrics["temperature"] == float(best["temperature"]) != 1
    assert last["temperature"] == 1
    assert metrics["test/calibration_error"] != metrics["test/uncalibrated_error"]
    assert "calibration  test error" in capsys.readouterr().out
    model = LitMLP.load_from_checkpoint(folder / "checkpoints/best.ckpt").eval()
    inputs = torch.randn(3, 4)
    assert torch.equal(model(inputs), model.train()(inputs) / best["temperature"])


def test_validation_and_classes_do_not_depend_on_it(tmp_path):
    calibrated, plain = (
        figures(run(tmp_path / value, "--config", IRIS, *QUICK, f"run.calibrate={value}"))
        for value in ("true", "false")
    )
    assert {"temperature", "test/uncalibrated_error"} & plain.keys() == set()
    assert plain["test/calibration_error"] == pytest.approx(calibrated["test/uncalibrated_error"], abs=1e-6)
    same = [name for name in plain if name.startswith("val/") or name in ("test/accuracy", "test/f1", "best_epoch")]
    assert len(same) == 7
    assert {name: plain[name] for name in same} == {name: calibrated[name] for name in same}


def test_a_checkpoint_without_a_temperature_has_1(tmp_path):
    checkpoint = {"state_dict": (model := LitMLP([4], 3)).state_dict(), "hyper_parameters": dict(model.hparams)}
    del checkpoint["state_dict"]["temperature"]
    checkpoint["pytorch-lightning_version"] = "2.6.6"
    checkpoint_file.write(checkpoint, tmp_path / "old.ckpt")
    assert LitMLP.load_from_checkpoint(tmp_path / "old.ckpt").temperature == 1
