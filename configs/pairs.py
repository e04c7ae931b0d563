"""What is right key by key and wrong together."""

import re
from importlib.util import find_spec
from pathlib import Path

from configs import schema
from configs.catalogue import named, names, nearest
from configs.config import Config
from configs.nodes import ConfigError
from configs.signatures import Component, texts


def check_pairs(config: Config) -> None:
    """Refuse impossible combinations.

    Raises:
        ConfigError: the first one found.
    """
    _check_monitors(config)
    _check_callbacks(config)
    _check_tokenizer(config)
    _check_plateau(config)
    _check_shares(config)
    _check_precision(config)
    _check_it_ends(config)


def check_ready(config: Config) -> None:
    """Refuse a run whose packages or files are not there; what is only shown needs neither.

    Raises:
        ConfigError: it names the extra that brings the packages, or the file.
    """
    for section, component in config.components.items():
        for package, extra in component.constants.get("requires", {}).items():
            if find_spec(package) is None:
                hint = f"run: pip install -e '.[{extra}]' -c constraints.txt"
                key = f"{section}.name"
                raise ConfigError(config.where(key), key, f"{config[key]} needs the package {package}", hint)
    if "data.dataset" in config.parameters and config["data.dataset"] is None:
        for part in ("train", "val", "test"):
            name, key = config[f"data.{part}"], f"data.{part}"
            if name is not None and not Path(name).expanduser().is_file():
                cut = "" if part == "train" else ", or null to cut it from data.train"
                hint = f"give a .csv, .tsv or .jsonl file{cut}"
                raise ConfigError(config.where(key), key, f"there is no file {name}", hint)


def check_model_takes_data(model: Component, name: str, where: str, data: Component, data_name: str) -> None:
    """Refuse a model that cannot take the data.

    Raises:
        ConfigError: it lists the models that can.
    """
    modality = data.constants.get("modality")
    if modality is None:
        path = f"datamodules/{data.path.name}"
        raise ConfigError(
            path, "", f"{data.name} has no `modality`", 'write modality = "features", "image" or "tokens" in it'
        )
    accepts = model.constants.get("accepts", ())
    if modality not in accepts:
        models = {one: named("model", one, "", "").constants.get("accepts", ()) for one in names("model")}
        fitting = ", ".join(one for one, kinds in models.items() if modality in kinds)
        problem = f"{name} takes {' or '.join(accepts) or 'nothing yet'}, and {data_name} is {modality}"
        raise ConfigError(where, "model.name", problem, f"models that fit: {fitting or 'none'}")


def _check_monitors(config: Config) -> None:
    logged = {*schema.METRICS, *texts(config.components["model"].path)}  # an own model may log more
    for name, options in config["callbacks"].items():
        monitor, key = (options or {}).get("monitor"), f"callbacks.{name}.monitor"
        if monitor is None:
            continue
        if monitor not in logged or "/" not in monitor:
            raise ConfigError(
                config.where(key), key, f"no metric {monitor!r}", nearest(monitor, schema.METRICS, "logged")
            )
        if monitor.startswith("val/") and config["trainer.limit_val_batches"] == 0:
            raise ConfigError(config.where(key), key, f"{monitor} is not measured", "trainer.limit_val_batches is 0")
        best = schema.METRICS.get(monitor)
        if best and options.get("mode", best) != best:
            where = config.origins.get(f"callbacks.{name}.mode", config.where(key))
            key = f"callbacks.{name}.mode"
            raise ConfigError(where, key, f"{options['mode']} does not fit {monitor}", f"set {key}={best}")


def _check_callbacks(config: Config) -> None:
    modality = config.components["data"].constants["modality"]
    for name, options in config["callbacks"].items():
        component = config.components.get(f"callbacks.{name}")
        accepts = component.constants.get("accepts", ()) if component and options is not None else ()
        if accepts and modality not in accepts:
            problem = f"is for {' or '.join(accepts)}, and {config['data.name']} is {modality}"
            raise ConfigError(config.where(f"callbacks.{name}"), f"callbacks.{name}", problem, "leave it out")


def _check_tokenizer(config: Config) -> None:
    if "data.tokenizer" not in config.parameters or config["model"].get("pretrained") in (
        None,
        config["data.tokenizer"],
    ):
        return
    pretrained, key = config["model.pretrained"], "data.tokenizer"
    problem = f"is {config[key] or 'null'}, but a pretrained model reads the tokens of its own only"
    raise ConfigError(config.where(key), key, problem, f"set {key}={pretrained}")


def _check_plateau(config: Config) -> None:
    if config["schedule.name"] == "plateau" and config["trainer.limit_val_batches"] == 0:
        monitor = config["schedule.monitor"]
        raise ConfigError(
            config.where("schedule.name"), "schedule.name", f"plateau watches {monitor}", "validation is off"
        )


def _check_shares(config: Config) -> None:
    for name in schema.SHARES:
        value = config[f"trainer.{name}"]
        if isinstance(value, float) and value > 1:
            hint = f"a number with a point is a share, at most 1.0; for batches write {round(value)}"
            raise ConfigError(config.where(f"trainer.{name}"), f"trainer.{name}", f"{value} is out of range", hint)
    if config["trainer.devices"] in (0, "0", []):
        raise ConfigError(config.where("trainer.devices"), "trainer.devices", "none are asked for", "write 1, or auto")
    duration = config["trainer.max_time"]
    if isinstance(duration, str) and not re.fullmatch(r"\d+:\d+:\d+:\d+", duration):
        hint = "write days, hours, minutes and seconds, as in '00:01:30:00'"
        raise ConfigError(config.where("trainer.max_time"), "trainer.max_time", f"{duration!r} is no duration", hint)


def _check_precision(config: Config) -> None:
    precision = config["trainer.precision"]
    if precision in ("16-true", "bf16-true") and config.components["data"].constants["modality"] == "features":
        hint = f"features would be rounded before they are normalised; set trainer.precision={precision[:-5]}-mixed"
        raise ConfigError(
            config.where("trainer.precision"), "trainer.precision", f"{precision} is not for features", hint
        )


def _check_it_ends(config: Config) -> None:
    ends = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.fast_dev_run")
    stops = config["callbacks"].get("early_stopping") or (config["callbacks"].get("timer") or {}).get("duration")
    if not stops and not any(config[key] for key in ends):
        where = config.where("trainer.max_epochs")
        raise ConfigError(where, "trainer.max_epochs", "nothing ends this run", "set max_epochs, max_steps or max_time")
