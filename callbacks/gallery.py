"""Samples to look at: the model's most confident mistakes, and one correct prediction per class, with attributions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage, has_whole_model
from callbacks.parts.drawing import (
    BLACK,
    BLUE,
    CARD,
    GREY,
    TEXT,
    VERMILION,
    canvas,
    drawable,
    font,
    pixels,
    shortened,
)
from callbacks.parts.integrated_gradients import integrated_gradients
from engine.training.loggers import PictureWriter

# B batch, K classes, C channels, H height, W width, T tokens, E size of a token's vector, D features

SIDE, GAP, COLUMNS, CAPTION = 76, 8, 2, 32  # pixels: of an image, between examples, of the text below; pairs in a row
MOST_FEATURES = 12  # of a row that are shown, those with the largest shares


@dataclass(frozen=True)
class Example:
    """A sample of an evaluation, and what was said of it.

    Attributes:
        inputs: A batch of its own.
        label: The true class.
        predicted: The class of the largest probability.
        probability: That one.
    """

    inputs: Any
    label: int
    predicted: int
    probability: float


class Gallery(EvaluationCallback):
    """`mistakes`, the most confident first, and at the test `hits`, one of each class: images as `pictures/...` under
    IMAGES, rows of features and texts as `examples/...` under TEXT. Of several processes the first one shows its own.

    At the test each value is shown with its share in the decision (`callbacks.parts.integrated_gradients`): what speaks for the
    predicted class, and what for the next one.

    Args:
        num_examples: Of each kind.
        explain: Show the shares.
        options: Those of `EvaluationCallback`.
    """

    def __init__(self, num_examples: Annotated[int, ">= 1"] = 12, explain: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.num_examples, self.explain = num_examples, explain

    def begin(self, pl_module: LightningModule) -> None:
        self._mistakes: list[Example] = []
        self._hits: dict[int, Example] = {}

    def update(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        probabilities, predicted = logits.softmax(1).max(1)
        wrong = predicted != labels
        count = min(self.num_examples, len(labels))
        surest = torch.where(wrong, probabilities, -1.0).topk(count)
        found = zip(*(one.tolist() for one in (surest.values, surest.indices)), strict=True)
        least = self._mistakes[-1].probability if len(self._mistakes) == self.num_examples else 0.0
        for probability, i in found:
            if probability > least:
                self._mistakes.append(Example(_row(inputs, i), int(labels[i]), int(predicted[i]), probability))
        self._mistakes = sorted(self._mistakes, key=lambda one: -one.probability)[: self.num_examples]
        if self._stage == "test" and len(self._hits) < min(self.num_examples, logits.shape[1]):
            for label in labels[~wrong].unique().tolist():
                if label not in self._hits:
                    i = int(torch.nonzero(~wrong & (labels == label))[0])
                    self._hits[label] = Example(_row(inputs, i), label, label, float(probabilities[i]))

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: PictureWriter, gathered: Any
    ) -> None:
        hits = [self._hits[label] for label in sorted(self._hits)][: self.num_examples]
        names = pl_module.class_names
        for title, examples in (("mistakes", self._mistakes), ("hits", hits)):
            if not examples:
                continue
            explain = self.explain and stage == "test" and has_whole_model(trainer)
            shares = [integrated_gradients(pl_module, one.inputs) if explain else None for one in examples]
            if isinstance(examples[0].inputs, Tensor) and examples[0].inputs.ndim == 4:
                drawn = picture(examples, shares, names)
                writer.add_image(f"pictures/{title}", drawn, trainer.global_step, dataformats="HWC")
            else:
                page = table(examples, shares, names, trainer.datamodule)  # type: ignore[attr-defined]
                writer.add_text(f"examples/{title}", page, trainer.global_step)


def _row(inputs: Any, i: int) -> Any:
    """Of a batch, one sample as a batch, without its padding."""
    if not isinstance(inputs, Mapping):
        return inputs[i : i + 1].clone()
    mask = inputs.get("attention_mask")
    length = inputs["input_ids"].shape[1] if mask is None else int(mask[i].sum())
    return {name: one[i : i + 1, :length].clone() for name, one in inputs.items()}


def picture(examples: Sequence[Example], shares: Sequence[Tensor | None], names: Sequence[str]) -> np.ndarray:
    """A picture (H, W, 3): each image, beside it its shares, below it the true and the predicted class.

    Args:
        examples: With images (1, C, H, W).
        shares: (C, H, W) of each, or null.
        names: Of the classes.
    """
    attribution_inputs = shares[0] is not None
    names, columns = drawable(names), min(COLUMNS if attribution_inputs else 2 * COLUMNS, len(examples))
    width, height = (SIDE + 4 + SIDE if attribution_inputs else SIDE) + GAP, SIDE + CAPTION + GAP
    rows = -(-len(examples) // columns)
    image, pen = canvas(max(columns * width + GAP, CARD), rows * height + GAP + (20 if attribution_inputs else 0))
    for place, (example, share) in enumerate(zip(examples, shares, strict=True)):
        left, top = GAP + place % columns * width, GAP + place // columns * height
        shown = _visible(example.inputs[0])
        image.paste(_scaled(shown), (left, top))
        if share is not None:
            image.paste(_scaled(_overlay(shown, share)), (left + SIDE + 4, top))
        room, right = width - GAP, example.label == example.predicted
        sure = f"({100 * example.probability:.0f} %)"
        said = shortened(names[example.predicted], room - font(TEXT).getlength(sure + " "), TEXT)
        pen.text((left, top + SIDE + 3), f"{said} {sure}", BLUE if right else VERMILION, font(TEXT))
        truth = "right" if right else shortened(f"is {names[example.label]}", room, TEXT)
        pen.text((left, top + SIDE + 18), truth, BLACK, font(TEXT))
    if attribution_inputs:
        told = "orange: for the predicted class, blue: for the next one"
        pen.text((GAP, rows * height + GAP - 2), told, GREY, font(TEXT))
    return pixels(image)


def table(examples: Sequence[Example], shares: Sequence[Tensor | None], names: Sequence[str], datamodule: Any) -> str:
    """Markdown: a row for each example, its values with their shares, in bold the strongest.

    There is one column alone: TensorBoard breaks the words of narrow ones into letters.

    Args:
        examples: With token ids (1, T) or features (1, D).
        shares: (T, E) or (D,) of each, or null.
        names: Of the classes.
        datamodule: Which knows its tokens, or the names of its features.
    """
    told = (
        ""
        if shares[0] is None
        else "; shares in the decision: above 0 for the predicted class, below 0 for the next one, in bold the strongest"
    )
    lines = [f"| predicted, true, input{told} |", "|---|"]
    for example, share in zip(examples, shares, strict=True):
        values = _values(example.inputs, datamodule)
        weights = None if share is None else share.sum(1) if share.ndim == 2 else share
        said = f"{escaped(names[example.predicted])} ({100 * example.probability:.0f} %)"
        truth = "right" if example.label == example.predicted else f"is {escaped(names[example.label])}"
        most = MOST_FEATURES if isinstance(example.inputs, Tensor) else len(values)
        lines.append(f"| *{said}, {truth}:* {_weighed(values, weights, most)} |")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """`text` as it is, in Markdown, on one line."""
    text = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]()#+.!|~<>&-])", r"\\\1", text)


def _values(inputs: Any, datamodule: Any) -> list[str]:
    """What the values of a sample are, for people."""
    if isinstance(inputs, Tensor):
        features = inputs.flatten().tolist()
        names = datamodule.spec.feature_names or [f"feature {i}" for i in range(len(features))]
        return [f"{name} {value:.4g}" for name, value in zip(names, features, strict=True)]
    ids = inputs["input_ids"][0]
    return datamodule.tokens(ids) if hasattr(datamodule, "tokens") else [str(one) for one in ids.tolist()]


def _weighed(values: list[str], weights: Tensor | None, most: int) -> str:
    """All values with their shares, or `most` of them, those with the largest; without shares the first ones."""
    if weights is None:
        between = " · " if " " in values[0] else " "  # a feature is a name and a value
        return between.join([*map(escaped, values[:most]), *(["…"] if len(values) > most else [])])
    chosen = weights.abs().topk(min(most, len(values))).indices.sort().values.tolist()
    strong = 0.5 * weights.abs().max()
    shown = {i: f"{escaped(values[i])} {float(weights[i]):+.2f}" for i in chosen}
    return " · ".join(f"**{one}**" if weights[i].abs() > strong else one for i, one in shown.items())


def _visible(image: Tensor) -> np.ndarray:
    """(H, W, 3) of uint8: bytes as they are, other numbers from their least to their largest."""
    image = image.cpu()
    if image.dtype != torch.uint8:
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low).clamp(min=1e-12) * 255).to(torch.uint8)
    if len(image) not in (1, 3):
        image = image.float().mean(0, keepdim=True).to(torch.uint8)
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _overlay(image: np.ndarray, share: Tensor) -> np.ndarray:
    """The image in pale grey, in colour what speaks for the predicted class and what against it."""
    weights = share.sum(0).cpu().numpy()  # (H, W)
    weights = np.clip(weights / max(float(np.quantile(np.abs(weights), 0.99)), 1e-12), -1, 1)[..., None]
    ground = 255 - (255 - image.mean(2, keepdims=True)) * 0.35
    colour = np.where(weights > 0, np.array(VERMILION), np.array(BLUE))
    return (ground + (colour - ground) * np.abs(weights)).astype(np.uint8)


def _scaled(image: np.ndarray) -> Image.Image:
    """To the side of a cell, with square pixels."""
    found = Image.fromarray(image)
    scale = SIDE / max(found.size)
    size = tuple(max(1, round(scale * one)) for one in found.size)
    return found.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)  # type: ignore[arg-type]
