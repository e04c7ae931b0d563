"""What is right key by key and wrong together."""

from configs import schema
from configs.catalogue import named, names, nearest
from configs.config import Config
from configs.nodes import ConfigError
from configs.signatures import Component


def check_pairs(config: Config) -> None:
    """Refuse impossible combinations.

    Raises:
        ConfigError: the first one found.
    """
    _check_monitors(config)
    _check_it_ends(config)


def check_model_takes_data(model: Component, name: str, where: str, data: Component, data_name: str) -> None:
    """Refuse a model that cannot take the data.

    Raises:
        ConfigError: it lists the models that can.
    """
    modality = data.constants.get("modality")
    if modality is None:
        path = f"datamodules/{data.path.name}"
        raise ConfigError(path, "", f"{data.name} has no `modality`", 'write modality = "features" or "image" in it')
    accepts = model.constants.get("accepts", ())
    if modality not in accepts:
        models = {one: named("model", one, "", "").constants.get("accepts", ()) for one in names("model")}
        fitting = ", ".join(one for one, kinds in models.items() if modality in kinds)
        problem = f"{name} takes {' or '.join(accepts) or 'nothing yet'}, and {data_name} is {modality}"
        raise ConfigError(where, "model.name", problem, f"models that fit: {fitting or 'none'}")


def _check_monitors(config: Config) -> None:
    source = config.components["model"].path.read_text(encoding="utf-8")  # an own model may log more
    for name, options in config["callbacks"].items():
        monitor, key = (options or {}).get("monitor"), f"callbacks.{name}.monitor"
        if monitor is None or (monitor not in schema.METRICS and repr(monitor)[1:-1] in source):
            continue
        if monitor not in schema.METRICS:
            hint = nearest(monitor, schema.METRICS, "logged")
            raise ConfigError(config.where(key), key, f"no metric {monitor!r}", hint)
        best = schema.METRICS[monitor]
        if options.get("mode", best) != best:
            key = f"callbacks.{name}.mode"
            raise ConfigError(config.where(key), key, f"{options['mode']} does not fit {monitor}", f"set {key}={best}")


def _check_it_ends(config: Config) -> None:
    ends = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.fast_dev_run")
    if not any(config[key] for key in ends) and not config["callbacks"].get("early_stopping"):
        where = config.where("trainer.max_epochs")
        raise ConfigError(where, "trainer.max_epochs", "nothing ends this run", "set max_epochs, max_steps or max_time")
