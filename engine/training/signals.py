"""Handles Ctrl-C, SIGTERM and SLURM's warning (SIGUSR1), so that a stopped run loses no work.

Before training starts, a signal ends the command at once. During training the first signal is only recorded.
`engine.training.checkpoints` looks for it before every batch, saves a checkpoint and stops. A second Ctrl-C stops at once.

Lightning's signal handlers are not used: they save in the middle of a step, end with exit code 0, and can hang several
processes (https://github.com/Lightning-AI/pytorch-lightning/issues/20806).
"""

import math
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import Any

from engine.training.exits import RunEnded, Stopped

HANG_SECONDS = 3.0  # after which a main thread that has not called the signal handler hangs
NOTICE = b"\nstopping after this step; Ctrl-C again stops at once\n"


class Signals:
    """Handles signals inside a ``with`` block.

    Attributes:
        received: The first signal; 0 for none.
        deferred: Whether signals are only recorded. Otherwise they raise `Stopped`.
        children: Returns the processes that this process has started for other devices.
    """

    def __init__(self) -> None:
        self.received, self.deferred = 0, False
        self.children: Callable[[], Iterable[subprocess.Popen]] = tuple
        self._old_handlers: dict[int, Any] = {}
        self._handled_at, self._pid = -math.inf, os.getpid()

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        handled = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ:
            handled.append(signal.SIGUSR1)
        for signum in handled:
            if signal.getsignal(signum) != signal.SIG_IGN:  # a shell lets background jobs ignore Ctrl-C
                self._old_handlers[signum] = signal.signal(signum, self._handle)
        self._reader, self._wakeup = socket.socketpair()  # Python writes the number of each signal to the second one
        self._wakeup.setblocking(False)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._old_handlers:
            return
        signal.set_wakeup_fd(self._old_wakeup_fd)
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler)
        self._wakeup.close()  # ends the thread

    def has_interrupted(self, error: Exception) -> bool:
        """Whether an error of another type than `RunEnded` comes after a signal that should have ended the command."""
        return bool(self.received) and not self.deferred and not isinstance(error, RunEnded)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._handled_at = time.monotonic()
        if os.getpid() != self._pid:  # a fork, such as a worker of a DataLoader, which the main process ends
            return
        is_second, self.received = bool(self.received), self.received or signum
        if not self.deferred or (is_second and signum == signal.SIGINT):
            raise Stopped(signum)
        if signum == signal.SIGINT and os.environ.get("LOCAL_RANK", "0") == "0":
            with suppress(OSError):  # the terminal may be closed
                os.write(2, NOTICE)  # not `print`, which the signal may have interrupted

    def _watch(self) -> None:
        """End the process if its main thread hangs where no signal handler runs, as when it waits for other processes."""
        with self._reader:
            while signum := int.from_bytes(self._reader.recv(1)):  # also SIGCHLD of child processes that end
                if signum in self._old_handlers and (not self.deferred or (signum == signal.SIGINT and self.received)):
                    timer = threading.Timer(HANG_SECONDS, self._end_if_hanging, (signum, time.monotonic()))
                    timer.daemon = True
                    timer.start()

    def _end_if_hanging(self, signum: int, received_at: float) -> None:
        # the handler may have run shortly before the thread was woken
        if self._handled_at < received_at - HANG_SECONDS:
            for process in self.children():
                process.kill()
            os._exit(Stopped(signum).exit_code)
