"""Draws a confusion matrix and the accuracy of each class."""

from typing import Annotated, Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from callbacks.evaluation import EvaluationCallback, Stage
from engine.contracts import Classifier
from engine.drawing import (
    BLACK,
    BLUE,
    CARD_WIDTH,
    GREY,
    PALE,
    TEXT_SIZE,
    WHITE,
    Canvas,
    blend,
    replace_undrawable,
    shorten,
    text_width,
)
from engine.terminal import count_of
from engine.training.loggers import PictureWriter

# K classes, H height, W width, P cells of the matrix that are not 0; lengths are in pixels

LIGHT, DARK = (247, 251, 255), (8, 48, 107)  # both ends of ColorBrewer's "Blues" (colour-blind safe)
MAX_CLASSES = 100  # in one picture
MAX_NUMBERED_CLASSES = 20  # with more classes, the cells are too small for numbers
MATRIX_SIDE = 900  # side of a matrix without numbers
MAX_NAME_WIDTH = 100
LINE_HEIGHT = 17  # of the text below the matrix
# for the bars: number of rows, height of a row, and widths in a row
ROWS_PER_COLUMN, ROW_HEIGHT, MIN_BAR_WIDTH, MAX_BAR_NAME_WIDTH, VALUE_WIDTH = 25, 19, 90, 120, 128


