"""How a run ends before its end, and what the command then says and returns: no traceback for what is no bug."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT  # as a shell counts
DIVERGED, REFUSED, FAILED = 3, 2, 1
CHILD_SECONDS = 10  # that processes of a run which ends have to end by themselves
LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "timed out",
    "nccl",
    "broken pipe",
)  # torch.distributed
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class RunEnded(BaseException):
    """A run ends before its end, and not for a mistake in the code; no `except Exception` may hold it up.

    Args:
        message: Why and where, in a line; empty if all has been said.
        exit_code: Of the command.
        agreed: Whether all processes of the run end by it, at the same step.
    """

    def __init__(self, message: str, exit_code: int, agreed: bool = False) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code, self.agreed = exit_code, agreed


class Stopped(RunEnded):
    """A signal asked for it.

    Args:
        signum: The signal.
        place: Where training was, for people; empty before it began.
    """

    def __init__(self, signum: int, place: str = "") -> None:
        interrupted = signum == signal.SIGINT
        message = "interrupted" if interrupted else f"stopped by {signal.Signals(signum).name}"
        message = f"{message} in {place}" if place else message
        super().__init__(message, INTERRUPTED if interrupted else TERMINATED, agreed=bool(place))
        self.signum = signum


class Diverged(RunEnded):
    """A loss or a gradient is not finite; the message says which, and where."""

    def __init__(self, message: str) -> None:
        hint = "lower optimizer.lr, clip by trainer.gradient_clip_val=1.0, or warm up"
        super().__init__(f"diverged: {message}; {hint}", DIVERGED, agreed=True)


def ending(error: Exception, batch_size: int, num_devices: int) -> BaseException:
    """What `error` means to a user; itself, if it is a bug.

    Args:
        error: That ended the training.
        batch_size: Of the run, which it may be too large for the memory.
        num_devices: Of the run.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        hint = f"lower data.batch_size (now {batch_size}; trainer.accumulate_grad_batches makes up for it) or the model"
        return RunEnded(f"error: out of memory; {hint}", FAILED)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        where = f" {error.filename}" if error.filename else ""
        return RunEnded(f"error: cannot write{where}: {error.strerror}; what was written before is still good", REFUSED)
    if isinstance(error, PermissionError):
        return RunEnded(f"error: {error.filename}: {error.strerror}", REFUSED)
    if "Error(s) in loading state_dict" in text:
        return RunEnded(f"error: the checkpoint is of another model: {text[:200]}", REFUSED)
    lost = [part for part in LOST if part in text.lower()]
    if isinstance(error, RuntimeError) and num_devices > 1 and (lost or type(error).__name__.startswith("Dist")):
        return RunEnded(f"error: lost another process of this run ({(lost or [text[:100]])[0]})", FAILED)
    return error


def say(text: str, end: str = "\n") -> None:
    """Print, also where nobody reads it any more: ``| tee log`` ends by the same Ctrl-C, before the run is saved."""
    try:
        print(text, end=end, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def tell(end: RunEnded, folder: Path | None, rank: int) -> int:
    """Say why a run ended and how it can go on; the exit code of this process comes back.

    Args:
        end: Of the run.
        folder: Of the run; null if there is none yet.
        rank: Of this process; the first one speaks for all.
    """
    if rank > 0 and end.agreed:
        return 0  # a launcher would take another code for a crash, and kill the first one, which is still at work
    said = [str(end)]
    if folder is not None and end.exit_code != REFUSED and (folder / "checkpoints/last.ckpt").is_file():
        before = f"{folder}/checkpoints is from before; a run that goes on from there diverges again"
        said.append(before if end.exit_code == DIVERGED else f"go on with: python train.py --resume {folder}")
    if isinstance(end, Stopped) and (news := requeue(end.signum)):
        said.append(news)
    with suppress(OSError):
        if said != [""]:
            print("; ".join(said), file=sys.stderr, flush=True)
    return end.exit_code


def end_children(processes: Iterable[subprocess.Popen]) -> None:
    """Leave no process behind that this one has started."""
    for process in processes:
        try:
            process.wait(CHILD_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


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
