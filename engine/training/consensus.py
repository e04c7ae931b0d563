"""Several processes that stop, or save, at the same step."""

import math
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

MAX_BATCHES = 16  # most batches between two agreements, because batches may suddenly take longer
EVERY_SECONDS = 0.1  # time between two agreements, because processes wait for each other in each of them


class ProcessConsensus:
    """If any process wants to stop or save, all do. A single process needs no agreement.

    Args:
        timeout_minutes: How long to wait for a process that does not answer.

    Attributes:
        group: The group of the processes; None for one process, and for devices that synchronize in another way (TPUs).
    """

    def __init__(self, timeout_minutes: float) -> None:
        self.group: Any = None
        self._timeout = timedelta(minutes=timeout_minutes)
        self._reduce: Callable[[Tensor], Tensor] | None = None  # the maximum over all processes
        # batch of the next agreement; batch and time of the last one
        self._next, self._last_batch, self._last_time = 0, 0, -math.inf

    def connect(self, trainer: Trainer) -> None:
        """Create the group. Every process takes part."""
        if trainer.world_size == 1 or self._reduce is not None:
            return
        if torch.distributed.is_initialized():  # a group on the CPU, because reading from a GPU would make it wait
            self.group = torch.distributed.new_group(backend="gloo", timeout=self._timeout)
        self._reduce = partial(_maximum, group=self.group, trainer=trainer)

    def can_skip(self, batch: int) -> bool:
        """Whether no agreement is due before `batch`."""
        return self._reduce is not None and batch < self._next

    def agree_at_batch(self, batch: int, signum: int, due: bool) -> tuple[int, bool]:
        """Agree on a signal and on saving, and on the batch of the next agreement: the earliest that any process proposes.

        Args:
            batch: The batch that is about to begin, counted over all epochs.
            signum: The signal that this process has received; 0 for none.
            due: Whether this process wants to save.

        Returns:
            The signal that any process has received, and whether any process wants to save.
        """
        if self._reduce is None:
            return signum, due
        now = time.monotonic()
        batch_seconds = (now - self._last_time) / max(1, batch - self._last_batch)
        proposal = batch + min(MAX_BATCHES, max(1, int(EVERY_SECONDS / max(batch_seconds, 1e-6))))
        signum, wanted, earliest = self._reduce(torch.tensor([signum, int(due), -proposal])).tolist()
        self._next, self._last_batch, self._last_time = -earliest, batch, now
        return signum, bool(wanted)

    def agree_on_signal(self, signum: int) -> int:
        """The signal that any process has received; 0 for none."""
        return signum if self._reduce is None else int(self._reduce(torch.tensor([signum, 0, 0]))[0])


def connect_again(trainer: Trainer, restart: int, timeout_minutes: float) -> None:
    """Create the process group of restarted processes before Lightning creates it.

    After a restart, the store of torchrun still contains the addresses of the ended processes, and the new processes would
    read them (https://github.com/pytorch/pytorch/issues/135712). A key prefix with the number of restarts avoids this.

    Args:
        trainer: A trainer whose `fit` has not been called.
        restart: How many times torchrun has restarted the processes; 0 to let Lightning connect them.
        timeout_minutes: How long one process waits for another.
    """
    if not restart or trainer.world_size == 1:
        return
    timeout = timedelta(minutes=timeout_minutes)
    store, rank, world_size = next(iter(rendezvous("env://", timeout=timeout)))
    backend = torch.distributed.get_default_backend_for_device(trainer.strategy.root_device)
    keys = torch.distributed.PrefixStore(f"restart {restart}", store)
    torch.distributed.init_process_group(backend, timeout=timeout, world_size=world_size, rank=rank, store=keys)


def _maximum(values: Tensor, group: Any, trainer: Trainer) -> Tensor:
    if group is None:
        gathered: Tensor = trainer.strategy.all_gather(values.to(trainer.strategy.root_device))  # (processes, values)
        return gathered.amax(0)
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group)
    return values
