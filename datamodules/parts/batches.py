"""Batches that are indexed directly from tensors: one gather per batch, on the device of the data.

A `DataLoader` fetches single samples and collates them. For data that fits in memory, this takes ten to fifty times as long
as indexing (https://github.com/pytorch/pytorch/issues/106704). There is no hidden random state: the order depends only on
(seed, epoch), and augmentation depends only on (seed, epoch, batch, rank).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from engine.contracts import TrainingBatch, map_tensors

# N samples, B batch

NUM_AHEAD = 2  # batches that are gathered before they are needed


@dataclass(frozen=True)
class AugmentContext:
    """All values that the augmentation of a batch may depend on, so that a resumed run reproduces it.

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


class EpochOrder:
    """The order of samples in an epoch, as batches of indices for one of several processes.

    In training (`shuffle`), all processes use the same permutation. Each group of ``batch_size * world_size`` samples is
    divided equally among the processes, so that all processes make the same number of steps. The last samples of an epoch
    are left out if they cannot be divided equally. They are also left out if each process would get only one sample,
    because batch normalization needs two samples.

    In evaluation, each process takes a contiguous range in batches of nearly equal size. Every sample is used exactly once,
    and all processes have the same number of batches.

    Args:
        num_samples: Number of samples in the split.
        batch_size: Maximum number of samples in a batch of one process.
        shuffle: Whether the batches are for training.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        epoch: The current epoch, counted from 0.
        is_constant: Whether every epoch has the order of the first epoch, to overfit a few batches.
    """

    def __init__(
        self, num_samples: int, batch_size: int, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if not shuffle and num_samples < world_size:
            raise ValueError(f"{num_samples} samples cannot be divided among {world_size} processes")
        self.num_samples, self.batch_size, self.shuffle, self.seed = num_samples, batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.is_constant = 0, False

    @property
    def sampler(self) -> "EpochOrder":
        """Return this object, because Lightning calls ``loader.batch_sampler.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Lightning calls this before every epoch."""
        self.epoch = 0 if self.is_constant else epoch

    def __len__(self) -> int:
        if not self.shuffle:  # equal in all processes, because they synchronize in every forward pass
            per_process = -(-self.num_samples // self.world_size)
            return -(-per_process // self.batch_size)
        whole, rest = divmod(self.num_samples, self.batch_size * self.world_size)
        return whole + (self._per_process(rest) > 0)

    def __iter__(self) -> Iterator[Tensor | slice]:
        """Yield the indices (B,) of each batch, or a slice if they are contiguous."""
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
        """Return how many samples each process gets if `num_samples` samples are divided."""
        size = num_samples // self.world_size
        return size if size > 1 or self.batch_size == 1 else 0


class TensorBatches:
    """An iterable over batches ``(inputs, labels)`` that replaces a `DataLoader`.

    Args:
        inputs: (N, ...) of any type, or N `TokenRows`; on the device of the labels or in main memory.
        labels: (N,) of int64, on the device.
        order: Indices of the samples of each batch.
        augment: Function that returns an augmented batch of the same shape; None for no augmentation.

    Attributes:
        teacher_logits: (N, K), on the device. They become the third part of each batch; None for batches of two parts.
    """

    def __init__(
        self,
        inputs: Any,
        labels: Tensor,
        order: EpochOrder,
        augment: Callable[[Tensor, AugmentContext], Tensor] | None = None,
    ) -> None:
        self.inputs, self.labels, self.augment = inputs, labels, augment
        self.teacher_logits: Tensor | None = None
        self.batch_sampler = order  # Lightning calls `set_epoch` on this attribute
        self._num_yielded, self._first = 0, 0  # batches of this epoch so far, first batch of the next iteration

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches of this epoch so far. Their order depends only on the epoch."""
        return {"num_batches": self._num_yielded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next iteration continue after the batches of `state_dict`."""
        self._first = state_dict["num_batches"]

    def __iter__(self) -> Iterator[TrainingBatch]:
        self._num_yielded, self._first = self._first, 0
        return self._batches(self._num_yielded)

    def _batches(self, first: int) -> Iterator[TrainingBatch]:
        order, device = self.batch_sampler, self.labels.device
        is_on_device = isinstance(self.inputs, Tensor) and self.inputs.device == device
        generator = Generator(device)
        seeds = derive_seeds(len(order), order.seed, order.epoch, order.rank)
        batches = list(islice(order, first, None))
        on_device = _copy_indices(batches, device)
        if is_on_device:
            gathered = (self.inputs[indices] for indices in on_device)
        else:
            gathered = (to_device(batch, device) for batch in gather_ahead(self.inputs, batches, device))
        for i, (device_indices, inputs) in enumerate(zip(on_device, gathered, strict=True), first):
            if self.augment is not None:
                generator.manual_seed(seeds[i])
                context = AugmentContext(generator, order.seed, order.epoch, device_indices)  # type: ignore[arg-type]
                inputs = self.augment(inputs, context)
            self._num_yielded = i + 1
            batch = inputs, self.labels[device_indices]
            yield batch if self.teacher_logits is None else (*batch, self.teacher_logits[device_indices])


def gather_ahead(inputs: Any, batches: Sequence[Tensor | slice], device: torch.device) -> Iterator[Any]:
    """Yield ``inputs[indices]`` for each batch. A thread gathers the next batches, in pinned memory for a GPU.

    Args:
        inputs: (N, ...), or N rows of `TokenRows` or `MappedRows`.
        batches: Indices of each batch.
        device: Where the batches will be used.
    """

    def gather(indices: Tensor | slice) -> Any:
        batch = inputs[indices]
        return map_tensors(_pinned, batch) if device.type == "cuda" else batch

    # without `set_device`, a thread that pins memory occupies memory of the first GPU
    start = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    with ThreadPoolExecutor(1, "gather", start) as thread:
        waiting = deque(thread.submit(gather, indices) for indices in batches[:NUM_AHEAD])
        for following in range(NUM_AHEAD, len(batches) + NUM_AHEAD):
            if following < len(batches):
                waiting.append(thread.submit(gather, batches[following]))
            yield waiting.popleft().result()


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def derive_seed(*numbers: int) -> int:
    """Return a seed for the given numbers. Similar numbers give independent seeds."""
    return derive_seeds(1, *numbers)[0]


def derive_seeds(count: int, *numbers: int) -> list[int]:
    """Return `count` seeds for the given numbers. A larger `count` only appends seeds."""
    sequence = np.random.SeedSequence((len(numbers), *numbers))  # the length distinguishes (1,) from (1, 0)
    seeds: list[int] = (sequence.generate_state(count, np.uint64) >> np.uint64(1)).tolist()
    return seeds


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy a tensor or a mapping of tensors to `device` without waiting for the device."""
    if isinstance(batch, Mapping):
        return {name: to_device(tensor, device) for name, tensor in batch.items()}
    if device.type == "cuda" and batch.device.type == "cpu":
        return batch.pin_memory().to(device, non_blocking=True)  # pinned memory is not copied again
    return batch.to(device)


def _copy_indices(batches: list[Tensor | slice], device: torch.device) -> Sequence[Tensor | slice]:
    """Copy the indices of an epoch at once, because each copy waits for the device."""
    tensors = [indices for indices in batches if isinstance(indices, Tensor)]
    if device.type == "cpu" or not tensors:
        return batches
    return torch.cat(tensors).to(device).split([len(indices) for indices in tensors])
