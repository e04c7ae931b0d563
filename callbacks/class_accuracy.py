"""How many of each class are recognised, as bars in TensorBoard."""

from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.classification import MulticlassConfusionMatrix

from callbacks.drawing import BLACK, BLUE, CARD, GREY, PALE, TEXT, canvas, drawable, font, pixels, shortened
from callbacks.evaluation import EvaluationCallback, Stage

# K classes

MOST_ROWS = 25  # of a column of bars
MOST_CLASSES = 100  # that are drawn
ROW, LEAST_BAR, NAME, FIGURES = 19, 90, 120, 128  # pixels: height of a row, width of a full bar, of names, of figures


class ClassAccuracy(EvaluationCallback):
    """`pictures/class_accuracy` under IMAGES: for each class the share of its samples that are recognised; beyond 25
    classes sorted, the worst first, and of more than 100 these alone."""

    def begin(self, pl_module: LightningModule) -> None:
        num_classes = pl_module.hparams["num_classes"]
        self._matrix = MulticlassConfusionMatrix(num_classes, validate_args=False).to(pl_module.device)

    def see(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        self._matrix.update(logits, labels)

    def gather(self) -> Tensor:
        return self._matrix.compute()

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: SummaryWriter, gathered: Any
    ) -> None:
        names = drawable(pl_module.hparams["class_names"] or [str(i) for i in range(len(gathered))])
        picture = draw(gathered.diagonal().cpu().numpy(), gathered.sum(1).cpu().numpy(), names)
        writer.add_image("pictures/class_accuracy", picture, trainer.global_step, dataformats="HWC")


def draw(hits: np.ndarray, samples: np.ndarray, names: list[str]) -> np.ndarray:
    """A picture (H, W, 3) of bars.

    Args:
        hits: (K,) samples of each class that are recognised.
        samples: (K,) of each class; one without any has no bar.
        names: of the K classes.
    """
    shares = hits / np.maximum(samples, 1)
    in_order = np.where(samples > 0, shares, 1.0)  # a class without samples is not the worst
    order = np.arange(len(names)) if len(names) <= MOST_ROWS else np.argsort(in_order, kind="stable")[:MOST_CLASSES]
    columns = -(-len(order) // MOST_ROWS)
    rows = -(-len(order) // columns)
    name_width = 14 + min(NAME, max(int(font(TEXT).getlength(name)) for name in names))
    bar = max(LEAST_BAR, CARD - name_width - FIGURES)
    width = name_width + bar + FIGURES
    image, pen = canvas(columns * width, 50 + rows * ROW)
    title = "recognised, % of each class's samples"
    if len(order) < len(names):
        title += f": the worst {len(order)} of {len(names):,}"
    mean = hits.sum() / max(1, samples.sum())
    pen.text((6, 4), title, GREY, font(TEXT))
    for place, i in enumerate(order):
        left, top = place // rows * width, 24 + place % rows * ROW
        begin = left + name_width
        pen.text((begin - 6, top + ROW / 2), shortened(names[i], NAME, TEXT), BLACK, font(TEXT), anchor="rm")
        pen.rectangle((begin, top + 2, begin + bar, top + ROW - 3), fill=PALE)
        if samples[i]:
            pen.rectangle((begin, top + 2, begin + bar * shares[i], top + ROW - 3), fill=BLUE)
        text = f"{100 * shares[i]:.1f} ({hits[i]:,} of {samples[i]:,})" if samples[i] else "no samples"
        pen.text((begin + bar + 5, top + ROW / 2), text, BLACK, font(TEXT - 1), anchor="lm")
    for column in range(columns):  # where a class would be if all were alike
        x = column * width + name_width + bar * mean
        pen.line((x, 22, x, 26 + rows * ROW), BLACK, 1)
    pen.text((6, 30 + rows * ROW), f"thin line: all samples, {100 * mean:.1f} %", GREY, font(TEXT))
    return pixels(image)
