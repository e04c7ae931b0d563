"""Metrics of training and evaluation. They are synchronized between processes."""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat

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
        # an integer, because float32 cannot count more than 16.8 million samples
        self.add_state("weight", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: int) -> None:
        if self.total.dtype in (torch.bfloat16, torch.float16):  # `Module.to` has converted it with the model
            self.total = self.total.float()
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


class CalibrationError(Metric):
    """Expected calibration error of logits (B, K) with 15 bins (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    MulticlassCalibrationError of torchmetrics keeps the confidences of all samples and adds them in float32. Here the sums
    are integers, so the batch size and the number of processes do not change the result.
    """

    full_state_update = False
    gaps: Tensor
    num_samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        # hits minus confidences of each bin, in units of 2**-30
        self.add_state("gaps", torch.zeros(15, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        confidences, predicted = logits.softmax(1).nan_to_num().max(1)  # (B,)
        bins = (confidences * len(self.gaps)).long().clamp(max=len(self.gaps) - 1)
        hits = (predicted == labels).long() * 2**30
        self.gaps.index_add_(0, bins, hits - (confidences * 2**30).long())
        self.num_samples.add_(len(labels))

    def compute(self) -> Tensor:
        return self.gaps.abs().sum() / (self.num_samples * 2**30)


class ClassMetrics(Metric):
    """Accuracy, F1 score (mean over the classes that occur), and accuracy of each class (K,), 0 for an absent class.

    torchmetrics counts all pairs of classes in every batch. With 10,000 classes, a batch would take 0.6 s and 800 MB.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # samples, predictions and correct predictions of each class
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        labels, predicted = labels.long(), logits.argmax(1)
        ones, hits = torch.ones_like(labels), (predicted == labels).long()
        for count, classes, values in zip(self.counts, (labels, predicted, labels), (ones, ones, hits), strict=True):
            count.index_add_(0, classes, values)

    def compute(self) -> dict[str, Tensor]:
        samples, predictions, hits = self.counts
        occurs = (samples + predictions).clamp(max=1)
        f1 = 2 * hits / (samples + predictions).clamp(min=1)
        return {
            "accuracy": hits.sum() / samples.sum().clamp(min=1),
            "f1": f1.sum() / occurs.sum().clamp(min=1),
            "class_accuracy": hits / samples.clamp(min=1),
        }


class BinaryRanking(Metric):
    """ROC AUC and average precision of the second of two classes, from logits (B, 2). They keep a score of every sample."""

    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.scores.append(logits[:, 1] - logits[:, 0])
        self.labels.append(labels)

    def compute(self) -> dict[str, Tensor]:
        # ranks in place of probabilities, which would be equal for large logits; on the CPU, because MPS has no float64
        _, ranks = dim_zero_cat(self.scores).cpu().unique(return_inverse=True)
        scores, labels = ranks.double() / len(ranks), dim_zero_cat(self.labels).cpu()
        return {
            "roc_auc": binary_auroc(scores, labels, validate_args=False).float(),
            "average_precision": binary_average_precision(scores, labels, validate_args=False).float(),
        }


def evaluation_metrics(num_classes: int) -> MetricCollection:
    """Return the metrics of validation and test, which are updated with logits (B, K) and labels (B,)."""
    ranking = {"ranking": BinaryRanking()} if num_classes == 2 else {}
    return MetricCollection({"calibration_error": CalibrationError(), "classes": ClassMetrics(num_classes), **ranking})
