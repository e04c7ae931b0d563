"""The folder of a study: its plan, its config, and the results of its runs."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.contracts import COMMAND_LINE, ConfigError
from engine.runs.run_folder import write_text
from engine.runs.run_index import STUDY_FILE
from engine.studies.jobs import study_lock
from engine.studies.plan import Plan, read_plan
from engine.terminal import shell_word


def create_study(plan: Plan, name: str | None, root: Path) -> Path:
    """Create the folder of a study, with ``study.yaml`` and the complete config. Returns the folder.

    Args:
        plan: The plan.
        name: Name of the folder; None for the name of the config and the UTC time.
        root: Folder of all runs and studies.

    Raises:
        ConfigError: if the folder exists or cannot be written.
    """
    stem = plan.config.path.stem
    name = name or f"{stem}-study-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if Path(name).name != name or name == "..":
        raise ConfigError(COMMAND_LINE, "--name", f"{name!r} is not the name of a folder", "leave out slashes")
    folder = root / name
    try:
        folder.mkdir(parents=True)
        try:
            write_config(plan, folder)
            write_text(folder / STUDY_FILE, plan.to_yaml())  # the last file, because it makes the folder a study
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except FileExistsError:
        hint = f"choose another name, or continue the study: --resume {shell_word(folder)}"
        raise ConfigError(COMMAND_LINE, "--name", f"{folder} exists", hint) from None
    except OSError as error:
        raise plan.config.error("run.root", f"cannot write to {folder} ({error.strerror})") from None
    return folder


def change_study(folder: Path, **options: Any) -> Plan:
    """Change options of a study. Other commands that work on it use them, too. Returns the new plan.

    Args:
        folder: Folder of the study.
        options: Options of `Plan.changed`; None keeps an option.

    Raises:
        ConfigError: if the folder is not that of a study, or the study cannot have the options.
    """
    plan = read_plan(folder)
    if not any(options.values()):
        return plan
    path = folder / STUDY_FILE
    with study_lock(folder):
        plan = read_plan(folder).changed(**options)
        status = path.stat()
        write_text(path, plan.to_yaml())
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # the time at which the study began
    return plan


def write_config(plan: Plan, folder: Path) -> None:
    """Write the config of a study with all values, so that a changed file or default does not change a resumed study."""
    content = plan.config.to_yaml(name=None, root=str(folder))
    write_text(folder / f"{plan.config.path.stem}.yaml", content)
