"""Precision and recall of each class at every threshold, for TensorBoard's PR CURVES."""

from typing import Annotated, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics.classification import MulticlassPrecisionRecallCurve

from callbacks.evaluation import EvaluationCallback, Stage
from engine.training.loggers import PictureWriter

# K classes, T thresholds

THRESHOLDS = 127  # the most that TensorBoard shows


class PRCurves(EvaluationCallback):
    """`pr_curves/CLASS`: a class against all others.

    Args:
        max_classes: Largest number of curves. If there are more classes, those with the lowest average precision are shown.
        options: Those of `EvaluationCallback`.
    """

    def __init__(self, max_classes: Annotated[int, ">= 1"] = 20, **options: Any) -> None:
        super().__init__(**options)
        self.max_classes = max_classes

    def begin(self, pl_module: LightningModule) -> None:
        curves = MulticlassPrecisionRecallCurve(
            pl_module.hparams["num_classes"], thresholds=THRESHOLDS, validate_args=False
        )
        self._curves = curves.to(pl_module.device)

    def update(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        self._curves.update(logits.softmax(1), labels)  # it may take logits for probabilities

    def gather(self) -> Tensor:
        with self._curves.sync_context():
            return self._curves.confmat.cpu()  # (T, K, 2, 2): true x predicted

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: PictureWriter, gathered: Any
    ) -> None:
        (true_no, false_yes), (false_no, true_yes) = gathered.permute(2, 3, 1, 0)  # each (K, T)
        precision = torch.where(true_yes + false_yes > 0, true_yes / (true_yes + false_yes).clamp(min=1), 1.0)
        recall = true_yes / (true_yes + false_no).clamp(min=1)
        areas = (-recall.diff(dim=1) * precision[:, :-1]).sum(1)  # (K,): recall falls as the threshold rises
        names = pl_module.class_names
        for i in areas.argsort(stable=True)[: self.max_classes].sort().values.tolist():
            curve: list[Any] = [one[i].numpy() for one in (true_yes, false_yes, true_no, false_no, precision, recall)]
            writer.add_pr_curve_raw(f"pr_curves/{names[i]}", *curve, global_step=trainer.global_step)  # type: ignore[misc]
