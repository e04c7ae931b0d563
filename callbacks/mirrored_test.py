"""A second test accuracy. It uses the mean of the predictions for each image and its mirror image.

The metric has a separate name, because it takes twice the computation.
"""

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics.classification import MulticlassAccuracy

from engine.contracts import Classifier


class MirroredTest(Callback):
    """Logs `test_mirrored/accuracy`, the accuracy of the mean prediction for each image and its mirror image.

    Use it for images (B, C, H, W) whose class does not change when left and right are swapped. Do not use it for digits.
    """

    accepts = ("image",)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        num_classes = len(cast(Classifier, pl_module).class_names)
        self._accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        images, labels = batch
        with trainer.precision_plugin.forward_context():
            mirrored = pl_module(images.flip(3))
        self._accuracy.update(outputs.softmax(1) + mirrored.float().softmax(1), labels)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("test_mirrored/accuracy", self._accuracy.compute())
