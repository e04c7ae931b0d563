"""Keeps the threads of a training on different CPU cores when other programs use the machine."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from engine.training.clock import MAX_WAITING, core_waiting_seconds

LOOK_SECONDS = 1.0  # time between two looks
TASKS = Path("/proc/self/task")  # Linux only; elsewhere threads are not bound

_unbound: dict[int, set[int]] = {}  # the cores of each bound thread, before it was bound


class SpreadThreads(Callback):
    """Binds each thread of a training on the CPU to a core of its own as soon as the training waits for cores.

    Threads that wait for each other by spinning look busy. The scheduler of Linux can therefore leave two of them on one
    core, although another core is less busy or idle. A convolution of oneDNN, whose threads spin without a limit, then takes
    up to 90 times as long (`python -m benchmarks busy`). Binding does not change any result.

    Threads are bound only if there are as many as the cores that the process may use. With fewer, two programs could bind
    their threads to the same cores.
    """

    def __init__(self) -> None:
        self._next_look = self._looked_at = self._waited = 0.0
        self._cpu_seconds: dict[int, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_useful = trainer.strategy.root_device.type == "cpu" and core_waiting_seconds() is not None
        self._next_look = time.monotonic() if is_useful else float("inf")
        self._waited = float("inf")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        seconds, waited, cpu_seconds = now - self._looked_at, core_waiting_seconds() or 0.0, thread_cpu_seconds()
        if waited - self._waited > MAX_WAITING * seconds and not _unbound:
            used = {thread: total - self._cpu_seconds.get(thread, 0.0) for thread, total in cpu_seconds.items()}
            spread_threads(sorted(used, key=used.__getitem__, reverse=True)[: torch.get_num_threads()])
        self._looked_at, self._waited, self._cpu_seconds = now, waited, cpu_seconds
        self._next_look = now + LOOK_SECONDS

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        release_threads()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        release_threads()


def thread_cpu_seconds() -> dict[int, float]:
    """CPU time of each thread of this process."""
    seconds = {}
    for task in TASKS.iterdir():
        with suppress(OSError, ValueError, IndexError):  # the thread has ended
            seconds[int(task.name)] = int((task / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    return seconds


def spread_threads(threads: list[int]) -> None:
    """Bind each of `threads` to a core of its own if they are as many as the cores that this process may use.

    Args:
        threads: Linux thread IDs.
    """
    cores = os.sched_getaffinity(0)
    if len(threads) != len(cores):
        return
    for thread, core in zip(sorted(threads), sorted(cores), strict=True):
        with suppress(OSError):
            _unbound[thread] = os.sched_getaffinity(thread)
            os.sched_setaffinity(thread, {core})


def release_threads() -> None:
    """Let the bound threads use all their cores again."""
    while _unbound:
        thread, cores = _unbound.popitem()
        with suppress(OSError):
            os.sched_setaffinity(thread, cores)


def _release_child() -> None:
    """Let a forked process, such as a worker of a DataLoader, use all cores. It inherits the core of its parent's thread."""
    if _unbound:
        os.sched_setaffinity(0, set().union(*_unbound.values()))
        _unbound.clear()


if hasattr(os, "register_at_fork"):  # not Windows
    os.register_at_fork(after_in_child=_release_child)
