"""Finds a finished run and its checkpoint. This module does not import torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.config.config import Config, load_config
from engine.config.errors import as_written
from engine.contracts import COMMAND_LINE, ConfigError
from engine.runs.run_index import find_single_run
from engine.terminal import print_line

RUN_KEYS = ("model.teacher", "model.start_from")  # keys of a config that name another run


@dataclass(frozen=True)
class TrainedRun:
    """A run whose model can be used.

    Attributes:
        folder: Its folder.
        config: Its config.
        checkpoint: The file with its weights.
    """

    folder: Path
    config: Config
    checkpoint: Path


def find_trained_run(text: str, root: Path = Path("runs"), overrides: Sequence[str] = ()) -> TrainedRun:
    """Return the run with a name, a folder or a checkpoint.

    Args:
        text: Folder of the run, a checkpoint in it, CONFIG/NAME, or a part of a name that fits only one run.
        root: Folder of all runs.
        overrides: Overrides of its config.

    Raises:
        ConfigError: if there is no such run, or if it has no checkpoint.
    """
    given = Path(text)
    if given.suffix == ".ckpt":
        folder = Path(os.path.normpath(given / "../.."))
        if not given.is_file() or not (folder / "config.yaml").is_file():
            hint = "give RUN/checkpoints/best.ckpt, or the folder of the run"
            problem = "is not the checkpoint of a run" if given.is_file() else "does not exist"
            raise ConfigError(COMMAND_LINE, text, problem, hint)
        return TrainedRun(folder, load_config(folder / "config.yaml", list(overrides)), given)
    run = find_single_run(root, text)
    paths = [run.folder / f"checkpoints/{name}.ckpt" for name in ("best", "last")]
    if (checkpoint := next(filter(Path.is_file, paths), None)) is None:
        raise ConfigError(COMMAND_LINE, text, f"{run.folder} has no checkpoint", "train the run first")
    if run.status != "finished":
        print_line(f"note: the run is {run.status}; this is its {checkpoint.stem} checkpoint so far")
    return TrainedRun(run.folder, load_config(run.folder / "config.yaml", list(overrides)), checkpoint)


def with_found_runs(config: Config) -> Config:
    """Replace the names of other runs in a config by their folders, so that the config means the same run later.

    Raises:
        ConfigError: if there is no such run, or if it has no checkpoint.
    """
    values = dict(config.values)
    for key in RUN_KEYS:
        section, name = key.split(".")
        if (text := config[section].get(name)) is not None:
            try:
                run = find_trained_run(text, Path(config["run.root"]))
            except ConfigError as error:
                raise config.error(key, str(error).removeprefix(f"{COMMAND_LINE}: ")) from None
            folders = (Path(text), Path(config["run.root"], text))
            if not text.endswith(".ckpt") and not any((folder / "config.yaml").is_file() for folder in folders):
                problem = f"{text} is only a part of a name"  # which a later run may have, too
                raise config.error(key, problem, f"write {run.folder.parent.name}/{run.folder.name}")
            model, theirs = config["model.name"], run.config["model.name"]
            if name == "start_from" and model != theirs:
                problem = f"{run.folder} has the model {theirs}, not {as_written(model)}"
                raise config.error(key, problem, f"set model.name={theirs}, with its options")
            found = run.checkpoint if text.endswith(".ckpt") else run.folder
            values[section] = {**values[section], name: str(found)}
    return replace(config, values=values)
