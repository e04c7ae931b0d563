"""What is right key by key and wrong together."""

from configs import schema
from configs.catalogue import named, names, nearest
from configs.config import Config
from configs.nodes import ConfigError


def check_pairs(config: Config) -> None:
    """Refuse impossible combinations.

    Raises:
        ConfigError: the first one found.
    """
    _check_model_takes_data(config)
    _check_monitors(config)
    _check_it_ends(config)


def _check_model_takes_data(config: Config) -> None:
    modality = config.components["data"].constants.get("modality")
    if modality is None:
        path = config.components["data"].path
        raise ConfigError(path.name, "", "the class has no `modality`", 'write modality = "features" or "image" in it')
    accepts = config.components["model"].constants.get("accepts", ())
    if modality in accepts:
        return
    models = {name: named("model", name, "", "").constants.get("accepts", ()) for name in names("model")}
    fitting = [name for name, kinds in models.items() if modality in kinds]
    raise ConfigError(
        config.where("model.name"),
        "model.name",
        f"{config['model.name']} takes {' or '.join(accepts) or 'nothing yet'}, and {config['data.name']} is {modality}",
        f"models that fit: {', '.join(fitting) or 'none'}",
    )


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
