"""How many of each class are recognised, as bars in TensorBoard."""

from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.classification import MulticlassConfusionMatrix

from callbacks.drawing import BLACK, BLUE, GREY, PALE, canvas, drawable, font, pixels, shortened
from callbacks.evaluation import EvaluationCallback, Stage

# K classes

MOST_ROWS = 25  # of a column of bars
ROW, BAR, NAME, FIGURES = 24, 220, 150, 130  # pixels: height of a row, width of a full bar, of names, of figures


class ClassAccuracy(EvaluationCallback):
    """`class_accuracy` under IMAGES: for each class the share of its samples that are recognised; beyond 25 classes sorted,
    the worst first."""

    def begin(self, pl_module: LightningModule) -> None:
        num_classes = pl_module.hparams["num_classes"]
        self._matrix = MulticlassConfusionMatrix(num_classes, validate_args=False).to(pl_module.device)

    def see(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        self._matrix.update(logits, labels)

    def show(self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: SummaryWriter | None) -> None:
        counts = self._matrix.compute()  # over all processes
        if writer is not None:
            names = drawable(pl_module.hparams["class_names"] or [str(i) for i in range(len(counts))])
            picture = draw(counts.diagonal().cpu().numpy(), counts.sum(1).cpu().numpy(), names)
            writer.add_image("class_accuracy", picture, trainer.global_step, dataformats="HWC")


def draw(hits: np.ndarray, samples: np.ndarray, names: list[str]) -> np.ndarray:
    """A picture (H, W, 3) of bars.

    Args:
        hits: (K,) samples of each class that are recognised.
        samples: (K,) of each class; one without any has no bar.
        names: of the K classes.
    """
    shares = hits / np.maximum(samples, 1)
    order = np.arange(len(names)) if len(names) <= MOST_ROWS else np.argsort(shares, kind="stable")
    columns = -(-len(names) // MOST_ROWS)
    rows = -(-len(names) // columns)
    name_width = 24 + min(NAME, max(int(font(15).getlength(name)) for name in names))
    width = name_width + BAR + FIGURES
    image, pen = canvas(max(columns * width + 20, 340), 64 + rows * ROW)
    mean = hits.sum() / max(1, samples.sum())
    pen.text((12, 8), "recognised, % of each class's samples", GREY, font(15))
    for place, i in enumerate(order):
        left, top = 8 + place // rows * width, 36 + place % rows * ROW
        begin = left + name_width
        pen.text((begin - 8, top + ROW / 2), shortened(names[i], NAME, 15), BLACK, font(15), anchor="rm")
        pen.rectangle((begin, top + 3, begin + BAR, top + ROW - 4), fill=PALE)
        if samples[i]:
            pen.rectangle((begin, top + 3, begin + BAR * shares[i], top + ROW - 4), fill=BLUE)
        text = f"{100 * shares[i]:.1f}  ({hits[i]:,} of {samples[i]:,})" if samples[i] else "no samples"
        pen.text((begin + BAR + 8, top + ROW / 2), text, BLACK, font(13), anchor="lm")
    for column in range(columns):  # where a class would be if all were alike
        x = 8 + column * width + name_width + BAR * mean
        pen.line((x, 34, x, 38 + rows * ROW), BLACK, 1)
    pen.text((12, 40 + rows * ROW), f"thin line: all samples, {100 * mean:.1f} %", GREY, font(13))
    return pixels(image)
