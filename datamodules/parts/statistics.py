"""What is said of a set of samples as a whole: mean and deviation, a fingerprint, its size."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# D features, C channels

CHUNK = 4096  # samples that are looked at at once: floats of a whole set would take four times its memory


def mean_and_std(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, per feature (D,) or per channel (C, 1, 1); a constant one counts as 1."""
    axes = (0, *range(2, inputs.ndim))
    count = inputs.numel() // inputs.shape[1]
    chunks = inputs.split(CHUNK)
    mean = torch.stack([chunk.float().sum(axes, dtype=torch.float64) for chunk in chunks]).sum(0) / count
    shape = (-1, *[1] * (inputs.ndim - 2))
    deviations = ((chunk.float() - mean.float().view(shape)).square() for chunk in chunks)
    variance = torch.stack([one.sum(axes, dtype=torch.float64) for one in deviations]).sum(0) / count
    std = variance.sqrt()
    return mean.float().view(shape), torch.where(std > 0, std, 1.0).float().view(shape)


def fingerprint(inputs_and_labels: Iterable[Any]) -> str:
    """SHA-256 of the values: two runs with the same one saw the same data, split alike."""
    digest = hashlib.sha256()
    for one in inputs_and_labels:
        for tensor in (one,) if isinstance(one, Tensor) else one.tensors():
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def num_bytes(inputs: Any) -> int:
    """Memory of inputs: a tensor, or `TokenRows`."""
    tensors = (inputs,) if isinstance(inputs, Tensor) else inputs.tensors()
    return sum(one.numel() * one.element_size() for one in tensors)
