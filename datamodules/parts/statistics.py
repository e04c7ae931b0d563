"""Mean, standard deviation, fingerprint and size of data."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# D features, C channels

CHUNK = 4096  # samples to convert to floats at a time, because floats take four times the memory of bytes


def mean_and_std(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per feature (D,) or channel (C, 1, 1). The latter is 1 for constant data."""
    axes = (0, *range(2, inputs.ndim))
    count = inputs.numel() // inputs.shape[1]
    chunks = inputs.split(CHUNK)
    mean = torch.stack([chunk.float().sum(axes, dtype=torch.float64) for chunk in chunks]).sum(0) / count
    shape = (-1, *[1] * (inputs.ndim - 2))
    squares = ((chunk.float() - mean.float().view(shape)).square() for chunk in chunks)
    variance = torch.stack([chunk.sum(axes, dtype=torch.float64) for chunk in squares]).sum(0) / count
    std = variance.sqrt()
    return mean.float().view(shape), torch.where(std > 0, std, 1.0).float().view(shape)


def fingerprint(values: Iterable[Any]) -> str:
    """Return the SHA-256 of tensors and `TokenRows`. Equal fingerprints mean equal data and equal splits."""
    digest = hashlib.sha256()
    for value in values:
        for tensor in tensors_of(value):
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def num_bytes(inputs: Any) -> int:
    """Return the size of a tensor or of `TokenRows` in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(inputs))


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensor itself, or the tensors of `TokenRows`."""
    return [value] if isinstance(value, Tensor) else value.tensors()
