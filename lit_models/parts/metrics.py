"""What is measured in training and in evaluation, over any number of processes."""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

# B batch, K classes


class MeanLoss(Metric):
    """Mean over samples, on any number of processes.

    Torchmetrics' MeanMetric forgets the weights with ``nan_strategy="disable"``, and with any other looks for NaN in every
    batch, for which a GPU has to stop.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, batch_size: int) -> None:
        if batch_size:  # the mean of nothing is no number
            self.total.add_(loss, alpha=batch_size)  # in place: setting a module's attribute costs more than the sum
            self.count.add_(batch_size)

    def compute(self) -> Tensor:
        return self.total / self.count


class TrainingMeans(MeanLoss):
    """Mean loss and accuracy over an epoch's samples: one metric, because it is part of every step."""

    hits: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        super().update(loss, len(labels))
        self.hits.add_((logits.argmax(1) == labels).sum())

    def compute(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().compute(), self.hits / self.count


class CalibrationError(MulticlassCalibrationError):
    """Of logits: torchmetrics takes those for probabilities that all lie between 0 and 1, as those of a small batch may."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        super().update(logits.softmax(1), labels)


def accuracy(num_classes: int) -> MulticlassAccuracy:
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False)


def evaluation_metrics(num_classes: int) -> MetricCollection:
    return MetricCollection(
        {
            "accuracy": accuracy(num_classes),
            "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
            "calibration_error": CalibrationError(num_classes, n_bins=15, validate_args=False),
            "class_accuracy": MulticlassAccuracy(num_classes, average="none", validate_args=False),
        }
    )
