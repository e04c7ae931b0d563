"""Checks the keys that name a metric to watch: ``run.monitor``, ``schedule.monitor``, ``callbacks.NAME.monitor``.

Any metric that the model, the data or a callback logs can be watched. The names are read from the source of all models,
datamodules and callbacks. If one of these files computes a name, as in ``f"val/recall_{name}"``, every monitor is accepted
here. A metric that is never logged is then reported after the first validation, by `engine.training.checkpoints` or by
Lightning.
"""

import ast
from typing import TYPE_CHECKING

from engine.config import schema
from engine.config.components import FOLDERS
from engine.config.errors import suggest
from engine.config.signatures import PROJECT, tree_of
from engine.contracts import ConfigError

if TYPE_CHECKING:
    from engine.config.config import Config

LOGGING_CALLS = ("log", "log_dict")
COLLECTION_CALLS = ("add_metrics", "MetricCollection")  # the base class of models computes the names of their metrics
OTHER_LOGS = ("torch", "math", "np", "numpy")  # torch.log is the logarithm
BASE_CLASS = ("lit_models/classifier.py", "lit_models/parts/metrics.py")  # `schema.METRICS` lists their metrics


def check_monitors(config: "Config") -> None:
    """Raise a `ConfigError` for a monitor that is never logged, or a mode that does not fit its metric."""
    for key, monitor in config.monitors().items():
        split = monitor.partition("/")[0]
        if split.startswith("test") or (split == "train" and key == "run.monitor"):
            raise config.error(key, f"{monitor} is not measured in validation", "choose a metric such as val/loss")
        if monitor not in schema.METRICS:
            _check_is_logged(config, key, monitor)
        if split == "val" and config["trainer.limit_val_batches"] == 0 and key != "run.monitor":
            raise config.error(key, f"{monitor} is not measured", "trainer.limit_val_batches is 0")
        mode_key, best = key.removesuffix("monitor") + "mode", schema.METRICS.get(monitor)
        mode = config[mode_key] if mode_key in config.parameters else None
        if best and mode not in (None, best):
            place = config.origins.get(mode_key) or config.where(key)
            raise ConfigError(place, mode_key, f"{mode} does not fit {monitor}", f"set {mode_key}={best}")


def _check_is_logged(config: "Config", key: str, monitor: str) -> None:
    logged = {*schema.METRICS}
    for file in (file for folder, _ in FOLDERS.values() for file in (PROJECT / folder).rglob("*.py")):
        if file.relative_to(PROJECT).as_posix() not in BASE_CLASS:
            names = _logged_names(tree_of(file))
            if names is None:
                return
            logged |= names
    # Lightning adds a suffix to the name of a metric that is logged per step and per epoch
    if logged.isdisjoint((monitor, monitor.removesuffix("_step"), monitor.removesuffix("_epoch"))):
        choices = [name for name in logged if not name.startswith("test")]
        hint = suggest(monitor, choices, "logged metrics")
        raise config.error(key, f"metric {monitor!r} is not logged", hint)


def _logged_names(tree: ast.Module) -> set[str] | None:
    """Return the names of the metrics that a file logs; None if a name is computed at run time."""
    logged = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (arguments := [*node.args, *(item.value for item in node.keywords)]):
            called = ast.unparse(node.func).split(".")
            if called[-1] in COLLECTION_CALLS:
                return None
            if called[-1] in LOGGING_CALLS and called[0] not in OTHER_LOGS:
                for name in arguments[0].keys if isinstance(arguments[0], ast.Dict) else arguments[:1]:
                    if not isinstance(name, ast.Constant):
                        return None
                    logged.add(str(name.value))
    return logged
