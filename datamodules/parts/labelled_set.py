"""A test set that does not belong to the config of a run, such as new data with labels."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules.parts.labels import class_numbers
from engine.contracts import DataError, DataSpec, NewInputs


class LabelledSet(LightningDataModule):
    """New data as a test set.

    Args:
        source: The datamodule that reads the data, and makes batches of it.
        inputs: (N, *input_shape), or N token rows.
        labels: (N,).
        spec: The data on which the model was trained.
    """

    def __init__(self, source: Any, inputs: Any, labels: Tensor, spec: DataSpec) -> None:
        super().__init__()
        self.source, self.inputs, self.labels, self.spec = source, inputs, labels, spec
        if hasattr(source, "tokens"):
            self.tokens = source.tokens

    def test_dataloader(self) -> Any:
        self.source.trainer = self.trainer
        return self.source.make_batches(self.inputs, self.labels)


def collect(data: NewInputs, spec: DataSpec, title: str) -> tuple[Any, Tensor]:
    """Read new data with labels into memory.

    Args:
        data: The parts of the data.
        spec: The data on which the model was trained.
        title: Name of the data, for errors.

    Returns:
        Inputs (N, *input_shape), or N token rows, and labels (N,).

    Raises:
        DataError: if a row cannot be read, has no label, or has a label that the training set does not have.
    """
    import pyarrow as pa

    inputs: list[Any] = []
    labels: list[Tensor] = []
    for part in data.parts:
        for row, problem in part.problems.items():
            raise DataError(f"{title}: {part.names[row]}: {problem}")
        texts = ["" if label is None else label.strip() for label in part.labels or []]
        if "" in texts:
            raise DataError(f"{title}: {part.names[texts.index('')]}: no label")
        place = partial(_place, title, part.names)
        labels.append(class_numbers(pa.array(texts, pa.string()), spec.class_names, place))
        inputs.append(part.inputs)
    if not inputs:
        raise DataError(f"{title}: no rows")
    joined = torch.cat(inputs) if isinstance(inputs[0], Tensor) else inputs[0].join(inputs)
    return joined, torch.cat(labels)


def _place(title: str, names: Sequence[Any], row: int) -> str:
    return f"{title}: {names[row]}"
