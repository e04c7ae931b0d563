"""Which classes are taken for which, as a picture in TensorBoard."""

from typing import Annotated, Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.classification import MulticlassConfusionMatrix

from callbacks.drawing import BLACK, CARD, GREY, TEXT, WHITE, blend, canvas, drawable, font, pixels, shortened, upwards
from callbacks.evaluation import EvaluationCallback, Stage

# K classes

LIGHT, DARK = (247, 251, 255), (8, 48, 107)  # the ends of ColorBrewer's "Blues", safe in print and for the colour-blind
MOST_NUMBERS = 20  # beyond so many classes the cells are too small for text
MOST_CLASSES = 100  # that are drawn
LONGEST_NAME = 100  # pixels


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

    def see(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        self._matrix.update(logits, labels)

    def gather(self) -> Tensor:
        return self._matrix.compute()

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: SummaryWriter, gathered: Any
    ) -> None:
        names = drawable(pl_module.hparams["class_names"] or [str(i) for i in range(len(gathered))])
        picture = draw(gathered.cpu().numpy(), names, self.num_pairs)
        writer.add_image("pictures/confusion_matrix", picture, trainer.global_step, dataformats="HWC")


def draw(counts: np.ndarray, names: list[str], num_pairs: int = 5) -> np.ndarray:
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
