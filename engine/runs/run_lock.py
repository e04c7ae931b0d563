"""The lock on a run's folder. One process at a time trains there, and other processes can see that it is running.

The operating system releases the lock when the process ends, even if it is killed.
"""

import shutil
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
        ConfigError: if another process trains there, or has deleted the folder.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / NAME, fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        raise ConfigError(COMMAND_LINE, "--resume", f"{folder} is running", "wait for it, or stop it first") from None
    except OSError:
        return None
    if not is_running(folder):  # the locked file was deleted or replaced while this process waited
        lock.release()
        raise ConfigError(
            COMMAND_LINE, "--resume", f"{folder} was deleted or replaced", "check the folder, then try again"
        )
    return lock


def delete_locked_folder(folder: Path, lock: "FileLock | None") -> None:
    """Delete the folder of a run that this process has locked.

    The config is deleted first. From then on no process can resume the run, so the lock can be released.
    """
    try:
        (folder / "config.yaml").unlink(missing_ok=True)
    finally:
        if lock is not None:
            lock.release()
    shutil.rmtree(folder)


def is_running(folder: Path) -> bool:
    """Return whether a process trains in the folder of a run that is not finished."""
    path = folder / NAME
    try:
        if fcntl is not None:
            with path.open("rb") as file:
                # a shared lock: processes that only look do not block each other, and need no write access
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        elif path.exists():
            from filelock import FileLock

            with FileLock(path, timeout=0.2):
                pass
    except FileNotFoundError:  # a copy of the folder without hidden files
        return False
    except (BlockingIOError, TimeoutError):
        return True
    except OSError:  # cannot be determined; a run that trains has removed its status.json
        return not (folder / "status.json").exists()
    return False
