"""How a run ends early: what the command prints, and its exit code. Only bugs show a traceback."""

import errno
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from engine.config.components import FOLDERS, lightning_folder
from engine.config.signatures import PROJECT, short_path
from engine.contracts import UserError, one_line
from engine.terminal import shell_word

TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT  # the exit codes that a shell shows
DIVERGED, REFUSED, FAILED = 3, 2, 1
CHILD_SECONDS = 10  # time for child processes to end by themselves
# parts of messages of torch.distributed that mean that another process has ended
LOST = ("connection closed by peer", "connection reset by peer", "timed out", "nccl", "broken pipe")
NO_MEMORY = ("can't allocate memory", "Storage size calculation overflowed", "numel: integer multiplication overflow")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
OWNERS_FOLDERS = tuple(PROJECT / folder for folder, _ in FOLDERS.values())


class RunEnded(BaseException):
    """A run ends early, and not because of a bug. No ``except Exception`` catches it.

    Args:
        message: Why and where, in one line; "" if this has been printed.
        exit_code: Exit code of the command.
        agreed: Whether all processes of the run end at the same step.
    """

    def __init__(self, message: str, exit_code: int, agreed: bool = False) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code, self.agreed = exit_code, agreed


class Stopped(RunEnded):
    """A signal ends the run.

    Args:
        signum: The signal.
        place: Where training was, for the user; "" before training.
    """

    def __init__(self, signum: int, place: str = "") -> None:
        interrupted = signum == signal.SIGINT
        message = "interrupted" if interrupted else f"stopped by {signal.Signals(signum).name}"
        message = f"{message} in {place}" if place else message
        super().__init__(message, INTERRUPTED if interrupted else TERMINATED, agreed=bool(place))
        self.signum = signum


class Diverged(RunEnded):
    """A loss, a gradient or a weight is not finite. The message says which one and where."""

    def __init__(self, message: str) -> None:
        hint = "lower optimizer.lr, clip gradients by trainer.gradient_clip_val=1.0, or use warm-up"
        super().__init__(f"diverged: {message}; {hint}", DIVERGED, agreed=True)


def explain_error(error: Exception, batch_size: int | None, num_devices: int) -> BaseException:
    """The error as the user should see it: `RunEnded` if it is not a bug, else the error itself.

    Args:
        error: The error that ended the training.
        batch_size: Batch size of the run, for a hint; None if the datamodule has no such option.
        num_devices: Number of devices of the run.
    """
    text = " ".join(str(error).split())
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(part in text for part in NO_MEMORY)
    ):
        size = "the batch size (" if batch_size is None else f"data.batch_size (now {batch_size}; "
        hint = f"lower {size}trainer.accumulate_grad_batches compensates) or the size of the model"
        return RunEnded(f"error: out of memory; {hint}", FAILED)
    if "Expected more than 1 value per channel when training" in text:
        hint = "raise data.batch_size, also for the last batch of an epoch, or choose another model.normalization"
        return RunEnded(f"error: batch normalization needs at least two samples in each batch; {hint}", REFUSED)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        where = f" {error.filename}" if error.filename else ""
        return RunEnded(f"error: cannot write{where}: {error.strerror}; files written before are still good", REFUSED)
    if isinstance(error, PermissionError) and error.filename:
        return RunEnded(f"error: {error.filename}: {error.strerror}", REFUSED)
    functions = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if "Error(s) in loading state_dict" in text and "__init__" not in functions:  # not the model's own loading
        return RunEnded(f"error: the checkpoint is of another model: {text[:200]}", REFUSED)
    lost = [part for part in LOST if part in text.lower()]
    if isinstance(error, RuntimeError) and num_devices > 1 and (lost or type(error).__name__.startswith("Dist")):
        reason = (lost or [text[:100]])[0]
        return RunEnded(f"error: lost another process of this run ({reason}); its own error is printed above", FAILED)
    return error


