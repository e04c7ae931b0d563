"""Checks values that are valid by themselves but not in combination."""

import math
import re
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import schema
from engine.config.components import component_names, find_component
from engine.config.errors import suggest
from engine.config.monitors import check_monitors
from engine.config.signatures import Component, short_path
from engine.contracts import ConfigError

if TYPE_CHECKING:
    from engine.config.config import Config

MAX_DAYS = 100_000  # longest duration of a training run


def cross_check(config: "Config") -> None:
    """Raise a `ConfigError` for the first impossible combination."""
    check_monitors(config)
    _check_callbacks(config)
    _check_pruning(config)
    _check_last_epochs(config)
    _check_tokenizer(config)
    _check_folds(config)
    _check_loggers(config)
    _check_trainer(config)
    _check_precision(config)
    _check_training_ends(config)


def check_requirements(config: "Config") -> None:
    """Raise a `ConfigError` if a package or a data file is missing, or if data files and folds exclude each other.

    A config that is only printed is not checked.
    """
    for section, component in config.components.items():
        for package, extra in component.constants.get("requires", {}).items():
            if find_spec(package) is None:
                hint = f"run: pip install -e '.[{extra}]' -c constraints.txt"
                key = f"{section}.name"
                raise config.error(key, f"{config[key]} needs the package {package}", hint)
    if "wandb" in schema.logger_names(config["trainer.logger"]) and find_spec("wandb") is None:
        raise config.error(
            "trainer.logger", "wandb is not installed", "run: pip install -e '.[wandb]' -c constraints.txt"
        )
    if all(config["data"].get(key) is not None for key in ("num_folds", "val", "test")):
        problem = "with data.test and data.num_folds, the validation set is a fold of data.train"
        raise config.error("data.val", problem, "set data.val=null or data.num_folds=null")
    if "data.dataset" in config.parameters and config["data.dataset"] is None:
        for split in ("train", "val", "test"):
            name, key = config[f"data.{split}"], f"data.{split}"
            if name is not None and not Path(name).expanduser().is_file():
                otherwise = "" if split == "train" else ", or null to split it off data.train"
                hint = f"give a .csv, .tsv or .jsonl file{otherwise}"
                raise config.error(key, f"there is no file {name}", hint)


def check_model_takes_data(model: Component, name: str, where: str, data: Component, data_name: str) -> None:
    """Raise a `ConfigError` if the model does not accept the modality of the data."""
    modality = data.constants.get("modality")
    if modality is None:
        hint = 'set the class attribute modality to "features", "image" or "tokens"'
        raise ConfigError(short_path(data.path), "", f"{data.name} has no `modality`", hint)
    accepts = model.constants.get("accepts", ())
    if modality not in accepts:
        models = {other: find_component("model", other).constants for other in component_names("model")}
        fitting = ", ".join(other for other, constants in models.items() if modality in constants.get("accepts", ()))
        problem = f"{name} takes {' or '.join(accepts) or 'nothing yet'}, and {data_name} is {modality}"
        raise ConfigError(where, "model.name", problem, f"models that fit: {fitting or 'none'}")


def _check_callbacks(config: "Config") -> None:
    modality = config.components["data"].constants["modality"]
    for name, options in config["callbacks"].items():
        component = config.components.get(f"callbacks.{name}")
        accepts = component.constants.get("accepts", ()) if component and options is not None else ()
        if accepts and modality not in accepts:
            problem = f"is for {' or '.join(accepts)}, and {config['data.name']} is {modality}"
            raise config.error(f"callbacks.{name}", problem, "leave it out")


def _check_pruning(config: "Config") -> None:
    if config["callbacks"].get("pruning") is not None and config["model"].get("start_from") is None:
        problem = "removes the least important units of a trained network, and model.start_from is null"
        raise config.error("callbacks.pruning", problem, "train first, then set model.start_from=RUN")


def _check_last_epochs(config: "Config") -> None:
    for name in ("quantization", "sparsity"):  # these callbacks change the last epochs
        if config["callbacks"].get(name) is not None and not (config["trainer.max_epochs"] or 0) > 0:
            raise config.error(f"callbacks.{name}", "the number of epochs is not known", "set trainer.max_epochs")


