"""Several processes that stop, or save, at one step."""

import math
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

MOST_BATCHES = 16  # between two: batches may suddenly take longer
EVERY_SECONDS = 0.1  # between two agreements: at every step they would make processes wait once more than gradients do


class Agreement:
    """What any process wants, all do. A single process agrees with itself.

    Args:
        timeout_minutes: Until a process that does not answer is taken for dead.

    Attributes:
        group: Of the processes; null for one, and for devices with a way of their own, such as TPUs.
    """

    def __init__(self, timeout_minutes: float) -> None:
        self.group: Any = None
        self._timeout = timedelta(minutes=timeout_minutes)
        self._reduce: Callable[[Tensor], Tensor] | None = None  # the largest of all processes
        self._next, self._batch, self._at = 0, 0, -math.inf  # batch of the next agreement; batch and time of the last

    def connect(self, trainer: Trainer) -> None:
        """Before the first question; every process takes part."""
        if trainer.world_size == 1 or self._reduce is not None:
            return
        if torch.distributed.is_initialized():  # a group of its own, on the CPU: asking a GPU would hold it up
            self.group = torch.distributed.new_group(backend="gloo", timeout=self._timeout)
        self._reduce = partial(_largest, group=self.group, trainer=trainer)

    def postponed(self, batch: int) -> bool:
        """Whether the next agreement in training is before a later batch than `batch`."""
        return self._reduce is not None and batch < self._next

    def at_batch(self, batch: int, signum: int, due: bool) -> tuple[int, bool]:
        """As `now`; and agree on the batch at which to do so again, the soonest that any process proposes.

        Args:
            batch: That is about to begin, counted over all epochs.
            signum: The signal that this process has received; 0 for none.
            due: Whether it wants to save.
        """
        if self._reduce is None:
            return signum, due
        now = time.monotonic()
        seconds = (now - self._at) / max(1, batch - self._batch)  # each batch has taken
        proposal = batch + min(MOST_BATCHES, max(1, int(EVERY_SECONDS / max(seconds, 1e-6))))
        signum, wanted, soonest = self._reduce(torch.tensor([signum, int(due), -proposal])).tolist()
        self._next, self._batch, self._at = -soonest, batch, now
        return signum, bool(wanted)

    def now(self, signum: int) -> int:
        """The signal that any process has received; 0 for none."""
        return signum if self._reduce is None else int(self._reduce(torch.tensor([signum, 0, 0]))[0])


def _largest(values: Tensor, group: Any, trainer: Trainer) -> Tensor:
    if group is None:
        gathered: Tensor = trainer.strategy.all_gather(values.to(trainer.strategy.root_device))  # (processes, values)
        return gathered.amax(0)
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group)
    return values
