"""Ctrl-C, SIGTERM and SLURM's warning: asked for at any time, obeyed where nothing is lost.

Before training a signal ends the command at once. From then on the first one is only noted; `callbacks.checkpoints` looks at
step boundaries whether there is one, saves and ends. A second Ctrl-C ends at once. Lightning's own handlers are not used:
they save in the middle of a step, end with exit code 0, and hang several processes
(https://github.com/Lightning-AI/pytorch-lightning/issues/20806).
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from callbacks.endings import Stopped

NOTICE = b"\nstopping after this step; Ctrl-C again stops at once\n"


class Signals:
    """Handles signals inside a ``with`` block.

    Attributes:
        received: The first signal; 0 for none.
        deferred: Only note signals; without it they raise `Stopped`.
    """

    def __init__(self) -> None:
        self.received, self.deferred = 0, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self
        handled = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ:
            handled.append(signal.SIGUSR1)
        for signum in handled:
            if signal.getsignal(signum) != signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again, self.received = bool(self.received), self.received or signum
        if not self.deferred or (again and signum == signal.SIGINT):
            raise Stopped(signum)
        if signum == signal.SIGINT and os.environ.get("LOCAL_RANK", "0") == "0":
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, NOTICE)  # `print` may be at work already