def is_refusal(error: BaseException) -> bool:
    """Return whether Lightning refuses an option.

    An error in the training loop, about the model's optimizers, or below a call in the user's own files, is a bug in these
    files. `LitClassifier` asks for the number of steps, for which Lightning creates the loaders and checks their options.
    """
    frames = traceback.extract_tb(error.__traceback__)
    files, functions = [Path(frame.filename) for frame in frames], [frame.name for frame in frames]
    own = [i for i, file in enumerate(files) if _is_owners(file)]
    asks_for_steps = "estimated_stepping_batches" in functions[max(own, default=0) :]
    is_in_training = not {"advance", "_init_optimizers_and_lr_schedulers"}.isdisjoint(functions)
    if (own or is_in_training) and not asks_for_steps:
        return False
    is_by_lightning = bool(files) and files[-1].is_relative_to(lightning_folder().parent)
    is_usual_type = isinstance(error, ValueError | TypeError | ImportError | RuntimeError)
    return (is_by_lightning and is_usual_type) or type(error).__name__ == "MisconfigurationException"


def _is_owners(file: Path) -> bool:
    """Return whether a file is in a folder of models, datamodules or callbacks."""
    return any(file.is_relative_to(folder) for folder in OWNERS_FOLDERS)


def report_exit(end: RunEnded | UserError, folder: Path | None, rank: int) -> int:
    """Print why a run ended and how to resume it. If all processes end, only the first one prints.

    Args:
        end: Why the run ended.
        folder: Folder of the run; None if there is none yet.
        rank: Number of this process.

    Returns:
        The exit code of this process.
    """
    if isinstance(end, UserError):
        end = RunEnded(f"error: {end}", REFUSED)
    if rank > 0 and end.agreed:
        return 0  # otherwise a launcher would report a crash, and kill the first process while it saves
    parts = [str(end)]
    if folder is not None and end.exit_code != REFUSED and (folder / "checkpoints/last.ckpt").is_file():
        before = f"{folder}/checkpoints is from before; a run resumed from there diverges again"
        parts.append(
            before if end.exit_code == DIVERGED else f"resume with: python train.py --resume {shell_word(folder)}"
        )
    if isinstance(end, Stopped) and (note := requeue(end.signum)):
        parts.append(note)
    with suppress(OSError):
        if parts != [""]:
            print("; ".join(parts), file=sys.stderr, flush=True)
    return end.exit_code


def report_bug(error: Exception) -> int:
    """Print the traceback of a bug and, in the last line, the deepest line of the project that it went through."""
    with suppress(OSError):
        traceback.print_exception(error)
        frames = traceback.extract_tb(error.__traceback__)
        places = [(Path(frame.filename), frame.lineno) for frame in frames]
        # a worker of a DataLoader puts its own traceback into the message
        places += [(Path(file), int(line)) for file, line in re.findall(r'File "(.+?)", line (\d+)', str(error))]
        own = [place for place in places if place[0].is_relative_to(PROJECT) and ".venv" not in place[0].parts]
        owners = [place for place in own if _is_owners(place[0])]
        file, line = (owners or own or places)[-1]
        from_worker = "Traceback" in str(error)
        message = str(error).strip().splitlines()[-1] if from_worker else f"{type(error).__name__}: {one_line(error)}"
        print(f"error: {short_path(file)}:{line}: {message}", file=sys.stderr, flush=True)
    return FAILED


def end_children(processes: Iterable[subprocess.Popen]) -> None:
    """Wait for the child processes, and kill each child that does not end."""
    for process in processes:
        try:
            process.wait(CHILD_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def requeue(signum: int) -> str | None:
    """Requeue the SLURM job if SLURM's warning (SIGUSR1) ended it.

    Returns:
        What to tell the user; None if there is nothing to requeue.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if signum != getattr(signal, "SIGUSR1", None) or job is None:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        return f"SLURM job {job} could not be requeued: {' '.join(str(reason).split())}"
    return f"SLURM job {job} is requeued"
