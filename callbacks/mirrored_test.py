"""The test once more, each image also mirrored: reported apart, because it takes twice the work of one prediction."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics.classification import MulticlassAccuracy


class MirroredTest(Callback):
    """`test_mirrored/accuracy`: of the mean of two predictions, for an image and for its mirror image.

    For images (B, C, H, W) whose class does not depend on left and right; not for digits.
    """

    accepts = ("image",)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        num_classes = pl_module.hparams["num_classes"]
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
        probabilities = outputs.softmax(1) + mirrored.float().softmax(1)
        self._accuracy.update(probabilities, labels)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("test_mirrored/accuracy", self._accuracy.compute())
