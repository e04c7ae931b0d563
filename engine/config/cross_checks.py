"""Values that are right by themselves and wrong in combination."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import schema
from engine.config.components import component_names, find_component
from engine.config.errors import suggest
from engine.config.signatures import PROJECT, Component, ancestors, classes_of, logged_names
from engine.contracts import ConfigError

if TYPE_CHECKING:
    from engine.config.config import Config


def cross_check(config: "Config") -> None:
    """Refuse impossible combinations.

    Raises:
        ConfigError: for the first one found.
    """
    for check in (
        _check_monitors,
        _check_callbacks,
        _check_tokenizer,
        _check_loggers,
        _check_fractions,
        _check_precision,
        _check_training_ends,
    ):
        check(config)


def check_requirements(config: "Config") -> None:
    """Refuse a run whose packages or data files are missing. A config that is only printed needs neither.

    Raises:
        ConfigError: it names the file, or the extra that installs the package.
    """
    for section, component in config.components.items():
        for package, extra in component.constants.get("requires", {}).items():
            if find_spec(package) is None:
                hint = f"run: pip install -e '.[{extra}]' -c constraints.txt"
                key = f"{section}.name"
                raise ConfigError(config.where(key), key, f"{config[key]} needs the package {package}", hint)
    if "wandb" in schema.logger_names(config["trainer.logger"]) and find_spec("wandb") is None:
        key = "trainer.logger"
        raise ConfigError(config.where(key), key, "wandb is not installed", "run: pip install wandb")
    if "data.dataset" in config.parameters and config["data.dataset"] is None:
        for split in ("train", "val", "test"):
            name, key = config[f"data.{split}"], f"data.{split}"
            if name is not None and not Path(name).expanduser().is_file():
                cut = "" if split == "train" else ", or null to split it off data.train"
                hint = f"give a .csv, .tsv or .jsonl file{cut}"
                raise ConfigError(config.where(key), key, f"there is no file {name}", hint)


def check_model_takes_data(model: Component, name: str, where: str, data: Component, data_name: str) -> None:
    """Refuse a model that cannot take the data.

    Raises:
        ConfigError: it lists the models that can.
    """
    modality = data.constants.get("modality")
    if modality is None:
        hint = 'write modality = "features", "image" or "tokens" in it'
        raise ConfigError(f"datamodules/{data.path.name}", "", f"{data.name} has no `modality`", hint)
    accepts = model.constants.get("accepts", ())
    if modality not in accepts:
        models = {other: find_component("model", other).constants for other in component_names("model")}
        fitting = ", ".join(other for other, constants in models.items() if modality in constants.get("accepts", ()))
        problem = f"{name} takes {' or '.join(accepts) or 'nothing yet'}, and {data_name} is {modality}"
        raise ConfigError(where, "model.name", problem, f"models that fit: {fitting or 'none'}")


def _check_monitors(config: "Config") -> None:
    logged, computed = _logged_metrics(config)
    for key, monitor in config.monitors().items():
        if monitor not in logged and not computed:
            hint = suggest(monitor, logged, "logged")
            raise ConfigError(config.where(key), key, f"no metric {monitor!r} is logged", hint)
        off = config["trainer.limit_val_batches"] == 0
        if off and monitor.startswith("val/") and (key != "run.monitor" or key in config.origins):
            raise ConfigError(config.where(key), key, f"{monitor} is not measured", "trainer.limit_val_batches is 0")
        if key == "run.monitor" and monitor.startswith("train/"):
            problem = f"{monitor} is not measured in validation, by which the best checkpoint is chosen"
            raise ConfigError(config.where(key), key, problem, "choose a metric such as val/loss")
        mode_key, best = key.replace(".monitor", ".mode"), schema.METRICS.get(monitor)
        mode = config[mode_key] if mode_key in config.parameters else None
        if best and mode not in (None, best):
            place = config.origins.get(mode_key, config.where(key))
            raise ConfigError(place, mode_key, f"{mode} does not fit {monitor}", f"set {mode_key}={best}")


def _logged_metrics(config: "Config") -> tuple[set[str], bool]:
    """The names under which the model, the data and the callbacks log metrics, and whether they log under computed names."""
    names, computed = set(schema.METRICS), False
    for component in config.components.values():
        files = {component.path} if component.path.is_relative_to(PROJECT) else set()
        for node in classes_of(component.path) if files else ():
            if node.name == component.name:
                files |= {file for _, file, _ in ancestors(component.path, node) if file is not None}
        for file in files - {PROJECT / "lit_models/classifier.py"}:  # `schema.METRICS` are those of the base class
            found, more = logged_names(file)
            names, computed = names | found, computed or more
    return names, computed


def _check_callbacks(config: "Config") -> None:
    modality = config.components["data"].constants["modality"]
    for name, options in config["callbacks"].items():
        component = config.components.get(f"callbacks.{name}")
        accepts = component.constants.get("accepts", ()) if component and options is not None else ()
        if accepts and modality not in accepts:
            problem = f"is for {' or '.join(accepts)}, and {config['data.name']} is {modality}"
            raise ConfigError(config.where(f"callbacks.{name}"), f"callbacks.{name}", problem, "leave it out")


def _check_tokenizer(config: "Config") -> None:
    pretrained, key = config["model"].get("pretrained"), "data.tokenizer"
    if key in config.parameters and pretrained not in (None, config[key]):
        problem = f"is {config[key] or 'null'}, but a pretrained model needs its own tokenizer"
        raise ConfigError(config.where(key), key, problem, f"set {key}={pretrained}")


def _check_loggers(config: "Config") -> None:
    key = "trainer.logger"
    for name in schema.logger_names(config[key]):
        if name not in schema.LOGGERS:
            hint = suggest(name, schema.LOGGERS, "available")
            raise ConfigError(config.where(key), key, f"unknown logger {name!r}", hint)


def _check_fractions(config: "Config") -> None:
    for name in schema.FRACTIONS:
        key, value = f"trainer.{name}", config[f"trainer.{name}"]
        if isinstance(value, float) and value > 1:
            hint = f"a number with a decimal point is a fraction, at most 1.0; for batches write {round(value)}"
            raise ConfigError(config.where(key), key, f"{value} is out of range", hint)
    if config["trainer.devices"] in (0, "0", []):
        raise ConfigError(
            config.where("trainer.devices"), "trainer.devices", "no device is requested", "write 1 or auto"
        )
    key, duration = "trainer.max_time", config["trainer.max_time"]
    if isinstance(duration, str) and not re.fullmatch(r"\d+:\d+:\d+:\d+", duration):
        hint = "write days, hours, minutes and seconds, as in '00:01:30:00'"
        raise ConfigError(config.where(key), key, f"{duration!r} is not a duration", hint)


def _check_precision(config: "Config") -> None:
    key, precision = "trainer.precision", config["trainer.precision"]
    if precision in ("16-true", "bf16-true") and config.components["data"].constants["modality"] == "features":
        hint = f"features would be rounded before they are normalized; set {key}={precision[:-5]}-mixed"
        raise ConfigError(config.where(key), key, f"{precision} is not for features", hint)


def _check_training_ends(config: "Config") -> None:
    limits = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.fast_dev_run")
    stops = config["callbacks"].get("early_stopping") or (config["callbacks"].get("timer") or {}).get("duration")
    if not stops and not any(config[key] for key in limits):
        where = config.where("trainer.max_epochs")
        raise ConfigError(where, "trainer.max_epochs", "nothing ends this run", "set max_epochs, max_steps or max_time")
