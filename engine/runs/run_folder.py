"""The folder of a run: created by the first process, locked while the run trains."""

import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from engine.config.config import Config
from engine.config.signatures import PROJECT
from engine.contracts import COMMAND_LINE, ConfigError, UserError
from engine.runs.run_lock import delete_locked_folder, lock_run
from engine.terminal import print_line, shell_word

if TYPE_CHECKING:
    from filelock import FileLock

INTERRUPTED = (130, 143)  # exit codes of Ctrl-C and SIGTERM
LAUNCHER_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
    "TORCHELASTIC_RESTART_COUNT",
)  # fmt: skip
LAUNCHER_HINT = "unset it, or start the processes with torchrun or srun"
TORCHRUN_FILE = ".torchrun"  # in the folder of a run that torchrun has started: the result of `torchrun_id`
VARIABLE = "LIT_RUN_FOLDER"  # passes the run's folder to the processes that Lightning starts for more devices


def rank() -> int:
    """Return the rank of this process under torchrun, srun or Lightning's own launcher; 0 for a single process.

    Raises:
        UserError: if a launcher's variable is not a whole number, or if the rank is not below the number of processes.
    """
    environ = os.environ
    for name in LAUNCHER_VARIABLES:
        if not re.fullmatch(r"[0-9]{1,9}", environ.get(name, "0")):
            raise UserError(f"environment: {name}={environ[name]} is not a whole number; {LAUNCHER_HINT}")
    if "RANK" in environ:
        if int(environ["RANK"]) >= int(environ.get("WORLD_SIZE", "0")):
            size = environ.get("WORLD_SIZE", "missing")
            raise UserError(f"environment: RANK={environ['RANK']} needs a larger WORLD_SIZE ({size}); {LAUNCHER_HINT}")
        return int(environ["RANK"])
    if int(environ.get("SLURM_NTASKS", "1")) > 1 and "LOCAL_RANK" not in environ:
        return int(environ.get("SLURM_PROCID", "0"))
    return int(environ.get("NODE_RANK", "0")) or int(environ.get("LOCAL_RANK", "0"))


def torchrun_id() -> str | None:
    """Return a name of the torchrun command that has started this process; None if it is not torchrun on a single node.

    The name is the same in all processes, and after a restart.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    started = ""  # in a container, each command may have the same number
    with suppress(OSError):  # only Linux has the file
        started = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {os.getppid()} {started}"  # torchrun is the parent of all processes


def restart_count() -> int:
    """Return how many times torchrun has restarted the processes of a single node; 0 for several nodes.

    The processes of several nodes cannot know how often the others were restarted.
    """
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if torchrun_id() is not None else 0


@contextmanager
def run_folder(config: Config) -> Iterator[Path]:
    """Open the folder of the run: the folder to resume, or a new folder ROOT/CONFIG/NAME that holds the resolved config.

    Only the first process creates and locks the folder. A run that ends early leaves the reason in ``status.json``. If a new
    run is refused before it trains, its folder is removed. ``--check`` uses a temporary folder.

    Raises:
        ConfigError: if the folder exists, cannot be created, or is in use by another process.
    """
    if config.is_check:
        with TemporaryDirectory(prefix="check-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    folder, is_first, lock = _find_folder(config), rank() == 0, None
    if is_first:
        if config.resumed_folder is None:
            lock = _create_folder(config, folder)
        else:
            lock = lock_run(folder)
            if not (folder / "config.yaml").exists():
                raise ConfigError(COMMAND_LINE, "--resume", f"{folder} was deleted")
        for name in ("last", "best", "previous"):  # left by a process that was killed while it wrote
            if (unfinished := folder / f"checkpoints/{name}.part").is_file():  # not a folder of the user
                unfinished.unlink()
        os.environ[VARIABLE] = str(folder.resolve())
        print_line(f"{'run folder:' if config.resumed_folder is None else 'resuming'} {folder}")
    before, is_refused = _file_identity(folder / "environment.json"), False
    try:
        yield folder
    except BaseException as error:
        # a resumed run that is refused keeps its earlier status
        has_started = _file_identity(folder / "environment.json") != before
        written = ("environment.json", "checkpoints", "metrics.json")
        is_refused = config.resumed_folder is None and not any((folder / name).exists() for name in written)
        if is_first and has_started and not (folder / "metrics.json").exists():
            with suppress(OSError):  # a full disk may be the reason why the run ends
                _write_status(folder, error)
        if isinstance(error, OSError) and not (folder / "config.yaml").exists():
            raise UserError(f"{folder} was deleted while the run used it") from error
        raise
    finally:
        os.environ.pop(VARIABLE, None)
        if is_first and is_refused:
            with suppress(OSError):
                delete_locked_folder(folder, lock)
        elif lock is not None:
            lock.release()


def experiment_folder(config: Config) -> Path:
    """Return ROOT/CONFIG, the folder of all runs of a config. The config.yaml of a run has the CONFIG of that run."""
    path = config.path.resolve()
    is_in_run_folder = path.name == "config.yaml" and path.parent != PROJECT / "configs"
    return Path(config["run.root"]) / (path.parent.parent.name if is_in_run_folder else path.stem)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that `path` always has either the old or the complete new content."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text so that `path` always has either the old or the complete new content."""
    temporary = path.with_suffix(".part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _file_identity(path: Path) -> tuple[int, int] | None:
    """Return a value that changes when the file is replaced; None if the file does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _write_status(folder: Path, error: BaseException) -> None:
    """Write how a run ended to ``status.json``. The process that resumes the run deletes this file."""
    code_of_python = 130 if isinstance(error, KeyboardInterrupt) else 1
    code = getattr(error, "exit_code", 2 if isinstance(error, UserError) else code_of_python)
    reason = " ".join(str(error).split()) or type(error).__name__
    content = {
        "status": "interrupted" if code in INTERRUPTED else "failed",
        "exit_code": code,
        "reason": reason.removeprefix("error: "),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / "status.json", content)


def _find_folder(config: Config) -> Path:
    """Return the folder of the run, which may not exist yet."""
    if config.resumed_folder is not None:
        return config.resumed_folder
    if rank() > 0:  # this process writes nothing there; only Lightning's own launcher passes the name of the folder
        by_lightning = "LOCAL_RANK" in os.environ and "RANK" not in os.environ
        return Path(os.environ[VARIABLE]) if by_lightning and VARIABLE in os.environ else experiment_folder(config)
    name = config["run.name"] or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    if Path(name).name != name or name == "..":
        raise config.error("run.name", f"{name!r} is not the name of a folder", "leave out slashes")
    return experiment_folder(config) / name


def _create_folder(config: Config, folder: Path) -> "FileLock | None":
    """Create the folder of a new run, lock it, and write its config."""
    try:
        folder.mkdir(parents=True)
        try:
            lock = lock_run(folder)  # before the config, because other processes take a folder with a config for a run
            # without the name, so that the run can be repeated
            write_text(folder / "config.yaml", config.to_yaml(name=None))
            if (command := torchrun_id()) is not None:
                write_text(folder / TORCHRUN_FILE, command)
        except BaseException:  # also after a signal
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except FileExistsError:
        hint = f"choose another name, or resume it: --resume {shell_word(folder)}"
        raise config.error("run.name", f"{folder} exists", hint) from None
    except OSError as error:
        raise config.error("run.root", f"cannot write to {folder} ({error.strerror})") from None
    return lock