class ConfusionMatrix(EvaluationCallback):
    """Logs `pictures/confusion_matrix` and `pictures/class_accuracy` (TensorBoard's IMAGES tab).

    The rows of the matrix are true classes, and the columns are predicted classes. If there are more than 100 classes, the
    matrix shows only the 100 classes with the most mistakes.

    Args:
        num_pairs: Number of most confused pairs of classes to list below the matrix.
        options: Options of `EvaluationCallback`.
    """

    def __init__(self, num_pairs: Annotated[int, ">= 0"] = 5, **options: Any) -> None:
        super().__init__(**options)
        self.num_pairs = num_pairs

    def begin(self, pl_module: Classifier) -> None:
        self._cells = Cells(len(pl_module.class_names)).to(pl_module.device)

    def update(self, pl_module: Classifier, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        self._cells.update(logits, labels)

    def gather(self) -> Tensor:
        return self._cells.compute()

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        names, cells = replace_undrawable(pl_module.class_names), gathered.cpu().numpy()
        samples, _, correct = count_by_class(cells, len(names))
        matrix, bars = draw_matrix(cells, names, self.num_pairs), draw_bars(correct, samples, names)
        writer.add_image("pictures/confusion_matrix", matrix, trainer.global_step, dataformats="HWC")
        writer.add_image("pictures/class_accuracy", bars, trainer.global_step, dataformats="HWC")


class Cells(Metric):
    """The cells (P, 3) of a confusion matrix that are not 0: true class, predicted class, number of samples.

    The time depends on the number of samples. A full matrix of 10,000 classes would have 100 million cells.
    """

    full_state_update = False
    codes: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("codes", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, K), labels (B,)."""
        self.codes.append(labels.long() * self.num_classes + logits.argmax(1))

    def compute(self) -> Tensor:
        codes, counts = dim_zero_cat(self.codes).unique(return_counts=True)
        return torch.stack([codes // self.num_classes, codes % self.num_classes, counts], dim=1)


def count_by_class(cells: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three arrays (K,): samples, predictions and correct predictions of each class."""
    true, predicted, counts = cells.T
    hits = np.where(true == predicted, counts, 0)
    sums = [np.zeros(num_classes, np.int64) for _ in range(3)]
    for total, classes, values in zip(sums, (true, predicted, true), (counts, counts, hits), strict=True):
        np.add.at(total, classes, values)
    return sums[0], sums[1], sums[2]


def draw_matrix(cells: np.ndarray, names: list[str], num_pairs: int = 5) -> np.ndarray:
    """Draw a confusion matrix (H, W, 3) and, below it, a list of the most confused pairs of classes.

    Args:
        cells: Result of `Cells` (P, 3).
        names: K names.
        num_pairs: Number of pairs in the list.
    """
    classes = list(range(len(names)))
    title = "predicted (cells: % of the true class)"
    if len(names) > MAX_CLASSES:
        classes = most_confused_classes(cells, len(names), MAX_CLASSES)
        title = f"predicted (the {MAX_CLASSES} of {len(names):,} classes with the most mistakes)"
    num_drawn = len(classes)
    drawn = cells[np.isin(cells[:, :2], classes).all(1)]
    counts = np.zeros((num_drawn, num_drawn), np.int64)
    counts[np.searchsorted(classes, drawn[:, 0]), np.searchsorted(classes, drawn[:, 1])] = drawn[:, 2]
    # a class without samples has a row of zeros
    fractions = counts / np.maximum(count_by_class(cells, len(names))[0][classes], 1)[:, None]
    has_numbers = num_drawn <= MAX_NUMBERED_CLASSES
    size = TEXT_SIZE if has_numbers else max(9, min(TEXT_SIZE, MATRIX_SIDE // num_drawn - 1))
    labels = [shorten(names[i], MAX_NAME_WIDTH, size) for i in classes]
    margin = 30 + max(int(text_width(label, size)) for label in labels)  # on the left and at the top
    cell = max(9, MATRIX_SIDE // num_drawn)
    if has_numbers:
        cell = min(60, max(23, (CARD_WIDTH - margin - 6) // num_drawn))
    end = margin + num_drawn * cell  # right and bottom edge of the matrix
    width = max(end + 6, CARD_WIDTH)
    lines = list_confused_pairs(cells, names, num_pairs, width - 16)
    if lines:
        lines.insert(0, "most confused pairs (in brackets: by true class):")
    canvas = Canvas(width, end + 14 + LINE_HEIGHT * len(lines))

    for row, column in np.ndindex(num_drawn, num_drawn):
        count, fraction = counts[row, column], float(fractions[row, column])
        left, top = margin + column * cell, margin + row * cell
        shade = fraction if has_numbers else fraction**0.5  # the root makes a fraction of 1 % visible
        canvas.pen.rectangle((left, top, left + cell - 1, top + cell - 1), fill=blend(LIGHT, DARK, shade))
        if has_numbers and count:
            colour = WHITE if fraction > 0.5 else BLACK
            canvas.write(left + cell / 2, top + cell / 2, _percent(fraction), colour, TEXT_SIZE - 1, anchor="mm")
    for i, label in enumerate(labels):
        middle = margin + (i + 0.5) * cell
        canvas.write(margin - 5, middle, label, size=size, anchor="rm")
        canvas.write_upwards(middle, margin - 5, label, size)
    half = text_width(title) / 2 + 4
    canvas.write(max(half, min((margin + end) / 2, width - half)), 2, title, GREY, anchor="ma")
    canvas.write_upwards(9, (margin + end) // 2 + 12, "true")
    for i, line in enumerate(lines):
        canvas.write(8, end + 8 + LINE_HEIGHT * i, line, BLACK if i else GREY)
    return canvas.to_array()


def draw_bars(correct: np.ndarray, samples: np.ndarray, names: list[str]) -> np.ndarray:
    """Draw a picture (H, W, 3) with a bar for the accuracy of each class. More than 25 classes are sorted by accuracy.

    Args:
        correct: Number of correctly predicted samples (K,) of each class.
        samples: Number of samples (K,) of each class. A class without samples has no bar.
        names: K names.
    """
    accuracies = correct / np.maximum(samples, 1)
    classes = np.arange(len(names))
    title = "accuracy of each class, %"
    if len(names) > ROWS_PER_COLUMN:
        classes = np.argsort(np.where(samples > 0, accuracies, 1.0), kind="stable")[:MAX_CLASSES]
    if len(names) > MAX_CLASSES:
        title += f": the worst {MAX_CLASSES} of {len(names):,}"
    num_columns = -(-len(classes) // ROWS_PER_COLUMN)
    num_rows = -(-len(classes) // num_columns)
    name_width = 14 + min(MAX_BAR_NAME_WIDTH, max(int(text_width(names[i])) for i in classes))
    bar_width = max(MIN_BAR_WIDTH, CARD_WIDTH - name_width - VALUE_WIDTH)  # for an accuracy of 100 %
    column_width, bottom = name_width + bar_width + VALUE_WIDTH, 24 + num_rows * ROW_HEIGHT
    canvas = Canvas(num_columns * column_width, bottom + 26)

    canvas.write(6, 4, title, GREY)
    for position, i in enumerate(classes):
        column, row = divmod(position, num_rows)
        left, top = column * column_width + name_width, 24 + row * ROW_HEIGHT  # upper left corner of the bar
        middle, bar_bottom = top + ROW_HEIGHT / 2, top + ROW_HEIGHT - 3
        canvas.write(left - 6, middle, shorten(names[i], MAX_BAR_NAME_WIDTH), anchor="rm")
        canvas.pen.rectangle((left, top + 2, left + bar_width, bar_bottom), fill=PALE)
        value = "no samples"
        if samples[i]:
            canvas.pen.rectangle((left, top + 2, left + bar_width * accuracies[i], bar_bottom), fill=BLUE)
            value = f"{100 * accuracies[i]:.1f} ({correct[i]:,} of {samples[i]:,})"
        canvas.write(left + bar_width + 5, middle, value, size=TEXT_SIZE - 1, anchor="lm")
    accuracy = correct.sum() / max(1, samples.sum())
    for column in range(num_columns):
        x = column * column_width + name_width + bar_width * accuracy
        canvas.pen.line((x, 22, x, bottom + 2), BLACK)
    canvas.write(6, bottom + 6, f"thin line: accuracy of all samples, {100 * accuracy:.1f} %", GREY)
    return canvas.to_array()


def most_confused_classes(cells: np.ndarray, num_classes: int, most: int) -> list[int]:
    """Return the `most` classes with the most mistakes (as true or as predicted class) in ascending order."""
    samples, predictions, correct = count_by_class(cells, num_classes)
    return sorted(np.argsort(2 * correct - samples - predictions, kind="stable")[:most].tolist())


def list_confused_pairs(cells: np.ndarray, names: list[str], num_pairs: int, width: float) -> list[str]:
    """List the most confused pairs in lines that are not wider than `width`: "7 mistakes: cat (3) and dog (4)".

    In this example, 3 samples have the true class cat and the predicted class dog.
    """
    true, predicted, counts = cells[cells[:, 0] != cells[:, 1]].T
    codes, pairs = np.unique(
        np.minimum(true, predicted) * len(names) + np.maximum(true, predicted), return_inverse=True
    )
    both = np.zeros((len(codes), 2), np.int64)  # columns: class i predicted as j, and j predicted as i
    both[pairs, (true > predicted).astype(int)] = counts
    lines = []
    for pair in np.argsort(both.sum(1), kind="stable")[::-1][:num_pairs]:
        i, j = divmod(int(codes[pair]), len(names))
        line = f"{count_of(int(both[pair].sum()), 'mistake')}: {{}} ({both[pair, 0]:,}) and {{}} ({both[pair, 1]:,})"
        name_width = (width - text_width(line.format("", ""))) / 2
        lines.append(line.format(shorten(names[i], name_width), shorten(names[j], name_width)))
    return lines


def _percent(fraction: float) -> str:
    """Format a percentage. Only exact values are shown as 0 or 100."""
    if fraction < 0.01:
        return "<1"
    return ">99" if 0.99 < fraction < 1 else f"{100 * fraction:.0f}"
