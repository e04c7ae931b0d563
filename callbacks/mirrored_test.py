"""A second test accuracy, from the mean of two predictions: for each image and for its mirror image.

It has a name of its own, because it takes twice the computation of a single prediction.
"""

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics.classification import MulticlassAccuracy

from engine.contracts import Classifier


class MirroredTest(Callback):
    """`test_mirrored/accuracy`: the test accuracy of the mean of two predictions, for an image and for its mirror image.

    For images (B, C, H, W) whose class does not change when left and right are swapped. Digits are an example where it does.
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
