"""The test set's confusion matrix as a picture in TensorBoard.

Drawn with Pillow, which TensorBoard needs anyway: Matplotlib would add half a second to every start.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

LIGHT, DARK = np.array([247, 251, 255]), np.array([8, 48, 107])  # the ends of ColorBrewer's "Blues", safe in print
MOST_NUMBERS = 20  # beyond so many classes the cells are too small for text


class ConfusionMatrix(Callback):
    """Rows are true classes and sum to 1, columns are predicted ones; `test_confusion_matrix` under IMAGES."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        num_classes = pl_module.hparams["num_classes"]
        self._matrix = MulticlassConfusionMatrix(num_classes, validate_args=False).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._matrix.update(outputs, batch[1])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts: Tensor = self._matrix.compute()  # over all processes
        names = pl_module.hparams["class_names"] or [str(i) for i in range(len(counts))]
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            picture = draw(counts.cpu().numpy(), drawable(names))
            trainer.logger.experiment.add_image(
                "test_confusion_matrix", picture, trainer.global_step, dataformats="HWC"
            )


def drawable(names: Sequence[str]) -> list[str]:
    """`names`, with a class's number for one that the font has no glyphs for (Pillow's own has no Chinese ones)."""
    font = ImageFont.load_default(size=13)
    missing = bytes(font.getmask("\uffff"))
    return [
        str(i) if any(bytes(font.getmask(one)) == missing for one in name) else name for i, name in enumerate(names)
    ]


def draw(counts: np.ndarray, names: list[str]) -> np.ndarray:
    """A picture (H, W, 3) of a confusion matrix (K, K) of counts.

    Args:
        counts: true x predicted.
        names: of the K classes.
    """
    num_classes = len(names)
    cell = max(44, 264 // num_classes) if num_classes <= MOST_NUMBERS else max(6, 900 // num_classes)
    font = ImageFont.load_default(size=13 if num_classes <= MOST_NUMBERS else max(7, cell - 2))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # a class without samples has an empty row
    margin = max(54, 42 + max(int(font.getlength(name)) for name in names))
    side = num_classes * cell
    image = Image.new("RGB", (margin + side + 12, margin + side + 12), "white")
    pen = ImageDraw.Draw(image)
    for row in range(num_classes):
        for column in range(num_classes):
            share, left, top = shares[row, column], margin + column * cell, margin + row * cell
            colour = tuple((LIGHT + (DARK - LIGHT) * share).astype(int))
            pen.rectangle((left, top, left + cell - 1, top + cell - 1), fill=colour)
            if num_classes <= MOST_NUMBERS and counts[row, column]:
                text, middle = f"{100 * share:.0f}" if share >= 0.01 else "<1", (left + cell / 2, top + cell / 2)
                pen.text(middle, text, "white" if share > 0.5 else "black", font, anchor="mm")
    for i, name in enumerate(names):
        pen.text((margin - 6, margin + (i + 0.5) * cell), name, "black", font, anchor="rm")
    title = ImageFont.load_default(size=14)
    pen.text((margin + side / 2, 4), "predicted (cells: % of the true class)", "black", title, anchor="ma")
    _sideways(image, names, font, margin, cell)
    _sideways(image, ["true"], title, 0, 2 * margin + side, bottom=margin + side // 2, middle=12)
    return np.asarray(image)


def _sideways(
    image: Image.Image, names: list[str], font: Any, start: int, cell: int, bottom: int | None = None, middle: int = 0
) -> None:
    """Write `names` upwards, one per column of width `cell` from `start`, ending above `bottom`."""
    for i, name in enumerate(names):
        strip = Image.new("RGB", (int(font.getlength(name)) + 2, int(font.size) + 5), "white")
        ImageDraw.Draw(strip).text((1, 1), name, "black", font)
        turned = strip.rotate(90, expand=True)
        x = middle if middle else int(start + (i + 0.5) * cell)
        y = (bottom or start - 6) - turned.height
        image.paste(turned, (x - turned.width // 2, y))
