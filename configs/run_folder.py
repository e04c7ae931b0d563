"""A run's folder: made once, never shared by two runs."""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from configs.config import Config
from configs.nodes import ConfigError

VARIABLE = "LIT_RUN_FOLDER"  # tells the processes that Lightning starts for further devices where the run is


def make_run_folder(config: Config) -> Path:
    """A new folder ROOT/CONFIG/NAME with the resolved config in it.

    Raises:
        ConfigError: if it exists, or cannot be made.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" and VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    name = config["run.name"] or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if Path(name).name != name:
        raise ConfigError(config.where("run.name"), "run.name", f"{name!r} is not a folder's name", "leave out slashes")
    path = config.path.resolve()
    experiment = path.parent.parent.name if path.name == "config.yaml" else path.stem  # a run's own config repeats it
    folder = Path(config["run.root"]) / experiment / name
    try:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    except FileExistsError:
        raise ConfigError(config.where("run.name"), "run.name", f"{folder} exists", "choose another name") from None
    except OSError as error:
        raise ConfigError(
            config.where("run.root"), "run.root", f"cannot write to {folder} ({error.strerror})"
        ) from None
    os.environ[VARIABLE] = str(folder.resolve())
    return folder
