"""The lock on a run's folder: one process at a time trains there, and other processes can see whether one does.

The operating system releases the lock when the process ends, even if it is killed.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from engine.contracts import COMMAND_LINE, ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from filelock import FileLock

NAME = ".lock"
PATIENCE_SECONDS = 2.0  # `is_running` holds the lock for a moment


def lock_run(folder: Path) -> "FileLock | None":
    """Lock the folder of a run until the lock is released or the process ends.

    Returns:
        The lock; None if the folder is not writable or its file system has no locks.

    Raises:
        ConfigError: if another process trains there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        raise ConfigError(COMMAND_LINE, "--resume", f"{folder} is running", "wait for it, or stop it first") from None
    except OSError:
        return None
    return lock


def is_running(folder: Path) -> bool:
    """Return whether a process trains in the folder of a run that is not finished."""
    is_locked = _is_locked(folder / NAME)
    if is_locked is None:
        return not (folder / "status.json").exists()  # a run that trains has removed it
    return is_locked


def _is_locked(path: Path) -> bool | None:
    """Return whether a process holds the lock; None if this cannot be determined."""
    try:
        with path.open("rb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that it does not disturb other readers
                return False
    except FileNotFoundError:  # a run of an older version
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return _is_locked_on_windows(path)


def _is_locked_on_windows(path: Path) -> bool | None:
    """Windows has no shared locks: two processes that look at the same time wait for each other."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=0.2):
            return False
    except Timeout:
        return True
    except OSError:
        return None
