"""A run's folder: created once, used by one run, locked by the process that trains there."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engine.config.config import Config
from engine.config.signatures import PROJECT
from engine.contracts import ConfigError, UserError
from engine.runs.run_lock import lock_run
from engine.terminal import print_line

INTERRUPTED = (130, 143)  # exit codes of Ctrl-C and SIGTERM
VARIABLE = "LIT_RUN_FOLDER"  # tells the processes that Lightning starts for more devices where the run's folder is


def rank() -> int:
    """The number of this process among those of the run, under torchrun, srun or Lightning's own launcher."""
    environ = os.environ
    if "RANK" in environ:
        return int(environ["RANK"])
    if int(environ.get("SLURM_NTASKS", "1")) > 1 and "LOCAL_RANK" not in environ:
        return int(environ.get("SLURM_PROCID", "0"))
    return int(environ.get("NODE_RANK", "0")) or int(environ.get("LOCAL_RANK", "0"))


@contextmanager
def run_folder(config: Config) -> Iterator[Path]:
    """The folder of the run: the one that is resumed, or a new ROOT/CONFIG/NAME that holds the resolved config.

    Only the first process creates and locks the folder; the others write nothing. A new run that is refused before it trains
    leaves no folder. A run that ends early says why in ``status.json``. ``--check`` works in a temporary folder.

    Raises:
        ConfigError: if the folder exists, cannot be created, or is in use by another process.
    """
    if config.checks:
        with TemporaryDirectory(prefix="check-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    folder, is_first = _open_folder(config), rank() == 0
    lock = lock_run(folder) if is_first else None
    if is_first:
        for part in folder.glob("checkpoints/*.part"):  # from a process that was killed while it wrote
            part.unlink()
        print_line(f"{'run folder:' if config.resumes is None else 'resuming'} {folder}")
    before = _file_identity(folder / "environment.json")
    try:
        yield folder
    except BaseException as error:
        # a run that was refused before it trained, or before it went on, keeps its status
        has_begun = _file_identity(folder / "environment.json") != before
        if is_first and has_begun and not (folder / "metrics.json").exists():
            with suppress(OSError):  # a full disk may be the reason why the run ends
                _write_status(folder, error)
        raise
    finally:
        os.environ.pop(VARIABLE, None)
        if lock is not None:
            lock.release()
        if config.resumes is None and is_first and not (folder / "environment.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


def experiment_folder(config: Config) -> Path:
    """The folder of all runs of a config: ROOT/CONFIG."""
    path = config.path.resolve()
    is_of_a_run = path.name == "config.yaml" and path.parent != PROJECT / "configs"
    return Path(config["run.root"]) / (path.parent.parent.name if is_of_a_run else path.stem)


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that `path` holds either the old content or all of the new."""
    temporary = path.with_suffix(".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _file_identity(path: Path) -> tuple[int, int] | None:
    """Changes when a file is replaced; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _write_status(folder: Path, error: BaseException) -> None:
    """Write how a run ended. The process that resumes the run deletes this file."""
    by_python = 130 if isinstance(error, KeyboardInterrupt) else 1
    code = getattr(error, "exit_code", 2 if isinstance(error, UserError) else by_python)
    reason = " ".join(str(error).split()) or type(error).__name__
    content = {
        "status": "interrupted" if code in INTERRUPTED else "failed",
        "exit_code": code,
        "reason": reason.removeprefix("error: "),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / "status.json", content)


def _open_folder(config: Config) -> Path:
    if config.resumes is not None:
        folder = config.resumes
    elif rank() > 0:
        by_lightning = "LOCAL_RANK" in os.environ and "RANK" not in os.environ
        return Path(os.environ[VARIABLE]) if by_lightning and VARIABLE in os.environ else experiment_folder(config)
    else:
        folder = _create_folder(config)
    os.environ[VARIABLE] = str(folder.resolve())
    return folder


def _create_folder(config: Config) -> Path:
    name = config["run.name"] or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    if Path(name).name != name:
        problem = f"{name!r} is not the name of a folder"
        raise ConfigError(config.where("run.name"), "run.name", problem, "leave out slashes")
    folder = experiment_folder(config) / name
    try:
        folder.mkdir(parents=True)
        with (folder / ".config.part").open("w", encoding="utf-8") as file:  # config.yaml is complete or missing
            file.write(config.to_yaml(name=None))  # it can be repeated under a new name
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, folder / "config.yaml")
    except FileExistsError:
        hint = f"choose another name, or resume it: --resume {folder}"
        raise ConfigError(config.where("run.name"), "run.name", f"{folder} exists", hint) from None
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        problem = f"cannot write to {folder} ({error.strerror})"
        raise ConfigError(config.where("run.root"), "run.root", problem) from None
    return folder
