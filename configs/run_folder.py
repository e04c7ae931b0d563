"""A run's folder: made once, never shared by two runs."""

import os
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

from configs.config import Config
from configs.nodes import COMMAND_LINE, ConfigError
from configs.signatures import PROJECT

VARIABLE = "LIT_RUN_FOLDER"  # tells the processes that Lightning starts for further devices where the run is


def make_run_folder(config: Config) -> Path:
    """A new folder ROOT/CONFIG/NAME with the resolved config in it.

    Raises:
        ConfigError: if it exists, or cannot be made.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" and VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    for launcher, count in (("torchrun", "WORLD_SIZE"), ("srun", "SLURM_NTASKS")):
        if int(os.environ.get(count, "1")) > 1:
            hint = "start one, python train.py ... trainer.devices=N; it starts the others"
            raise ConfigError(COMMAND_LINE, "", f"{launcher} started {os.environ[count]} processes ({count})", hint)
    name = config["run.name"] or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if Path(name).name != name:
        raise ConfigError(config.where("run.name"), "run.name", f"{name!r} is not a folder's name", "leave out slashes")
    path = config.path.resolve()
    of_a_run = path.name == "config.yaml" and path.parent != PROJECT / "configs"
    experiment = path.parent.parent.name if of_a_run else path.stem
    folder = Path(config["run.root"]) / experiment / name
    try:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config.to_yaml(name=None), encoding="utf-8")  # it repeats under a new name
    except FileExistsError:
        raise ConfigError(config.where("run.name"), "run.name", f"{folder} exists", "choose another name") from None
    except OSError as error:
        discard(folder)
        raise ConfigError(
            config.where("run.root"), "run.root", f"cannot write to {folder} ({error.strerror})"
        ) from None
    os.environ[VARIABLE] = str(folder.resolve())
    print(f"run folder: {folder}", flush=True)
    return folder


def discard(folder: Path | None) -> None:
    """Remove the folder of a run that was refused before it began to train."""
    if folder is not None and not (folder / "environment.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
