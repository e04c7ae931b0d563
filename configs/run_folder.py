"""A run's folder: made once, never shared by two runs, by one process at a time."""

import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from configs.config import Config
from configs.nodes import ConfigError
from configs.run_lock import locked
from configs.signatures import PROJECT

INTERRUPTED = (130, 143)  # exit codes of Ctrl-C and SIGTERM
VARIABLE = "LIT_RUN_FOLDER"  # tells the processes that Lightning starts for further devices where the run is


def rank() -> int:
    """Which of the processes of a run this is, under torchrun, srun or Lightning's own launcher."""
    environ = os.environ
    if "RANK" in environ:
        return int(environ["RANK"])
    if int(environ.get("SLURM_NTASKS", "1")) > 1 and "LOCAL_RANK" not in environ:
        return int(environ.get("SLURM_PROCID", "0"))
    return int(environ.get("NODE_RANK", "0")) or int(environ.get("LOCAL_RANK", "0"))


@contextmanager
def run_folder(config: Config) -> Iterator[Path]:
    """The folder of the run: the one that is resumed, or a new ROOT/CONFIG/NAME with the resolved config in it.

    Only the first process makes and locks it; the others write nothing. That of a new run which is refused before it trains
    is removed; that of one which ends before its end says why in ``status.json``. A run that is only checked has one of the
    system's, which is removed, too.

    Raises:
        ConfigError: if it exists, cannot be made, or another process is at work in it.
    """
    if config.checks:
        with TemporaryDirectory(prefix="check-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    folder = _opened(config)
    lock = locked(folder) if rank() == 0 else None
    if rank() == 0:
        for part in folder.glob("checkpoints/*.part"):  # of a process that was killed while it wrote
            part.unlink()
    if rank() == 0:
        try:
            print(f"{'run folder:' if config.resumes is None else 'resuming'} {folder}", flush=True)
        except OSError:  # nobody reads it
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    before = _written(folder / "environment.json")
    try:
        yield folder
    except BaseException as error:
        # a run, or its resumption, that was refused has not begun: nothing has happened to it
        began = _written(folder / "environment.json") != before
        if rank() == 0 and began and not (folder / "metrics.json").exists():
            with suppress(OSError):  # the disk may be full, which is why it ended
                _note_end(folder, error)
        raise
    finally:
        os.environ.pop(VARIABLE, None)
        if lock is not None:
            lock.close()
        if config.resumes is None and rank() == 0 and not (folder / "environment.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _written(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; null if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _note_end(folder: Path, error: BaseException) -> None:
    """Leave in a run's folder how it ended; the process that resumes it removes that again."""
    by_python = 130 if isinstance(error, KeyboardInterrupt) else 1
    code = getattr(error, "exit_code", 2 if isinstance(error, ConfigError) else by_python)
    reason = " ".join(str(error).split()) or type(error).__name__
    content = {
        "status": "interrupted" if code in INTERRUPTED else "failed",
        "exit_code": code,
        "reason": reason.removeprefix("error: "),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    temporary = folder / "status.part"
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "status.json")


def _opened(config: Config) -> Path:
    if config.resumes is not None:
        folder = config.resumes
    elif rank() > 0:
        by_lightning = "LOCAL_RANK" in os.environ and "RANK" not in os.environ
        return Path(os.environ[VARIABLE]) if by_lightning and VARIABLE in os.environ else experiment_folder(config)
    else:
        folder = _made(config)
    os.environ[VARIABLE] = str(folder.resolve())
    return folder


def experiment_folder(config: Config) -> Path:
    """Where the runs of a config lie: ROOT/CONFIG."""
    path = config.path.resolve()
    of_a_run = path.name == "config.yaml" and path.parent != PROJECT / "configs"
    return Path(config["run.root"]) / (path.parent.parent.name if of_a_run else path.stem)


def _made(config: Config) -> Path:
    name = config["run.name"] or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    if Path(name).name != name:
        raise ConfigError(config.where("run.name"), "run.name", f"{name!r} is not a folder's name", "leave out slashes")
    folder = experiment_folder(config) / name
    try:
        folder.mkdir(parents=True)
        with (folder / ".config.part").open("w", encoding="utf-8") as file:  # a config is there whole or not at all
            file.write(config.to_yaml(name=None))  # it repeats under a new name
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, folder / "config.yaml")
    except FileExistsError:
        hint = f"choose another name, or go on with it: --resume {folder}"
        raise ConfigError(config.where("run.name"), "run.name", f"{folder} exists", hint) from None
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(
            config.where("run.root"), "run.root", f"cannot write to {folder} ({error.strerror})"
        ) from None
    return folder
