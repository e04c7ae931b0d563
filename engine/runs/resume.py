"""``--resume RUN`` and ``--resume auto``: which run to resume, and whether it is still the same experiment."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config.config import Config, load_config
from engine.contracts import COMMAND_LINE, ConfigError
from engine.runs.run_folder import experiment_folder

AUTO = "auto"
# Keys that may differ from those of the run, because they do not change its result.
FREE = (
    "run.name", "run.root", "run.checkpoint_every_steps", "run.checkpoint_every_minutes", "run.timeout_minutes",
    "trainer.enable_progress_bar",
)  # fmt: skip


def find_run(which: str, path: Path | None, overrides: list[str]) -> Config:
    """The config of the run that goes on, with its folder in `resumes`.

    Args:
        which: `AUTO`, a run's folder, or a checkpoint in it.
        path: The config that was named beside; null for the run's own.
        overrides: What was written beside.

    Raises:
        ConfigError: if there is no such run, or if it was another experiment.
    """
    if which == AUTO:
        return _newest(path, overrides)
    named = Path(which)
    folder = named.parent.parent if named.suffix == ".ckpt" else named
    if not which or not (folder / "config.yaml").is_file():
        below = [one.parent for depth in ("*", "*/*") for one in named.glob(f"{depth}/config.yaml")] if which else []
        meant = max(below, key=_last_written, default="runs/CONFIG/NAME")
        hint = f"give a run's folder, such as {meant}, or a checkpoint in it"
        raise ConfigError(COMMAND_LINE, "--resume", f"{which!r} is no run's folder (no config.yaml in it)", hint)
    if named.suffix == ".ckpt" and not named.is_file():
        raise ConfigError(COMMAND_LINE, "--resume", f"there is no file {named}")
    config = load_config(path or folder / "config.yaml", overrides)
    if changed := difference(load_config(folder / "config.yaml"), config):
        key, there, here = changed
        problem = f"is {here} here, and {there} in {folder}"
        raise ConfigError(
            config.where(key), key, problem, "a changed experiment is a new run; start it without --resume"
        )
    return replace(config, resumes=folder, checkpoint=named if named.suffix == ".ckpt" else None)


def check_unfinished(config: Config) -> None:
    """Refuse to train a run that has been trained and tested.

    Raises:
        ConfigError: it says where its figures are.
    """
    if config.resumes is not None and is_finished(config.resumes):
        hint = f"its figures are in {config.resumes / 'metrics.json'}; a longer or changed one is a new run"
        raise ConfigError(COMMAND_LINE, "--resume", f"{config.resumes} is finished", hint)


def is_finished(folder: Path) -> bool:
    return (folder / "metrics.json").is_file()


def difference(one: Config, other: Config) -> tuple[str, Any, Any] | None:
    """The first key that decides the result and differs, with both values."""
    keys = {*one.all_keys(), *other.all_keys()} - {*FREE}
    for key in sorted(keys, key=lambda key: (not key.endswith(".name"), key)):  # another model has other keys, too
        values = [config[key] if key in config.all_keys() else "not there" for config in (one, other)]
        if values[0] != values[1]:
            there, here = ("null" if value is None else value for value in values)
            return key, there, here
    return None


def _newest(path: Path | None, overrides: list[str]) -> Config:
    if path is None:
        hint = "python train.py --config FILE --resume auto, or --resume runs/CONFIG/NAME"
        raise ConfigError(COMMAND_LINE, "--resume", f"{AUTO} looks for a run of a config, and none is named", hint)
    config = load_config(path, overrides)
    root, name = experiment_folder(config), config["run.name"]
    folders = [one.parent for one in root.glob(f"{name or '*'}/config.yaml") if not is_finished(one.parent)]
    said, hint = f"{root} has no unfinished run" + (f" {name}" if name else ""), "start a run without --resume"
    if folders:
        newest = max(folders, key=_last_written)
        changed = difference(load_config(newest / "config.yaml"), config)
        if changed is None:
            return replace(config, resumes=newest, falls_back=True)
        key, there, here = changed
        said = f"in the newest unfinished run, {newest}, {key} is {there}, and {here} here"
        hint = f"give --resume {newest}, or start a run without --resume"
    raise ConfigError(COMMAND_LINE, "--resume", f"nothing to resume: {said}", hint)


def _last_written(folder: Path) -> float:
    return max(os.stat(path).st_mtime for path in (folder / "config.yaml", *folder.glob("checkpoints/*.ckpt")))
