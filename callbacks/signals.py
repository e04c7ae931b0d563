"""Ctrl-C, SIGTERM and SLURM's warning: asked for at any time, obeyed where nothing is lost.

Before training a signal ends the command at once. From then on the first one is only noted; `callbacks.checkpoints` looks at
step boundaries whether there is one, saves and ends. A second Ctrl-C ends at once. Lightning's own handlers are not used: they
save in the middle of a step, end with exit code 0, and hang several processes
(https://github.com/Lightning-AI/pytorch-lightning/issues/20806).
"""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

NOTICE = b"\nstopping after this step; Ctrl-C again stops at once\n"


class RunEnded(BaseException):
    """A run ends before its end, and not for a mistake in the code; no `except Exception` may hold it up.

    Args:
        message: Why and where, in a line.
        exit_code: Of the command.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(RunEnded):
    """A signal asked for it.

    Args:
        signum: The signal.
        place: Where training was, for people; empty before it began.
    """

    def __init__(self, signum: int, place: str = "") -> None:
        interrupted = signum == signal.SIGINT
        message = "interrupted" if interrupted else f"stopped by {signal.Signals(signum).name}"
        exit_code = 128 + (signal.SIGINT if interrupted else signal.SIGTERM)  # as a shell counts
        super().__init__(f"{message} in {place}" if place else message, exit_code)
        self.signum = signum


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


def requeue(signum: int) -> str | None:
    """Have SLURM start this job anew if its warning (SIGUSR1) ended it; what to tell of it comes back."""
    job = os.environ.get("SLURM_JOB_ID")
    if signum != getattr(signal, "SIGUSR1", None) or job is None:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"SLURM job {job} could not be requeued: {' '.join(str(said).split())}"
    return f"SLURM job {job} is requeued"
