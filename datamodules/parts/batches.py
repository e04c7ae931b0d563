"""Batches that are indexed straight from tensors: one gather per batch, on the device that holds the data.

A `DataLoader` fetches sample by sample and collates. For data that fits in memory this takes ten to fifty times as long as
indexing (https://github.com/pytorch/pytorch/issues/106704). Nothing here has hidden random state: the order is a function of
(seed, epoch), and augmentation is a function of (seed, epoch, batch, rank).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

# N samples, B batch


@dataclass(frozen=True)
class AugmentContext:
    """Everything that the augmentation of a batch may depend on, so that a resumed run repeats it.

    Attributes:
        generator: Seeded for this batch, on the device of the data.
        seed: Seed of the run.
        epoch: Counted from 0.
        samples: (B,) of int64: indices of the samples in the training set.
    """

    generator: Generator
    seed: int
    epoch: int
    samples: Tensor


Augment = Callable[[Tensor, AugmentContext], Tensor]


class EpochOrder:
    """The order of samples in an epoch, as batches of indices for one of several processes.

    In training (`shuffle`), all processes use the same permutation. Each group of ``batch_size * world_size`` samples is
    divided equally among them, so that they make the same number of steps. The last samples are left out of the epoch if
    they cannot be divided, or if each process would get one sample, which batch normalization cannot use.

    In evaluation, each process takes a contiguous range in batches of nearly equal size. Every sample is used exactly once,
    and all processes have the same number of batches.

    Args:
        num_samples: Number of samples in the split.
        batch_size: Largest number of samples in a batch of one process.
        shuffle: Whether the batches are for training.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        epoch: The current epoch, counted from 0.
        resume_at: Epoch and batch from which a resumed run continues.
        num_skipped: Batches of the current epoch that were trained on before the run was stopped.
        is_constant: Whether every epoch has the order of the first one, to overfit a few batches.
    """

    def __init__(
        self, num_samples: int, batch_size: int, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if not shuffle and num_samples < world_size:
            raise ValueError(f"{num_samples} samples cannot be divided among {world_size} processes")
        self.num_samples, self.batch_size, self.shuffle, self.seed = num_samples, batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.resume_at, self.num_skipped, self.is_constant = 0, (0, 0), 0, False

    @property
    def sampler(self) -> "EpochOrder":
        """This object: Lightning calls ``loader.batch_sampler.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Lightning calls this before every epoch."""
        self.epoch = 0 if self.is_constant else epoch
        self.num_skipped = self.resume_at[1] if epoch == self.resume_at[0] else 0

    def __len__(self) -> int:
        if not self.shuffle:  # equal for all processes, because they synchronize in every forward pass
            per_process = -(-self.num_samples // self.world_size)
            return -(-per_process // self.batch_size)
        whole, rest = divmod(self.num_samples, self.batch_size * self.world_size)
        return whole + (self._per_process(rest) > 0)

    def __iter__(self) -> Iterator[Tensor | slice]:
        """Indices (B,) of each batch, or a slice if they are contiguous."""
        if not self.shuffle:
            num_batches = len(self) * self.world_size
            edges = [self.num_samples * i // num_batches for i in range(num_batches + 1)]
            for i in range(self.rank * len(self), (self.rank + 1) * len(self)):
                yield slice(edges[i], edges[i + 1])
            return
        generator = Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator)
        for first in range(0, self.num_samples, self.batch_size * self.world_size):
            size = min(self.batch_size, self._per_process(self.num_samples - first))
            if size > 0:
                begin = first + self.rank * size
                yield order[begin : begin + size]

    def _per_process(self, num_samples: int) -> int:
        """The number of samples that each process gets of the last ones."""
        size = num_samples // self.world_size
        return size if size > 1 or self.batch_size == 1 else 0


class TensorBatches:
    """An iterable over batches ``(inputs, labels)`` that takes the place of a `DataLoader`.

    Args:
        inputs: (N, ...) of any type, or N `TokenRows`; on the device of the labels or in main memory.
        labels: (N,) of int64, on the device.
        order: Indices of the samples of each batch.
        augment: Function from a batch of `inputs` and an `AugmentContext` to a batch of the same shape; None for none.
    """

    def __init__(self, inputs: Any, labels: Tensor, order: EpochOrder, augment: Augment | None = None) -> None:
        self.inputs, self.labels, self.augment = inputs, labels, augment
        self.batch_sampler = order  # the attribute of a DataLoader in which Lightning looks for `set_epoch`

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        order, device = self.batch_sampler, self.labels.device
        is_on_device = isinstance(self.inputs, Tensor) and self.inputs.device == device
        generator = Generator(device)
        seeds = derive_seeds(len(order), order.seed, order.epoch, order.rank)
        batches = list(islice(order, order.num_skipped, None))
        on_device = _copy_indices(batches, device)
        for i, (indices, device_indices) in enumerate(zip(batches, on_device, strict=True), order.num_skipped):
            inputs = self.inputs[device_indices] if is_on_device else to_device(self.inputs[indices], device)
            if self.augment is not None:
                generator.manual_seed(seeds[i])
                context = AugmentContext(generator, order.seed, order.epoch, device_indices)  # type: ignore[arg-type]
                inputs = self.augment(inputs, context)
            yield inputs, self.labels[device_indices]


def derive_seed(*numbers: int) -> int:
    """A seed for the given numbers. Similar numbers give unrelated seeds."""
    return derive_seeds(1, *numbers)[0]


def derive_seeds(count: int, *numbers: int) -> list[int]:
    """Several seeds for the given numbers. The first ones do not depend on `count`."""
    sequence = np.random.SeedSequence((len(numbers), *numbers))  # the length, because (1,) and (1, 0) would be the same
    seeds: list[int] = (sequence.generate_state(count, np.uint64) >> np.uint64(1)).tolist()
    return seeds


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy a tensor or a mapping of tensors to `device` without waiting for the device."""
    if isinstance(batch, Mapping):
        return {name: to_device(tensor, device) for name, tensor in batch.items()}
    if device.type == "cuda" and batch.device.type == "cpu":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def _copy_indices(batches: list[Tensor | slice], device: torch.device) -> Sequence[Tensor | slice]:
    """The indices on `device`: one copy per epoch, because a copy per batch would wait for the device each time."""
    tensors = [indices for indices in batches if isinstance(indices, Tensor)]
    if device.type == "cpu" or not tensors:
        return batches
    return torch.cat(tensors).to(device).split([len(indices) for indices in tensors])
