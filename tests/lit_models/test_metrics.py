"""Metrics by class, compared with torchmetrics and for many classes."""

import pytest
import torch
from lightning.pytorch import Trainer
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from datamodules.parts.batches import EpochOrder, TensorBatches
from lit_models.mlp import LitMLP
from lit_models.parts.metrics import ClassMetrics


@pytest.mark.parametrize("num_classes", [2, 3, 7, 1000])
@pytest.mark.parametrize("batch_size", [1, 64, 300])
def test_class_metrics_are_those_of_torchmetrics(num_classes, batch_size):
    generator = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(300, num_classes, generator=generator)
    logits[:, num_classes // 2] = -9  # never predicted
    labels = torch.randint(1, num_classes, (300,), generator=generator)  # 0 never occurs
    metrics = ClassMetrics(num_classes)
    for rows in torch.arange(300).split(batch_size):
        metrics.update(logits[rows], labels[rows])
    found = metrics.compute()
    assert found["accuracy"] == pytest.approx(multiclass_accuracy(logits, labels, num_classes, "micro").item())
    assert found["f1"] == pytest.approx(multiclass_f1_score(logits, labels, num_classes, "macro").item())
    torch.testing.assert_close(found["class_accuracy"], multiclass_accuracy(logits, labels, num_classes, None))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_type_are_counted(dtype):
    metrics = ClassMetrics(3)
    metrics.update(torch.eye(3), torch.tensor([0, 1, 0], dtype=dtype))
    assert metrics.compute()["class_accuracy"].tolist() == [0.5, 1.0, 0.0]


def test_without_samples_all_metrics_are_0():
    metrics = ClassMetrics(3)
    metrics.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert all(not value.any() for value in metrics.compute().values())


def test_a_million_classes_need_no_square_matrix():
    """10^12 pairs of classes would need 8 TB."""
    metrics = ClassMetrics(1_000_000)
    logits = torch.zeros(2, 1_000_000)
    logits[0, 999_999] = logits[1, 5] = 1
    metrics.update(logits, torch.tensor([999_999, 7]))
    found = metrics.compute()
    assert (found["accuracy"], found["class_accuracy"].sum()) == (0.5, 1)
    assert found["f1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "name",
    ["x/dataloader_idx_0", "/dataloader_idx_", "x/dataloader_idx_0/y", "", "/", "a b", "_step", "val/loss", "名\x1b"],
)
def test_a_class_can_have_any_name(name, tmp_path):
    model = LitMLP((4,), 2, [4], class_names=[name, "other"])
    data = TensorBatches(torch.randn(6, 4), torch.tensor([0, 1] * 3), EpochOrder(6, 3, shuffle=False))
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.test(model, data, verbose=False)
    assert f"test_class_accuracy/{name}" in trainer.callback_metrics
