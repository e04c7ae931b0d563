"""The lock on a run's folder: one process at a time trains there, and other processes can see whether one does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from engine.contracts import COMMAND_LINE, ConfigError

NAME = ".lock"
PATIENCE_SECONDS = 0.5  # `runs.py` holds a lock for a moment when it looks whether a run is running
LOOK_SECONDS = 0.1  # and gives another `runs.py` that much time


def lock_run(folder: Path) -> FileLock | None:
    """Lock the folder of a run until the process ends; None if the file system has no locks.

    Raises:
        ConfigError: if another process trains there.
    """
    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        raise ConfigError(COMMAND_LINE, "--resume", f"{folder} is running", "wait for it, or stop it first") from None
    except OSError:
        return None
    return lock


def is_running(folder: Path) -> bool:
    """Whether a process trains in the folder of a run that is not finished."""
    with try_lock(folder) as is_free:
        if is_free is not None:
            return not is_free
    # nothing tells, as on a file system without locks; a run that trains has removed its status.json
    return not (folder / "status.json").exists()


@contextmanager
def try_lock(folder: Path) -> Iterator[bool | None]:
    """Hold the lock of a run, if it is free: True if it was, False if a process has it, None if nothing tells."""
    if not (folder / NAME).exists():
        yield True
        return
    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=LOOK_SECONDS, poll_interval=0.02)
    except Timeout:
        yield False
    except OSError:
        yield None
    else:
        try:
            yield True
        finally:
            lock.release()
