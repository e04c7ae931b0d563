"""Draws a reliability diagram: the accuracy of predictions against their probability.

The diagram was introduced by Niculescu-Mizil and Caruana 2005 (https://doi.org/10.1145/1102351.1102430). The expected
calibration error, with 15 bins, is from Guo et al. 2017 (https://arxiv.org/abs/1706.04599).
"""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics import Metric

from callbacks.evaluation import EvaluationCallback, Stage
from engine.contracts import Classifier
from engine.drawing import BLACK, BLUE, CARD_WIDTH, GREY, ORANGE, PALE, TEXT_SIZE, Canvas
from engine.training.loggers import PictureWriter

# B batch, K classes, H height, W width

BINS = 15
# in pixels: margins, side of the diagram, height of the histogram below it
LEFT, TOP, SIDE, HISTOGRAM = 46, 26, 280, 60


class ReliabilityDiagram(EvaluationCallback):
    """Logs `pictures/reliability_diagram`: accuracy against probability.

    Samples are grouped by the probability of their predicted class. A bar shows the accuracy of a group. A histogram shows
    the number of samples in each group.
    """

    def begin(self, pl_module: Classifier) -> None:
        self._bins = Bins().to(pl_module.device)

    def update(self, pl_module: Classifier, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        self._bins.update(logits, labels)

    def gather(self) -> np.ndarray:
        return self._bins.compute().numpy()

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        picture = draw_diagram(*gathered)
        writer.add_image("pictures/reliability_diagram", picture, trainer.global_step, dataformats="HWC")


class Bins(Metric):
    """Sums for each bin: number of samples, probabilities of the predicted classes, number of correct predictions.

    The sums are integers in units of 2**-30, so they are exact for millions of samples. They are not float64, because MPS
    has none.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, K), labels (B,)."""
        probabilities, predicted = logits.softmax(1).float().nan_to_num().max(1)  # (B,)
        bins = (probabilities * BINS).long().clamp(max=BINS - 1)
        values = torch.stack([torch.ones_like(probabilities), probabilities, (predicted == labels).float()])  # (3, B)
        self.sums.index_add_(1, bins, (values * 2**30).long())

    def compute(self) -> Tensor:
        """Return the sums (3, BINS) on the CPU in float64."""
        return self.sums.cpu().double() / 2**30


def calibration_error(counts: np.ndarray, probabilities: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error, 0 to 1. The arguments (BINS,) are the sums of `Bins`."""
    return float(np.abs(correct - probabilities).sum() / counts.sum())


def draw_diagram(counts: np.ndarray, probabilities: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Draw a reliability diagram (H, W, 3). The arguments (BINS,) are the sums of `Bins`."""
    canvas = Canvas(CARD_WIDTH, TOP + SIDE + HISTOGRAM + 74)
    right, bottom, middle, bin_width = LEFT + SIDE, TOP + SIDE, LEFT + SIDE / 2, SIDE / BINS
    floor = bottom + HISTOGRAM + 14  # bottom edge of the histogram
    error = calibration_error(counts, probabilities, correct)
    canvas.write(middle, 6, f"expected calibration error {100 * error:.1f} %", size=TEXT_SIZE + 1, anchor="ma")
    for tick in range(0, 101, 20):
        x, y = LEFT + SIDE * tick / 100, bottom - SIDE * tick / 100
        canvas.pen.line((LEFT, y, right, y), PALE)
        canvas.write(LEFT - 6, y, str(tick), GREY, anchor="rm")
        canvas.write(x, floor + 4, str(tick), GREY, anchor="ma")
    for i in np.flatnonzero(counts):
        start, end = LEFT + i * bin_width + 1, LEFT + (i + 1) * bin_width - 2
        accuracy, probability = bottom - SIDE * correct[i] / counts[i], bottom - SIDE * probabilities[i] / counts[i]
        gap = (start, min(accuracy, probability), end, max(accuracy, probability))
        canvas.pen.rectangle((start, accuracy, end, bottom), fill=BLUE)
        canvas.pen.rectangle(gap, outline=ORANGE, width=2)
        canvas.pen.rectangle((start, floor - (HISTOGRAM - 4) * counts[i] / counts.max(), end, floor), fill=GREY)
    canvas.pen.line((LEFT, bottom, right, TOP), BLACK, 2)
    canvas.pen.rectangle((LEFT, TOP, right, bottom), outline=GREY)
    canvas.pen.line((LEFT, floor, right, floor), GREY)
    canvas.write_upwards(10, TOP + SIDE / 2 + 36, "accuracy, %")
    canvas.write_upwards(10, floor - 2, "samples")
    canvas.write(middle, floor + 20, "probability of the predicted class, %", GREY, anchor="ma")
    canvas.write(middle, floor + 38, "below the diagonal: overconfident; orange: the gap", GREY, anchor="ma")
    return canvas.to_array()
