"""Ctrl-C, SIGTERM and SLURM's warning: asked for at any time, obeyed where nothing is lost.

Before training a signal ends the command at once. From then on the first one is only noted; `engine.training.checkpoints` looks at
step boundaries whether there is one, saves and ends. A second Ctrl-C ends at once. Lightning's own handlers are not used:
they save in the middle of a step, end with exit code 0, and hang several processes
(https://github.com/Lightning-AI/pytorch-lightning/issues/20806).
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

from engine.training.exits import Stopped

HANG_SECONDS = 3.0  # that the main thread may take to look at a signal
NOTICE = b"\nstopping after this step; Ctrl-C again stops at once\n"


class Signals:
    """Handles signals inside a ``with`` block.

    Attributes:
        received: The first signal; 0 for none.
        deferred: Only note signals; without it they raise `Stopped`.
        children: Processes that this one has started for further devices.
    """

    def __init__(self) -> None:
        self.received, self.deferred = 0, False
        self.children: Callable[[], Iterable[subprocess.Popen]] = tuple
        self._before: dict[int, Any] = {}
        self._handled_at = -math.inf

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        handled = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ:
            handled.append(signal.SIGUSR1)
        for signum in handled:
            if signal.getsignal(signum) != signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
                self._before[signum] = signal.signal(signum, self._handle)
        self._watched, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._woken_before = signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._woken_before)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._woken.close()  # which ends the watch

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._handled_at = time.monotonic()
        again, self.received = bool(self.received), self.received or signum
        if not self.deferred or (again and signum == signal.SIGINT):
            raise Stopped(signum)
        if signum == signal.SIGINT and os.environ.get("LOCAL_RANK", "0") == "0":
            with suppress(OSError):  # nobody may be there to read it
                os.write(2, NOTICE)  # `print` may be at work already

    def _watch(self) -> None:
        """End a process whose main thread hangs in a call that no handler gets into, as in waiting for other processes."""
        with self._watched:
            while signum := int.from_bytes(self._watched.recv(1)):  # of children that ended, too
                if signum in self._before and (not self.deferred or (signum == signal.SIGINT and self.received)):
                    timer = threading.Timer(HANG_SECONDS, self._end_if_hanging, (signum, time.monotonic()))
                    timer.daemon = True
                    timer.start()

    def _end_if_hanging(self, signum: int, came: float) -> None:
        if self._handled_at < came - HANG_SECONDS:  # the handler may have been faster than the watch
            for process in self.children():
                process.kill()
            os._exit(Stopped(signum).exit_code)
