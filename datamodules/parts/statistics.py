"""Mean, standard deviation, fingerprint and size of data."""

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from datamodules.parts.mapped import MappedRows

# D features, C channels

CHUNK = 4096  # samples to convert to floats at a time, because floats take four times the memory of bytes


def mean_and_std(inputs: Tensor | MappedRows) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per feature (D,) or channel (C, 1, 1). The latter is 1 for constant data."""
    axes = (0, *range(2, inputs.ndim))
    count = math.prod(inputs.shape) // inputs.shape[1]
    sums = [chunk.float().sum(axes, dtype=torch.float64) for chunk in inputs.split(CHUNK)]
    mean = torch.stack(sums).sum(0) / count
    shape = (-1, *[1] * (inputs.ndim - 2))
    squares = ((chunk.float() - mean.float().view(shape)).square() for chunk in inputs.split(CHUNK))
    variance = torch.stack([chunk.sum(axes, dtype=torch.float64) for chunk in squares]).sum(0) / count
    std = variance.sqrt()
    return mean.float().view(shape), torch.where(std > 0, std, 1.0).float().view(shape)


def fingerprint(values: Iterable[Any]) -> str:
    """Return the SHA-256 of tensors, `MappedRows` and `TokenRows`. Equal fingerprints mean equal data and equal splits."""
    digest = hashlib.sha256()
    for value in values:
        for part in [value] if isinstance(value, Tensor | MappedRows) else value.tensors():
            digest.update(str((part[:0].dtype, tuple(part.shape))).encode())
            for chunk in part.split(CHUNK):
                digest.update(chunk.contiguous().numpy().data)
    return digest.hexdigest()


def num_bytes(inputs: Any) -> int:
    """Return the size of a tensor, of `MappedRows` or of `TokenRows` in bytes."""
    if isinstance(inputs, MappedRows):
        return inputs.num_bytes
    tensors = [inputs] if isinstance(inputs, Tensor) else inputs.tensors()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
