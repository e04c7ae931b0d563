"""Whether 90 % sure means right nine times of ten, as a picture in TensorBoard.

The diagram of Niculescu-Mizil and Caruana 2005 (https://doi.org/10.1145/1102351.1102430), and the expected calibration error
of Guo et al. 2017 (https://arxiv.org/abs/1706.04599), over 15 bins.
"""

from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.utilities import dim_zero_cat

from callbacks.evaluation import EvaluationCallback, Stage
from callbacks.parts.drawing import BLACK, BLUE, CARD, GREY, ORANGE, PALE, TEXT, canvas, font, pixels, upwards
from engine.training.loggers import PictureWriter

# N samples

BINS = 15
LEFT, TOP, SIDE, LOW = 46, 26, 280, 60  # pixels: margins, side of the diagram, height of the histogram below it


class ReliabilityDiagram(EvaluationCallback):
    """`pictures/reliability_diagram` under IMAGES: accuracy of the samples that got about the same probability, beside that
    probability, and how many got it."""

    def begin(self, pl_module: LightningModule) -> None:
        num_classes = pl_module.hparams["num_classes"]
        self._metric = MulticlassCalibrationError(num_classes, n_bins=BINS, validate_args=False).to(pl_module.device)

    def update(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        self._metric.update(logits.softmax(1), labels)  # it may take logits for probabilities

    def gather(self) -> tuple[np.ndarray, np.ndarray, float]:
        error = float(self._metric.compute())
        with self._metric.sync_context():
            lists = (self._metric.confidences, self._metric.accuracies)
            confidences, hits = (dim_zero_cat(one).float().nan_to_num().cpu().numpy() for one in lists)
        return confidences, hits, error

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: PictureWriter, gathered: Any
    ) -> None:
        picture = draw(*gathered)
        writer.add_image("pictures/reliability_diagram", picture, trainer.global_step, dataformats="HWC")


def draw(confidences: np.ndarray, hits: np.ndarray, error: float) -> np.ndarray:
    """A picture (H, W, 3) of a reliability diagram.

    Args:
        confidences: (N,) probability of the predicted class.
        hits: (N,) 1 where it was the true one, else 0.
        error: The expected calibration error.
    """
    bins = np.minimum((confidences * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, weights=one, minlength=BINS) / np.maximum(counts, 1) for one in (confidences, hits)]
    image, pen = canvas(CARD, TOP + SIDE + LOW + 74)
    bottom, width = TOP + SIDE, SIDE / BINS
    floor = bottom + LOW + 14  # of the histogram
    pen.text(
        (LEFT + SIDE / 2, 6), f"expected calibration error {100 * error:.1f} %", BLACK, font(TEXT + 1), anchor="ma"
    )
    for tick in range(0, 101, 20):
        y, x = bottom - SIDE * tick / 100, LEFT + SIDE * tick / 100
        pen.line((LEFT, y, LEFT + SIDE, y), PALE)
        pen.text((LEFT - 6, y), str(tick), GREY, font(TEXT), anchor="rm")
        pen.text((x, floor + 4), str(tick), GREY, font(TEXT), anchor="ma")
    for i, (count, sure, right) in enumerate(zip(counts, *sums, strict=True)):
        left, more = LEFT + i * width + 1, LEFT + (i + 1) * width - 2
        if count:
            low, high = sorted((bottom - SIDE * right, bottom - SIDE * sure))
            pen.rectangle((left, bottom - SIDE * right, more, bottom), fill=BLUE)
            pen.rectangle((left, low, more, high), outline=ORANGE, width=2)
            pen.rectangle((left, floor - (LOW - 4) * count / counts.max(), more, floor), fill=GREY)
    pen.line((LEFT, bottom, LEFT + SIDE, TOP), BLACK, 2)
    pen.rectangle((LEFT, TOP, LEFT + SIDE, bottom), outline=GREY)
    pen.line((LEFT, floor, LEFT + SIDE, floor), GREY)
    upwards(image, "right, %", 10, TOP + SIDE / 2 + 24, TEXT)
    upwards(image, "samples", 10, floor - 2, TEXT)
    pen.text((LEFT + SIDE / 2, floor + 20), "probability of the predicted class, %", GREY, font(TEXT), anchor="ma")
    told = "below the line: too sure of itself; orange: the gap"
    pen.text((LEFT + SIDE / 2, floor + 38), told, GREY, font(TEXT), anchor="ma")
    return pixels(image)
