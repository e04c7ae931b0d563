"""Mean, standard deviation, fingerprint and size of data."""

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.parts.mapped import MappedRows

# D features, C channels

LARGE_BYTES = 10**9  # data that takes seconds to read
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
MAX_ROWS, MAX_BYTES = (
    4096,
    1 << 24,
)  # to convert to floats at a time, because floats take four times the memory of bytes


def chunks(inputs: Tensor | MappedRows) -> Iterable[Tensor]:
    """Split rows into parts that take little memory. Large data gets a progress bar."""
    size = num_bytes(inputs) // max(1, len(inputs))  # of a row
    rows = max(1, min(MAX_ROWS, MAX_BYTES // max(1, size)))
    is_hidden = None if num_bytes(inputs) > LARGE_BYTES else True  # None for a bar in terminals alone
    total = -(-len(inputs) // rows)
    return tqdm(inputs.split(rows), "reading the data", total, disable=is_hidden, leave=False, bar_format=BAR)


def mean_and_std(inputs: Tensor | MappedRows) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per feature (D,) or channel (C, 1, 1). The latter is 1 for constant data."""
    moments = _moments_of_bytes if inputs[:0].dtype == torch.uint8 and inputs.ndim == 4 else _moments
    mean, variance = moments(inputs)
    shape = (-1, *[1] * (inputs.ndim - 2))
    std = variance.sqrt()
    return mean.float().view(shape), torch.where(std > 0, std, 1.0).float().view(shape)


def _moments(inputs: Tensor | MappedRows) -> tuple[Tensor, Tensor]:
    """Return mean and variance per feature (D,) or channel (C,)."""
    axes = (0, *range(2, inputs.ndim))
    count = math.prod(inputs.shape) // inputs.shape[1]
    sums = [chunk.float().sum(axes, dtype=torch.float64) for chunk in chunks(inputs)]
    mean = torch.stack(sums).sum(0) / count
    shape = (-1, *[1] * (inputs.ndim - 2))
    squares = ((chunk.float() - mean.float().view(shape)).square() for chunk in chunks(inputs))
    return mean, torch.stack([chunk.sum(axes, dtype=torch.float64) for chunk in squares]).sum(0) / count


def _moments_of_bytes(images: Tensor | MappedRows) -> tuple[Tensor, Tensor]:
    """Return mean and variance per channel (C,) from the number of pixels of each value, in a quarter of the time."""
    num_channels, counts = images.shape[1], torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for chunk in chunks(images):
        counts += torch.stack([torch.bincount(chunk[:, c].flatten(), minlength=256) for c in range(num_channels)])
    values = torch.arange(256, dtype=torch.float64)
    mean = counts @ values / counts.sum(1)
    return mean, (counts * (values - mean[:, None]).square()).sum(1) / counts.sum(1)


def fingerprint(values: Iterable[Any]) -> str:
    """Return the SHA-256 of tensors, `MappedRows` and `TokenRows`. Equal fingerprints mean equal data and equal splits."""
    digest = hashlib.sha256()
    for value in values:
        for part in [value] if isinstance(value, Tensor | MappedRows) else value.tensors():
            digest.update(str((part[:0].dtype, tuple(part.shape))).encode())
            for chunk in chunks(part):
                digest.update(chunk.contiguous().numpy().data)
    return digest.hexdigest()


def num_bytes(inputs: Any) -> int:
    """Return the size of a tensor, of `MappedRows` or of `TokenRows` in bytes."""
    if isinstance(inputs, MappedRows):
        return inputs.num_bytes
    tensors = [inputs] if isinstance(inputs, Tensor) else inputs.tensors()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
