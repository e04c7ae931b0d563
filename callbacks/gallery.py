"""Samples to look at: what the model is most sure of and wrong about, and what it gets right, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.evaluation import EvaluationCallback, Stage, holds_all
from callbacks.gallery_pages import picture, table
from callbacks.integrated_gradients import integrated_gradients

# B batch, K classes


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

    At the test each value is shown with its share in the decision (`callbacks.integrated_gradients`): what speaks for the
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

    def see(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
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
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: SummaryWriter, gathered: Any
    ) -> None:
        hits = [self._hits[label] for label in sorted(self._hits)][: self.num_examples]
        names = pl_module.hparams["class_names"] or [str(i) for i in range(pl_module.hparams["num_classes"])]
        for title, examples in (("mistakes", self._mistakes), ("hits", hits)):
            if not examples:
                continue
            explain = self.explain and stage == "test" and holds_all(trainer)
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
