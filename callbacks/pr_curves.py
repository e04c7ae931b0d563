"""Logs the precision-recall curve of each class to TensorBoard (PR CURVES tab)."""

from typing import Annotated, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics.classification import MulticlassPrecisionRecallCurve

from callbacks.evaluation import EvaluationCallback, Stage
from engine.contracts import Classifier
from engine.training.loggers import PictureWriter

# B batch, K classes, T thresholds

THRESHOLDS = 127  # maximum number that TensorBoard shows


class PRCurves(EvaluationCallback):
    """Logs `pr_curves/CLASS`: precision and recall of each class against all other classes.

    Args:
        max_classes: Maximum number of curves. They show the classes with the lowest average precision.
        options: Options of `EvaluationCallback`.
    """

    needs_tensorboard = True

    def __init__(self, max_classes: Annotated[int, ">= 1"] = 20, **options: Any) -> None:
        super().__init__(**options)
        self.max_classes = max_classes

    def begin(self, pl_module: Classifier) -> None:
        num_classes = len(pl_module.class_names)
        curves = MulticlassPrecisionRecallCurve(num_classes, thresholds=THRESHOLDS, validate_args=False)
        self._curves = curves.to(pl_module.device)

    def update(self, pl_module: Classifier, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        # the metric would use logits as probabilities if all of them were between 0 and 1
        self._curves.update(logits.softmax(1), labels)

    def gather(self) -> Tensor:
        with self._curves.sync_context():
            return self._curves.confmat.cpu()  # (T, K, 2, 2): true x predicted

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        counts = gathered.permute(2, 3, 1, 0)  # (2, 2, K, T)
        (true_negatives, false_positives), (false_negatives, true_positives) = counts
        positives = true_positives + false_positives
        precision = torch.where(positives > 0, true_positives / positives.clamp(min=1), 1.0)
        recall = true_positives / (true_positives + false_negatives).clamp(min=1)
        average_precision = (-recall.diff(dim=1) * precision[:, :-1]).sum(1)  # (K,): recall falls as thresholds rise
        curves = (true_positives, false_positives, true_negatives, false_negatives, precision, recall)
        for i in average_precision.argsort(stable=True)[: self.max_classes].sort().values.tolist():
            values = [curve[i].numpy() for curve in curves]
            writer.add_pr_curve_raw(f"pr_curves/{pl_module.class_names[i]}", *values, global_step=trainer.global_step)
