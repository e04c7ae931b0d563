"""The lock on a run's config: one process at a time is at work in a run's folder, and others can tell whether one is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from configs.nodes import COMMAND_LINE, ConfigError

LOOK_SECONDS = 0.05  # between two looks at a lock that another holds


def locked(folder: Path) -> IO[str] | None:
    """The run's config, open and locked, so that no second process resumes it meanwhile; null where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = (folder / "config.yaml").open(encoding="utf-8")
    try:
        for patience in (*[LOOK_SECONDS] * 9, None):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # by a run that goes on, or for a moment by `runs.py`, which asks whether one does
                if patience is None:
                    raise
                time.sleep(patience)
    except BlockingIOError:
        file.close()
        raise ConfigError(COMMAND_LINE, "--resume", f"{folder} is running", "wait for it, or stop it first") from None
    except OSError:  # a file system without locks
        file.close()
        return None
    return file


def is_running(folder: Path) -> bool:
    """Whether a process is at work in the folder of a run that is not finished."""
    with held(folder, shared=True) as alone:  # for a moment: a run that starts tries for longer
        if alone is not None:
            return not alone
    # Windows, a file system without locks, a file of somebody else's: nothing tells, and what may be at work is not to be
    # deleted. One that goes on has removed its status.json.
    return not (folder / "status.json").exists()


@contextmanager
def held(folder: Path, shared: bool = False) -> Iterator[bool | None]:
    """With the lock of a run: true if it could be had, false if another process has it, null if nothing tells."""
    try:
        import fcntl

        file = (folder / "config.yaml").open("rb")
    except (ImportError, OSError):
        yield None
        return
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            alone: bool | None = True
        except BlockingIOError:
            alone = False
        except OSError:
            alone = None
        yield alone
