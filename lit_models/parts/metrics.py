"""Metrics of training and evaluation. They are synchronized between processes."""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

# B batch, K classes


class WeightedMean(Metric):
    """Mean of values that have a weight, such as losses of batches with different sizes.

    It replaces torchmetrics' MeanMetric, which ignores the weights with ``nan_strategy="disable"``. With any other strategy,
    MeanMetric checks every batch for NaN, for which the CPU has to wait for the GPU.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: int) -> None:
        if weight:  # the mean loss of an empty batch is NaN
            self.total.add_(value, alpha=weight)  # in place, because setting an attribute of a module takes longer
            self.weight.add_(weight)

    def compute(self) -> Tensor:
        return self.total / self.weight


class TrainingMeans(WeightedMean):
    """Mean loss and accuracy over the samples of an epoch. It is a single metric, because every step updates it."""

    correct: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        super().update(loss, len(labels))
        self.correct.add_((logits.argmax(1) == labels).sum())

    def compute(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().compute(), self.correct / self.weight


class CalibrationError(MulticlassCalibrationError):
    """Expected calibration error of logits (B, K).

    The base class accepts logits as well, but it takes them for probabilities if all values of a batch are between 0 and 1.
    """

    def update(self, logits: Tensor, labels: Tensor) -> None:
        super().update(logits.softmax(1), labels)


def evaluation_metrics(num_classes: int) -> MetricCollection:
    """Return the metrics of validation and test, which are updated with logits (B, K) and labels (B,)."""
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
            "calibration_error": CalibrationError(num_classes, n_bins=15, validate_args=False),
            "class_accuracy": MulticlassAccuracy(num_classes, average="none", validate_args=False),
        }
    )
