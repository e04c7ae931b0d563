"""Which classes are taken for which, as a picture in TensorBoard."""

from typing import Annotated, Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
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
    blend,
    canvas,
    drawable,
    font,
    pixels,
    shortened,
    upwards,
)
from engine.training.loggers import PictureWriter

# K classes

LIGHT, DARK = (247, 251, 255), (8, 48, 107)  # the ends of ColorBrewer's "Blues", safe in print and for the colour-blind
MOST_NUMBERS = 20  # beyond so many classes the cells are too small for text
MOST_CLASSES = 100  # that are drawn
LONGEST_NAME = 100  # pixels
ROWS_PER_COLUMN, MOST_BARS = 25, 100  # bars in a column, and bars in all
ROW, LEAST_BAR, BAR_NAME, FIGURES = (
    19,
    90,
    120,
    128,
)  # pixels: height of a row; width of a full bar, of names, of figures


class ConfusionMatrix(EvaluationCallback):
    """`pictures/confusion_matrix` under IMAGES: rows are true classes, columns are predicted ones; below, the pairs that
    are confused most. Of more than 100 classes those are drawn that are confused most.

    Args:
        num_pairs: That are listed.
        options: Those of `EvaluationCallback`.
    """

    def __init__(self, num_pairs: Annotated[int, ">= 0"] = 5, **options: Any) -> None:
        super().__init__(**options)
        self.num_pairs = num_pairs

    def begin(self, pl_module: LightningModule) -> None:
        num_classes = pl_module.hparams["num_classes"]
        self._matrix = MulticlassConfusionMatrix(num_classes, validate_args=False).to(pl_module.device)

    def update(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        self._matrix.update(logits, labels)

    def gather(self) -> Tensor:
        return self._matrix.compute()

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: PictureWriter, gathered: Any
    ) -> None:
        names, counts = drawable(pl_module.class_names), gathered.cpu().numpy()
        matrix, bars = draw_matrix(counts, names, self.num_pairs), draw_bars(counts.diagonal(), counts.sum(1), names)
        writer.add_image("pictures/confusion_matrix", matrix, trainer.global_step, dataformats="HWC")
        writer.add_image("pictures/class_accuracy", bars, trainer.global_step, dataformats="HWC")


def draw_matrix(counts: np.ndarray, names: list[str], num_pairs: int = 5) -> np.ndarray:
    """A picture (H, W, 3) of a confusion matrix (K, K) of counts.

    Args:
        counts: true x predicted.
        names: of the K classes.
        num_pairs: that are confused most, to be listed.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # a class without samples has an empty row
    all_counts, all_names, title = counts, names, "predicted (cells: % of the true class)"
    if len(names) > MOST_CLASSES:
        chosen = most_confused(counts, MOST_CLASSES)
        counts, shares, names = (
            counts[np.ix_(chosen, chosen)],
            shares[np.ix_(chosen, chosen)],
            [names[i] for i in chosen],
        )
        title = f"predicted (the {len(chosen)} of {len(all_names):,} classes that are confused most)"
    num_classes = len(names)
    small = num_classes <= MOST_NUMBERS
    size = TEXT if small else max(9, min(TEXT, 900 // num_classes - 1))
    names = [shortened(name, LONGEST_NAME, size) for name in names]
    margin = 30 + max(int(font(size).getlength(name)) for name in names)
    cell = min(60, max(23, (CARD - margin - 6) // num_classes)) if small else max(9, 900 // num_classes)
    side = num_classes * cell
    width = max(margin + side + 6, CARD)
    lines = confused(all_counts, all_names, num_pairs, width - 16)
    lines = ["confused most (how many of this true class):", *lines] if lines else []
    image, pen = canvas(width, margin + side + 14 + 17 * len(lines))
    for row in range(num_classes):
        for column in range(num_classes):
            share, left, top = shares[row, column], margin + column * cell, margin + row * cell
            # a confusion of 1 % must be seen where cells have no numbers
            shade = share if small else np.sqrt(share)
            pen.rectangle((left, top, left + cell - 1, top + cell - 1), fill=blend(LIGHT, DARK, float(shade)))
            if small and counts[row, column]:
                text, middle = _percent(float(share)), (left + cell / 2, top + cell / 2)
                pen.text(middle, text, WHITE if share > 0.5 else BLACK, font(TEXT - 1), anchor="mm")
    for i, name in enumerate(names):
        pen.text((margin - 5, margin + (i + 0.5) * cell), name, BLACK, font(size), anchor="rm")
        upwards(image, name, margin + (i + 0.5) * cell, margin - 5, size)
    half = font(TEXT).getlength(title) / 2 + 4
    pen.text((max(half, min(margin + side / 2, width - half)), 2), title, GREY, font(TEXT), anchor="ma")
    upwards(image, "true", 9, margin + side // 2 + 12, TEXT)
    for i, line in enumerate(lines):
        pen.text((8, margin + side + 8 + 17 * i), line, BLACK if i else GREY, font(TEXT))
    return pixels(image)


def _percent(share: float) -> str:
    """Without a 0 or a 100 that is none."""
    if share < 0.01:
        return "<1"
    return ">99" if 0.99 < share < 1 else f"{100 * share:.0f}"


def most_confused(counts: np.ndarray, num_classes: int) -> list[int]:
    """The classes with the most samples that are taken for another or of another, in their order."""
    errors = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    return sorted(np.argsort(-errors, kind="stable")[:num_classes].tolist())


def confused(counts: np.ndarray, names: list[str], num_pairs: int, width: float) -> list[str]:
    """A line of at most `width` pixels for each of the pairs of classes that are confused most, and of which true class the
    samples were."""
    both = np.triu(counts + counts.T, k=1)  # (K, K)
    order = np.argsort(both, axis=None)[::-1][:num_pairs]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, both.shape), strict=True) if both[i, j]]
    lines = []
    for i, j in pairs:
        line = f"{{:,}} time{'' if both[i, j] == 1 else 's'} {{}} ({{:,}}) and {{}} ({{:,}})"
        left = width - font(TEXT).getlength(line.format(both[i, j], "", counts[i, j], "", counts[j, i]))
        one, other = (shortened(names[k], left / 2, TEXT) for k in (i, j))
        lines.append(line.format(both[i, j], one, counts[i, j], other, counts[j, i]))
    return lines


def draw_bars(hits: np.ndarray, samples: np.ndarray, names: list[str]) -> np.ndarray:
    """A picture (H, W, 3) of bars.

    Args:
        hits: (K,) samples of each class that are recognised.
        samples: (K,) of each class; one without any has no bar.
        names: of the K classes.
    """
    shares = hits / np.maximum(samples, 1)
    in_order = np.where(samples > 0, shares, 1.0)  # a class without samples is not the worst
    order = np.arange(len(names)) if len(names) <= ROWS_PER_COLUMN else np.argsort(in_order, kind="stable")[:MOST_BARS]
    columns = -(-len(order) // ROWS_PER_COLUMN)
    rows = -(-len(order) // columns)
    name_width = 14 + min(BAR_NAME, max(int(font(TEXT).getlength(name)) for name in names))
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
        pen.text((begin - 6, top + ROW / 2), shortened(names[i], BAR_NAME, TEXT), BLACK, font(TEXT), anchor="rm")
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
