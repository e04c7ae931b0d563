"""Keeps the threads of a training on different CPU cores when other programs use the machine."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from engine.training.clock import MAX_WAITING, core_waiting_seconds

LOOK_SECONDS = 1.0  # time between two checks
# Linux only; elsewhere threads are not bound
TASKS = Path("/proc/self/task")
CPUS = Path("/sys/devices/system/cpu")


class SpreadThreads(Callback):
    """When training on the CPU has to wait for cores, binds each of its threads to a separate core.

    Threads that wait for each other by spinning look busy to the scheduler of Linux. It can therefore leave two of them on
    one core, although another core is less busy or idle. A convolution of oneDNN, whose threads spin without a limit, then
    takes up to 90 times as long (`python -m benchmarks busy`). Binding does not change any result.

    Threads are bound only if their number equals the number of cores, or of logical CPUs, that the process may use. With
    fewer threads, two programs could bind their threads to the same cores. Threads are also not bound if a DataLoader has
    worker processes, because these would inherit the core of their parent.
    """

    def __init__(self) -> None:
        self._next_look = self._looked_at = self._waited = 0.0
        self._cpu_seconds: dict[int, float] = {}
        self._former_cores: dict[int, set[int]] = {}  # the cores that each bound thread could use before

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = CombinedLoader([trainer.train_dataloader, trainer.val_dataloaders]).flattened
        has_workers = any(getattr(loader, "num_workers", 0) for loader in loaders)
        is_useful = trainer.strategy.root_device.type == "cpu" and core_waiting_seconds() is not None
        self._next_look = time.monotonic() if is_useful and not has_workers else float("inf")
        self._waited = float("inf")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        seconds, waited, cpu_seconds = now - self._looked_at, core_waiting_seconds() or 0.0, thread_cpu_seconds()
        if waited - self._waited > MAX_WAITING * seconds and not self._former_cores:
            used = {thread: total - self._cpu_seconds.get(thread, 0.0) for thread, total in cpu_seconds.items()}
            busiest = sorted(used, key=used.__getitem__, reverse=True)[: torch.get_num_threads()]
            self._former_cores = spread_threads(busiest)
        self._looked_at, self._waited, self._cpu_seconds = now, waited, cpu_seconds
        self._next_look = now + LOOK_SECONDS

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        release_threads(self._former_cores)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        release_threads(self._former_cores)


def thread_cpu_seconds() -> dict[int, float]:
    """CPU time of each thread of this process."""
    seconds = {}
    for task in TASKS.iterdir():
        with suppress(OSError, ValueError, IndexError):  # the thread has ended
            seconds[int(task.name)] = int((task / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    return seconds


def spread_threads(threads: list[int]) -> dict[int, set[int]]:
    """Bind each of `threads` to a separate core.

    Do nothing if their number differs from the number of cores and from the number of logical CPUs.

    Args:
        threads: Linux thread IDs.

    Returns:
        The logical CPUs that each bound thread could use before.
    """
    cpus = sorted(os.sched_getaffinity(0))
    cores: dict[str, set[int]] = {}
    for cpu in cpus:
        cores.setdefault(_siblings(cpu), set()).add(cpu)
    places = list(cores.values()) if len(threads) == len(cores) else [{cpu} for cpu in cpus]
    if len(threads) != len(places):
        return {}
    former: dict[int, set[int]] = {}
    for thread, place in zip(sorted(threads), places, strict=True):
        with suppress(OSError):
            former[thread] = os.sched_getaffinity(thread)
            os.sched_setaffinity(thread, place)
    return former


def _siblings(cpu: int) -> str:
    """Return the logical CPUs that share the core of a logical CPU, as Linux writes them."""
    try:
        return (CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return str(cpu)


def release_threads(former_cores: dict[int, set[int]]) -> None:
    """Let bound threads use their former cores again, and empty the result of `spread_threads`."""
    while former_cores:
        thread, cores = former_cores.popitem()
        with suppress(OSError):
            os.sched_setaffinity(thread, cores)
