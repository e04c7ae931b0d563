"""Finds the run to resume, and checks that the experiment has not changed.

``--resume RUN`` and ``--resume auto`` name the run. ``torchrun --max-restarts`` starts the same command again if a process
has died. The command then resumes the run that it started before the restart.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config.config import Config, load_config
from engine.contracts import COMMAND_LINE, ConfigError
from engine.inference.trained_run import with_found_runs
from engine.runs.run_folder import TORCHRUN_FILE, experiment_folder, restart_count, torchrun_id
from engine.terminal import shell_word

AUTO = "auto"
EXAMPLE = Path("runs/CONFIG/NAME")
# Keys that may change when a run is resumed, because they do not affect its result.
FREE_KEYS = {
    "run.name", "run.root", "run.checkpoint_every_steps", "run.checkpoint_every_minutes", "run.timeout_minutes",
    "trainer.enable_progress_bar",
}  # fmt: skip


def find_run(text: str, path: Path | None, overrides: list[str]) -> Config:
    """Return the config of the run to resume, with its folder in `resumed_folder`.

    Args:
        text: `AUTO`, the folder of a run, or a checkpoint in it.
        path: The config on the command line; None for the config of the run.
        overrides: Overrides on the command line.

    Raises:
        ConfigError: if there is no such run, or if the experiment has changed.
    """
    if text == AUTO:
        return _find_newest(path, overrides)
    given = Path(text)
    is_checkpoint = given.suffix == ".ckpt"
    folder = Path(os.path.normpath(given / "../..")) if is_checkpoint else given
    if not text or not os.path.isfile(folder / "config.yaml"):  # Path.is_file fails if the name is too long
        configs = (
            [config for depth in ("*", "*/*") for config in given.glob(f"{depth}/config.yaml")]
            if text and os.path.isdir(given)
            else []
        )
        example = max((config.parent for config in configs), key=_last_written, default=EXAMPLE)
        hint = f"give the folder of a run, such as {shell_word(example)}, or a checkpoint in it"
        problem = f"{text!r} is not the folder of a run (it has no config.yaml)"
        raise ConfigError(COMMAND_LINE, "--resume", problem, hint)
    if is_checkpoint and not given.is_file():
        raise ConfigError(COMMAND_LINE, "--resume", f"there is no file {given}")
    config = load_config(path or folder / "config.yaml", overrides)
    if path is not None:
        config = with_found_runs(config)
    if changed := first_difference(load_config(folder / "config.yaml"), config):
        key, old, new = changed
        hint = "for a changed experiment, start a new run without --resume"
        raise config.error(key, f"is {new} in this command, but {old} in {folder}", hint)
    return replace(config, resumed_folder=folder, checkpoint=given if is_checkpoint else None)


def find_restarted(config: Config) -> Config:
    """Return `config` with the folder of the run that this torchrun command started before a restart, if any.

    Args:
        config: The config on the command line, without ``--resume``.
    """
    if not restart_count():
        return config
    name = config["run.name"]
    folders = [
        file.parent
        for file in experiment_folder(config).glob(f"*/{TORCHRUN_FILE}")
        if file.read_text(encoding="utf-8") == torchrun_id()
        and name in (None, "", file.parent.name)
        and (file.parent / "config.yaml").is_file()
    ]
    newest = max(folders, key=_last_written, default=None)
    if newest is None or first_difference(load_config(newest / "config.yaml"), config):
        return config
    return replace(config, resumed_folder=newest, may_fall_back=True)


def check_unfinished(config: Config) -> None:
    """Raise a `ConfigError` if the run to resume is finished."""
    if config.resumed_folder is not None and is_finished(config.resumed_folder):
        hint = f"its metrics are in {config.resumed_folder / 'metrics.json'}; to train longer, start a new run"
        raise ConfigError(COMMAND_LINE, "--resume", f"{config.resumed_folder} is finished", hint)


def is_finished(folder: Path) -> bool:
    return (folder / "metrics.json").is_file()


def first_difference(old: Config, new: Config) -> tuple[str, Any, Any] | None:
    """Return the first key that affects the result and differs, with both values; None if the experiments are the same."""
    keys = {*old.all_keys(), *new.all_keys()} - FREE_KEYS
    # names first, because the other keys depend on them
    for key in sorted(keys, key=lambda key: (not key.endswith(".name"), key)):
        values = [config[key] if key in config.all_keys() else "not set" for config in (old, new)]
        if values[0] != values[1]:
            before, now = ("null" if value is None else value for value in values)
            return key, before, now
    return None


def _find_newest(path: Path | None, overrides: list[str]) -> Config:
    if path is None:
        hint = f"python train.py --config FILE --resume auto, or --resume {EXAMPLE}"
        raise ConfigError(COMMAND_LINE, "--resume", f"{AUTO} needs a config", hint)
    config = with_found_runs(load_config(path, overrides))
    root, name = experiment_folder(config), config["run.name"]
    folders = [file.parent for file in root.glob("*/config.yaml") if name in (None, "", file.parent.name)]
    folders = [folder for folder in folders if (folder / "config.yaml").is_file() and not is_finished(folder)]
    problem, hint = f"{root} has no unfinished run" + (f" {name}" if name else ""), "start a run without --resume"
    if folders:
        newest = max(folders, key=_last_written)
        changed = first_difference(load_config(newest / "config.yaml"), config)
        if changed is None:
            return replace(config, resumed_folder=newest, may_fall_back=True)
        key, old, new = changed
        problem = f"{key} is {old} in the newest unfinished run {newest}, but {new} in this command"
        hint = f"give --resume {shell_word(newest)}, or start a run without --resume"
    raise ConfigError(COMMAND_LINE, "--resume", f"nothing to resume: {problem}", hint)


def _last_written(folder: Path) -> float:
    files = (folder / "config.yaml", *folder.glob("checkpoints/*.ckpt"))
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