def _check_tokenizer(config: "Config") -> None:
    pretrained, key = config["model"].get("pretrained"), "data.tokenizer"
    if key in config.parameters and pretrained not in (None, config[key]):
        problem = f"is {config[key] or 'null'}, but a pretrained model needs its own tokenizer"
        raise config.error(key, problem, f"set {key}={pretrained}")


def _check_folds(config: "Config") -> None:
    if not {"data.num_folds", "data.fold"} <= config.parameters.keys():
        return
    fold, num_folds = config["data.fold"], config["data.num_folds"]
    if num_folds is None and fold:
        raise config.error("data.fold", f"{fold} is given without data.num_folds", "set data.num_folds=5, for example")
    if num_folds is not None and fold >= num_folds:
        problem = f"{fold} is out of range for data.num_folds={num_folds}"
        raise config.error("data.fold", problem, f"folds are numbered from 0 to {num_folds - 1}")


def _check_loggers(config: "Config") -> None:
    for name in schema.logger_names(config["trainer.logger"]):
        if name not in schema.LOGGERS:
            hint = suggest(name, schema.LOGGERS, "available")
            if "," in name:
                hint = f"write a list: '[{', '.join(part.strip() for part in name.split(','))}]'"
            raise config.error("trainer.logger", f"unknown logger {name!r}", hint)


def _check_trainer(config: "Config") -> None:
    for name in schema.FRACTIONS:
        key, value = f"trainer.{name}", config[f"trainer.{name}"]
        if isinstance(value, float) and value > 1:
            hint = f"a number with a decimal point is a fraction, at most 1.0; for batches write {round(value)}"
            raise config.error(key, f"{value} is out of range", hint)
    if config["trainer.devices"] in (0, "0", []):
        raise config.error("trainer.devices", "no device is requested", "write 1 or auto")
    if re.search("notebook|fork|spawn", str(config["trainer.strategy"])):
        problem = f"{config['trainer.strategy']} is for notebooks: its processes do not return the results of the run"
        raise config.error("trainer.strategy", problem, "write ddp or auto")
    is_by_norm = config["trainer.gradient_clip_algorithm"] in (None, "norm")
    if str(config["trainer.strategy"]).startswith("fsdp") and config["trainer.gradient_clip_val"] and is_by_norm:
        hint = "set trainer.gradient_clip_algorithm=value, or trainer.gradient_clip_val=null for no clipping"
        raise config.error("trainer.gradient_clip_val", "Lightning's FSDP cannot clip gradients by their norm", hint)
    for key in ("trainer.max_time", "callbacks.timer.duration"):
        if key in config.parameters and config[key] is not None:
            _check_duration(config, key, config[key])


def _check_duration(config: "Config", key: str, value: str | dict[str, int]) -> None:
    hint = "write days, hours, minutes and seconds, as in '00:01:30:00'"
    numbers = {}
    units = {"weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds"}
    if isinstance(value, dict) and value.keys() <= units:
        numbers = value
    elif isinstance(value, str) and re.fullmatch(r"\d{1,9}(:\d{1,9}){3}", value):
        numbers = dict(zip(("days", "hours", "minutes", "seconds"), map(int, value.split(":")), strict=True))
    if not numbers:
        raise config.error(key, f"{value!r} is not a duration", hint)
    try:
        days = timedelta(**numbers) / timedelta(days=1)
    except OverflowError:
        days = math.inf
    if not 0 < days <= MAX_DAYS:
        raise config.error(key, f"{value!r} is out of range", f"it must be above 0 and at most {MAX_DAYS:,} days")


def _check_precision(config: "Config") -> None:
    key, precision = "trainer.precision", config["trainer.precision"]
    if precision in ("16-true", "bf16-true") and config.components["data"].constants["modality"] == "features":
        hint = f"features would be rounded before they are normalized; set {key}={precision[:-5]}-mixed"
        raise config.error(key, f"{precision} is not for features", hint)


def _check_training_ends(config: "Config") -> None:
    limits = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.fast_dev_run")
    stops = config["callbacks"].get("early_stopping") or (config["callbacks"].get("timer") or {}).get("duration")
    if not stops and not any(config[key] for key in limits):
        raise config.error("trainer.max_epochs", "nothing ends this run", "set max_epochs, max_steps or max_time")
