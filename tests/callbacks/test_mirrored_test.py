"""The test accuracy with mirrored images, beside the plain test accuracy."""

import pytest
import torch

import train
from lit_models.cnn import LitCNN
from tests.runs import figures, run

SMALL = ["--config", "configs/cifar10_cnn.yaml", "model.widths=[8]", "data.batch_size=32", "trainer.max_epochs=1"]


@pytest.mark.slow
def test_accuracy_is_that_of_the_mean_of_two_predictions(tmp_path, small_data, capsys):
    options = [f"data.root={small_data}", "trainer.precision=32-true", "callbacks.mirrored_test={}"]
    folder = run(tmp_path / "runs", *SMALL, *options)
    model = LitCNN.load_from_checkpoint(folder / "checkpoints/best.ckpt").eval()
    content = torch.frombuffer(
        bytearray((small_data / "cifar-10-batches-bin/test_batch.bin").read_bytes()), dtype=torch.uint8
    )
    records = content.view(-1, 3073)
    images, labels = records[:, 1:].view(-1, 3, 32, 32), records[:, 0].long()
    with torch.inference_mode():
        plain, mirrored = model(images), model(images.flip(3))
    expected = (plain.softmax(1) + mirrored.softmax(1)).argmax(1).eq(labels).float().mean().item()
    assert figures(folder)["test_mirrored/accuracy"] == pytest.approx(expected, abs=1e-6)
    assert figures(folder)["test/accuracy"] == pytest.approx(plain.argmax(1).eq(labels).float().mean().item(), abs=1e-6)
    assert "mirrored     accuracy" in capsys.readouterr().out


def test_features_are_refused_before_the_run_starts(capsys):
    assert train.main(["--config", "configs/iris_mlp.yaml", "callbacks.mirrored_test={}"]) == 2
    assert "callbacks.mirrored_test: is for image, and iris is features; leave it out" in capsys.readouterr().err
