"""Batches straight from tensors: one gather a batch, on the device where the data lies.

A `DataLoader` fetches sample by sample and collates; for data that fits in memory that costs ten to fifty times more than
indexing (https://github.com/pytorch/pytorch/issues/106704). Nothing here has hidden state: the order is a function of
(seed, epoch), augmentation of (seed, epoch, batch, rank).
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
    """All that the augmentation of a batch may depend on, so that a resumed run repeats it.

    Attributes:
        generator: Seeded for this batch, on the device of the data.
        seed: Of the run.
        epoch: Counted from 0.
        samples: (B,) of int64: which samples of the training part they are.
    """

    generator: Generator
    seed: int
    epoch: int
    samples: Tensor


Augment = Callable[[Tensor, AugmentContext], Tensor]


class EpochOrder:
    """Which samples each batch of an epoch holds, for one of `world_size` processes.

    In training (`shuffle`), all processes cut the same permutation: batch i of the whole group is its i-th piece of
    ``batch_size * world_size``, shared out evenly, so that every process makes equally many steps. A last piece that
    cannot be shared, or one of a single sample (batch normalisation could not use it), is left out for this epoch.
    In evaluation each process takes its own stretch, in equally many batches of nearly equal size; no sample is left out
    or repeated.
    """

    def __init__(
        self, num_samples: int, batch_size: int, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_samples, self.batch_size, self.shuffle, self.seed = num_samples, batch_size, shuffle, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        self.resumed = (0, 0)  # the epoch and the batch at which training goes on
        self.skipped = 0  # batches of this epoch that were trained on before a stop
        self.repeats = False  # the first epoch's order for ever, to overfit a few batches
        if not shuffle and num_samples < world_size:
            raise ValueError(f"{num_samples} samples cannot be shared by {world_size} processes")

    @property
    def sampler(self) -> "EpochOrder":
        """Itself: Lightning tells the epoch to ``loader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = 0 if self.repeats else epoch
        self.skipped = self.resumed[1] if epoch == self.resumed[0] else 0

    def __len__(self) -> int:
        if not self.shuffle:  # as many on every process: a forward pass in DistributedDataParallel is a collective
            longest = -(-self.num_samples // self.world_size)
            return -(-longest // self.batch_size)
        whole, rest = divmod(self.num_samples, self.batch_size * self.world_size)
        return whole + (self._share(rest) > 0)

    def __iter__(self) -> Iterator[Tensor | slice]:
        """Indices (B,) of each batch, or a slice where the samples lie side by side."""
        if not self.shuffle:
            parts = len(self) * self.world_size
            edges = [self.num_samples * i // parts for i in range(parts + 1)]
            for i in range(self.rank * len(self), (self.rank + 1) * len(self)):
                yield slice(edges[i], edges[i + 1])
            return
        generator = Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator)
        group = self.batch_size * self.world_size
        for first in range(0, self.num_samples, group):
            size = min(self.batch_size, self._share(self.num_samples - first))
            if size > 0:
                begin = first + self.rank * size
                yield order[begin : begin + size]

    def _share(self, samples: int) -> int:
        share = samples // self.world_size
        return share if share > 1 or self.batch_size == 1 else 0


class TensorBatches:
    """An iterable of ``(inputs, labels)`` that takes a `DataLoader`'s place.

    Args:
        inputs: (N, ...) of any type, or `TokenRows` of N; on the device, or with the host.
        labels: (N,) of int64, on the device.
        order: Which samples each batch holds.
        augment: From a batch of `inputs` and a `AugmentContext` to a batch of the same shape; null for none.
    """

    def __init__(self, inputs: Any, labels: Tensor, order: EpochOrder, augment: Augment | None = None) -> None:
        self.inputs, self.labels, self.augment = inputs, labels, augment
        self.batch_sampler = order  # where Lightning looks for `set_epoch`, as in a DataLoader

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        order = self.batch_sampler
        device = self.labels.device
        resident = isinstance(self.inputs, Tensor) and self.inputs.device == device
        generator = Generator(device)
        seeds = mixed_seeds(len(order), order.seed, order.epoch, order.rank)
        with_host = list(islice(order, order.skipped, None))
        for i, (host, indices) in enumerate(zip(with_host, _on(device, with_host), strict=True), order.skipped):
            inputs = self.inputs[indices] if resident else to_device(self.inputs[host], device)
            if self.augment is not None:
                generator.manual_seed(seeds[i])
                inputs = self.augment(inputs, AugmentContext(generator, order.seed, order.epoch, indices))  # type: ignore[arg-type]
            yield inputs, self.labels[indices]


def mixed_seed(*numbers: int) -> int:
    """One well-mixed seed of several numbers: neighbours give unrelated streams."""
    return mixed_seeds(1, *numbers)[0]


def mixed_seeds(count: int, *numbers: int) -> list[int]:
    """As many as `count`; the first are the same for a larger one."""
    sequence = np.random.SeedSequence((len(numbers), *numbers))  # without the length (1,) and (1, 0) would be the same
    seeds: list[int] = (sequence.generate_state(count, np.uint64) >> np.uint64(1)).tolist()
    return seeds


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch, or a mapping of tensors, from wherever it is, without waiting for what the device is doing."""
    if isinstance(batch, Mapping):
        return {name: to_device(one, device) for name, one in batch.items()}
    if device.type == "cuda" and batch.device.type == "cpu":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def _on(device: torch.device, batches: list[Tensor | slice]) -> Sequence[Tensor | slice]:
    """Indices where the data are, in one copy an epoch: each of its own would have the device waited for."""
    if device.type == "cpu" or not batches or isinstance(batches[0], slice):
        return batches
    tensors = [one for one in batches if isinstance(one, Tensor)]
    return torch.cat(tensors).to(device).split([len(one) for one in tensors])
