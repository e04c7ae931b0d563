"""Which classes are confused, and the accuracy of each class, as two pictures of one confusion matrix."""

from typing import Annotated, Any

import numpy as np
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from callbacks.evaluation import EvaluationCallback, Stage
from callbacks.parts.drawing import (
    BLACK,
    BLUE,
    CARD,
    GREY,
    PALE,
    TEXT,
    WHITE,
    Canvas,
    Colour,
    replace_undrawable,
    shorten,
    text_width,
)
from engine.contracts import Classifier
from engine.training.loggers import PictureWriter

# K classes, H height, W width; lengths are in pixels

LIGHT, DARK = (247, 251, 255), (8, 48, 107)  # the ends of ColorBrewer's "Blues", safe in print and for the colour-blind
MOST_NUMBERED = 20  # with more classes the cells are too small for numbers
MOST_CLASSES = 100  # in one picture
MATRIX_SIDE = 900  # of a matrix whose cells have no numbers
LONGEST_NAME = 100
LINE = 17  # height of a line of text below the matrix
ROWS_PER_COLUMN = 25  # of bars
ROW, LEAST_BAR, LONGEST_BAR_NAME, FIGURES = 19, 90, 120, 128  # height of a bar with its gap; widths in its row


class ConfusionMatrix(EvaluationCallback):
    """`pictures/confusion_matrix` and `pictures/class_accuracy` under IMAGES.

    The rows of the matrix are true classes, the columns are predicted classes. Of more than 100 classes, only those with the
    most mistakes are drawn.

    Args:
        num_pairs: Number of pairs of classes to list below the matrix, the most confused first.
        options: Options of `EvaluationCallback`.
    """

    def __init__(self, num_pairs: Annotated[int, ">= 0"] = 5, **options: Any) -> None:
        super().__init__(**options)
        self.num_pairs = num_pairs

    def begin(self, pl_module: Classifier) -> None:
        num_classes = len(pl_module.class_names)
        self._matrix = MulticlassConfusionMatrix(num_classes, validate_args=False).to(pl_module.device)

    def update(self, pl_module: Classifier, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        self._matrix.update(logits, labels)

    def gather(self) -> Tensor:
        return self._matrix.compute()

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        names, counts = replace_undrawable(pl_module.class_names), gathered.cpu().numpy()
        matrix, bars = draw_matrix(counts, names, self.num_pairs), draw_bars(counts.diagonal(), counts.sum(1), names)
        writer.add_image("pictures/confusion_matrix", matrix, trainer.global_step, dataformats="HWC")
        writer.add_image("pictures/class_accuracy", bars, trainer.global_step, dataformats="HWC")


def draw_matrix(counts: np.ndarray, names: list[str], num_pairs: int = 5) -> np.ndarray:
    """A picture (H, W, 3) of a confusion matrix, with a list of the most confused pairs of classes below.

    Args:
        counts: Number of samples (K, K): true class x predicted class.
        names: K names.
        num_pairs: Number of pairs in the list.
    """
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # a class without samples has a row of zeros
    classes = list(range(len(names)))
    title = "predicted (cells: % of the true class)"
    if len(names) > MOST_CLASSES:
        classes = most_confused_classes(counts, MOST_CLASSES)
        title = f"predicted (the {MOST_CLASSES} of {len(names):,} classes with the most mistakes)"
    num_drawn = len(classes)
    has_numbers = num_drawn <= MOST_NUMBERED
    size = TEXT if has_numbers else max(9, min(TEXT, MATRIX_SIDE // num_drawn - 1))
    labels = [shorten(names[i], LONGEST_NAME, size) for i in classes]
    margin = 30 + max(int(text_width(label, size)) for label in labels)  # left of the matrix and above it
    cell = max(9, MATRIX_SIDE // num_drawn)
    if has_numbers:
        cell = min(60, max(23, (CARD - margin - 6) // num_drawn))
    end = margin + num_drawn * cell  # of the matrix, in both directions
    width = max(end + 6, CARD)
    lines = list_confused_pairs(counts, names, num_pairs, width - 16)
    if lines:
        lines.insert(0, "most confused pairs (in brackets: by true class):")
    canvas = Canvas(width, end + 14 + LINE * len(lines))

    for row, column in np.ndindex(num_drawn, num_drawn):
        place = classes[row], classes[column]
        count, fraction = counts[place], float(fractions[place])
        left, top = margin + column * cell, margin + row * cell
        shade = fraction if has_numbers else fraction**0.5  # without numbers, the shade must show a confusion of 1 %
        canvas.pen.rectangle((left, top, left + cell - 1, top + cell - 1), fill=blend(LIGHT, DARK, shade))
        if has_numbers and count:
            colour = WHITE if fraction > 0.5 else BLACK
            canvas.write(left + cell / 2, top + cell / 2, _percent(fraction), colour, TEXT - 1, anchor="mm")
    for i, label in enumerate(labels):
        middle = margin + (i + 0.5) * cell
        canvas.write(margin - 5, middle, label, size=size, anchor="rm")
        canvas.write_upwards(middle, margin - 5, label, size)
    half = text_width(title) / 2 + 4
    canvas.write(max(half, min((margin + end) / 2, width - half)), 2, title, GREY, anchor="ma")
    canvas.write_upwards(9, (margin + end) // 2 + 12, "true")
    for i, line in enumerate(lines):
        canvas.write(8, end + 8 + LINE * i, line, BLACK if i else GREY)
    return canvas.to_array()


def draw_bars(correct: np.ndarray, samples: np.ndarray, names: list[str]) -> np.ndarray:
    """A picture (H, W, 3) with a bar for the accuracy of each class. If there are many classes, the worst come first.

    Args:
        correct: Number of correctly predicted samples (K,) of each class.
        samples: Number of samples (K,) of each class. A class without samples has no bar.
        names: K names.
    """
    accuracies = correct / np.maximum(samples, 1)
    classes = np.arange(len(names))
    title = "accuracy of each class, %"
    if len(names) > ROWS_PER_COLUMN:
        classes = np.argsort(np.where(samples > 0, accuracies, 1.0), kind="stable")[:MOST_CLASSES]
    if len(names) > MOST_CLASSES:
        title += f": the worst {MOST_CLASSES} of {len(names):,}"
    num_columns = -(-len(classes) // ROWS_PER_COLUMN)
    num_rows = -(-len(classes) // num_columns)
    name_width = 14 + min(LONGEST_BAR_NAME, max(int(text_width(name)) for name in names))
    bar_width = max(LEAST_BAR, CARD - name_width - FIGURES)  # of an accuracy of 100 %
    column_width, bottom = name_width + bar_width + FIGURES, 24 + num_rows * ROW
    canvas = Canvas(num_columns * column_width, bottom + 26)

    canvas.write(6, 4, title, GREY)
    for place, i in enumerate(classes):
        column, row = divmod(place, num_rows)
        left, top = column * column_width + name_width, 24 + row * ROW  # of the bar
        middle, bar_bottom = top + ROW / 2, top + ROW - 3
        canvas.write(left - 6, middle, shorten(names[i], LONGEST_BAR_NAME), anchor="rm")
        canvas.pen.rectangle((left, top + 2, left + bar_width, bar_bottom), fill=PALE)
        figures = "no samples"
        if samples[i]:
            canvas.pen.rectangle((left, top + 2, left + bar_width * accuracies[i], bar_bottom), fill=BLUE)
            figures = f"{100 * accuracies[i]:.1f} ({correct[i]:,} of {samples[i]:,})"
        canvas.write(left + bar_width + 5, middle, figures, size=TEXT - 1, anchor="lm")
    accuracy = correct.sum() / max(1, samples.sum())
    for column in range(num_columns):
        x = column * column_width + name_width + bar_width * accuracy
        canvas.pen.line((x, 22, x, bottom + 2), BLACK)
    canvas.write(6, bottom + 6, f"thin line: accuracy of all samples, {100 * accuracy:.1f} %", GREY)
    return canvas.to_array()


def most_confused_classes(counts: np.ndarray, num_classes: int) -> list[int]:
    """The classes with the most mistakes, as true or as predicted class, in ascending order."""
    mistakes = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    return sorted(np.argsort(-mistakes, kind="stable")[:num_classes].tolist())


def list_confused_pairs(counts: np.ndarray, names: list[str], num_pairs: int, width: float) -> list[str]:
    """A line of at most `width` pixels for each of the most confused pairs: "7 mistakes: cat (3) and dog (4)".

    A number in brackets counts the mistakes whose true class this is.
    """
    mistakes = np.triu(counts + counts.T, k=1)  # (K, K)
    order = np.argsort(mistakes, axis=None)[::-1][:num_pairs]
    lines = []
    for i, j in zip(*np.unravel_index(order, counts.shape), strict=True):
        if mistakes[i, j]:
            count = f"{mistakes[i, j]:,} mistake{'' if mistakes[i, j] == 1 else 's'}"
            line = f"{count}: {{}} ({counts[i, j]:,}) and {{}} ({counts[j, i]:,})"
            name_width = (width - text_width(line.format("", ""))) / 2
            lines.append(line.format(shorten(names[i], name_width), shorten(names[j], name_width)))
    return lines


def _percent(fraction: float) -> str:
    """A percentage that is rounded neither to 0 nor to 100."""
    if fraction < 0.01:
        return "<1"
    return ">99" if 0.99 < fraction < 1 else f"{100 * fraction:.0f}"


def blend(start: Colour, end: Colour, fraction: float) -> Colour:
    """The colour between `start` (fraction 0) and `end` (fraction 1)."""
    return tuple(round(a + (b - a) * fraction) for a, b in zip(start, end, strict=True))  # type: ignore[return-value]
