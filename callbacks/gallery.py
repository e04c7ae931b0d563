"""Shows the most confident mistakes, and a correct prediction per class, with attributions."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage, has_whole_model
from engine.contracts import Classifier, map_tensors
from engine.drawing import BLUE, CARD_WIDTH, GREY, VERMILION, Canvas, replace_undrawable, shorten, text_width
from engine.inference.integrated_gradients import integrated_gradients
from engine.inference.pictures import colour_attributions, to_pixels
from engine.training.loggers import PictureWriter

# B batch, K classes, C channels, H height, W width, T tokens, E size of an embedding, D features

# in pixels: side of an image, space between an image and its attributions, space between examples, height of a caption
SIDE, INNER_GAP, GAP, CAPTION = 76, 4, 8, 32
COLUMNS = 2  # examples with attributions per row; twice this number without attributions
MAX_FEATURES = 12  # per sample; the features with the largest attributions are shown


@dataclass(frozen=True)
class Example:
    """A sample and its prediction.

    Attributes:
        inputs: A batch that contains only this sample.
        label: The true class.
        predicted: The predicted class.
        probability: Probability of the predicted class.
    """

    inputs: Any
    label: int
    predicted: int
    probability: float

    @property
    def is_correct(self) -> bool:
        return self.label == self.predicted


class Gallery(EvaluationCallback):
    """Shows mistakes with the highest probability and, in the test, a correct prediction for each class (`hits`).

    Images are logged as `pictures/mistakes` and `pictures/hits`. Features and texts are logged as `examples/mistakes` and
    `examples/hits`. With several processes, only samples of the first process are shown.

    In the test, attributions show how much each input value supports the predicted class against the second most likely
    class (see `engine.inference.integrated_gradients`).

    Args:
        num_examples: Maximum number of mistakes, and of hits.
        explain: Show attributions in the test.
        options: Options of `EvaluationCallback`.
    """

    def __init__(self, num_examples: Annotated[int, ">= 1"] = 12, explain: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.num_examples, self.explain = num_examples, explain

    def begin(self, pl_module: Classifier) -> None:
        self._mistakes: list[Example] = []  # sorted by probability, the highest first
        self._hits: dict[int, Example] = {}  # by class

    def update(self, pl_module: Classifier, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        if logits.device.type == "xla":  # XLA would compile a graph for each sample
            inputs = map_tensors(lambda values: values.cpu() if isinstance(values, Tensor) else values, inputs)
            logits, labels = logits.cpu(), labels.cpu()
        probabilities, predicted = logits.softmax(1).max(1)  # (B,)
        is_wrong = predicted != labels
        most_confident = torch.where(is_wrong, probabilities, -1.0).topk(min(self.num_examples, len(labels)))
        lowest = self._mistakes[-1].probability if len(self._mistakes) == self.num_examples else 0.0
        for probability, i in zip(most_confident.values.tolist(), most_confident.indices.tolist(), strict=True):
            if probability > lowest:
                self._mistakes.append(Example(_sample(inputs, i), int(labels[i]), int(predicted[i]), probability))
        self._mistakes.sort(key=lambda example: -example.probability)
        del self._mistakes[self.num_examples :]
        if self._stage == "test" and len(self._hits) < min(self.num_examples, logits.shape[1]):
            for label in labels[~is_wrong].unique().tolist():
                if label not in self._hits:
                    i = int(torch.nonzero(~is_wrong & (labels == label))[0])
                    self._hits[label] = Example(_sample(inputs, i), label, label, float(probabilities[i]))

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        hits = [self._hits[label] for label in sorted(self._hits)][: self.num_examples]
        names, explain = pl_module.class_names, self.explain and stage == "test" and has_whole_model(trainer)
        for title, examples in (("mistakes", self._mistakes), ("hits", hits)):
            if not examples:
                continue
            attributions = None
            if explain:
                attributions = [integrated_gradients(pl_module, example.inputs) for example in examples]
            if isinstance(examples[0].inputs, Tensor) and examples[0].inputs.ndim == 4:
                picture = draw_examples(examples, attributions, names)
                writer.add_image(f"pictures/{title}", picture, trainer.global_step, dataformats="HWC")
            else:
                datamodule = trainer.datamodule  # type: ignore[attr-defined]
                page = format_examples(examples, attributions, names, datamodule)
                writer.add_text(f"examples/{title}", page, trainer.global_step)


def _sample(inputs: Any, i: int) -> Any:
    """Return a batch with only sample `i`, without padding."""
    if not isinstance(inputs, Mapping):
        return inputs[i : i + 1].clone()
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    kept = torch.ones_like(ids[i], dtype=torch.bool) if mask is None else mask[i].bool()  # padding may be on the left
    rows = {name: values for name, values in inputs.items() if isinstance(values, Tensor) and values.shape == ids.shape}
    return {name: values[i : i + 1, kept] for name, values in rows.items()}


def draw_examples(
    examples: Sequence[Example], attributions: Sequence[Tensor] | None, names: Sequence[str]
) -> np.ndarray:
    """Draw a picture (H, W, 3) that shows each image, its attributions, and its predicted and true class.

    Args:
        examples: Examples with images (1, C, H, W).
        attributions: (C, H, W) for each example, or None.
        names: K names.
    """
    names, is_explained = replace_undrawable(names), attributions is not None
    num_columns = min(COLUMNS if is_explained else 2 * COLUMNS, len(examples))
    num_rows = -(-len(examples) // num_columns)
    width = SIDE + INNER_GAP + SIDE if is_explained else SIDE  # width of an example
    bottom = num_rows * (SIDE + CAPTION + GAP) + GAP
    canvas = Canvas(max(num_columns * (width + GAP) + GAP, CARD_WIDTH), bottom + (20 if is_explained else 0))
    for place, example in enumerate(examples):
        row, column = divmod(place, num_columns)
        left, top = GAP + column * (width + GAP), GAP + row * (SIDE + CAPTION + GAP)
        pixels = to_pixels(example.inputs[0])
        canvas.image.paste(_scale(pixels), (left, top))
        if attributions is not None:
            canvas.image.paste(_scale(colour_attributions(pixels, attributions[place])), (left + SIDE + INNER_GAP, top))
        probability = f" ({100 * example.probability:.0f} %)"
        predicted = shorten(names[example.predicted], width - text_width(probability)) + probability
        truth = "correct" if example.is_correct else shorten(f"is {names[example.label]}", width)
        canvas.write(left, top + SIDE + 3, predicted, BLUE if example.is_correct else VERMILION)
        canvas.write(left, top + SIDE + 18, truth)
    if is_explained:
        canvas.write(GAP, bottom - 2, "orange: for the predicted class, blue: for the second", GREY)
    return canvas.to_array()


def format_examples(
    examples: Sequence[Example], attributions: Sequence[Tensor] | None, names: Sequence[str], datamodule: Any
) -> str:
    """Return a Markdown table with a row for each example. The largest attributions are bold.

    The table has a single column, because TensorBoard breaks words in narrow columns.

    Args:
        examples: Examples with token ids (1, T) or features (1, D).
        attributions: (T, E) or (D,) for each example, or None.
        names: K names.
        datamodule: Datamodule that provides the tokens or the feature names.
    """
    legend = "; numbers with a sign are attributions: + for the predicted class, - for the second most likely class"
    lines = [f"| predicted, true, input{'' if attributions is None else legend} |", "|---|"]
    for place, example in enumerate(examples):
        values = _format_values(example.inputs, datamodule)
        weights = None if attributions is None else attributions[place]
        if weights is not None and weights.ndim == 2:
            weights = weights.sum(1)  # per token
        max_values = MAX_FEATURES if isinstance(example.inputs, Tensor) else len(values)
        predicted = f"{escape(names[example.predicted])} ({100 * example.probability:.0f} %)"
        truth = "correct" if example.is_correct else f"is {escape(names[example.label])}"
        lines.append(f"| *{predicted}, {truth}:* {_join(values, weights, max_values)} |")
    return "\n".join(lines)


def escape(text: str) -> str:
    """Put a text on one line, and escape its special characters for Markdown."""
    return re.sub(r"([\\`*_{}\[\]()#+.!|~<>&-])", r"\\\1", " ".join(text.split()))


def _format_values(inputs: Any, datamodule: Any) -> list[str]:
    """Return the values of a sample as text: features with their names, or tokens."""
    if isinstance(inputs, Tensor):
        features = inputs.flatten().tolist()
        spec = datamodule.spec
        names = spec.feature_names or [f"feature {i}" for i in range(len(features))]
        columns = getattr(spec, "categories", None) or [()] * len(features)
        return [f"{name} {_value(*pair)}" for name, *pair in zip(names, features, columns, strict=True)]
    ids = inputs["input_ids"][0]
    return datamodule.tokens(ids) if hasattr(datamodule, "tokens") else [str(token) for token in ids.tolist()]


def _value(value: float, categories: Sequence[str]) -> str:
    """Return a number, or the name of a category, of which `value` is the code."""
    if math.isnan(value) or (categories and not 1 <= value <= len(categories)):
        return "missing"
    return categories[int(value) - 1] if categories else f"{value:.4g}"


def _join(values: list[str], weights: Tensor | None, max_values: int) -> str:
    """Join the values with the largest weights in their original order. Without weights, join the first values."""
    if weights is None:
        separator = " · " if " " in values[0] else " "  # a feature is "NAME VALUE"
        return separator.join([*map(escape, values[:max_values]), *(["…"] if len(values) > max_values else [])])
    parts = []
    for i in weights.abs().topk(min(max_values, len(values))).indices.sort().values.tolist():
        part = f"{escape(values[i])} {float(weights[i]):+.2f}"
        parts.append(f"**{part}**" if weights[i].abs() > 0.5 * weights.abs().max() else part)
    return " · ".join(parts)


def _scale(pixels: np.ndarray) -> Image.Image:
    """Resize an image so that its longer side is `SIDE`."""
    image = Image.fromarray(pixels)
    scale = SIDE / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    return image.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
