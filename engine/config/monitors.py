"""Checks the keys that name a metric to watch: ``run.monitor``, ``schedule.monitor``, ``callbacks.NAME.monitor``.

Any metric that the model, the data or a callback logs can be watched. The names are read from their source. A name that is
computed at run time, such as ``f"val/recall_{name}"``, is a pattern here. A monitor that matches a pattern but is never
logged is reported after the first validation, by `engine.training.checkpoints` or by Lightning.
"""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import schema
from engine.config.errors import suggest
from engine.config.signatures import imported_files, tree_of
from engine.contracts import ConfigError

if TYPE_CHECKING:
    from engine.config.config import Config

LOGGING_CALLS = ("log", "log_dict")
COLLECTION_CALLS = ("MetricCollection", "add_metrics")  # the base class of models logs their metrics as val/NAME
OTHER_LOGS = ("torch", "math", "np", "numpy")  # torch.log is the logarithm
BASE_CLASS = Path("lit_models/classifier.py")
# What Lightning appends to a name that is logged per step and per epoch, or with several dataloaders.
SUFFIX = re.compile(r"(_step|_epoch)?(/dataloader_idx_\d+)?$")


def check_monitors(config: "Config") -> None:
    """Refuse a monitor that is never logged, and a mode that does not fit its metric.

    Raises:
        ConfigError: for the first one found.
    """
    for key, monitor in config.monitors().items():
        where, split = config.where(key), monitor.partition("/")[0]
        if monitor not in schema.METRICS:
            _check_is_logged(config, key, monitor)
        if split == "test" or (split == "train" and key == "run.monitor"):
            problem = f"{monitor} is not measured in validation"
            raise ConfigError(where, key, problem, "choose a metric such as val/loss")
        if split == "val" and config["trainer.limit_val_batches"] == 0 and key != "run.monitor":
            raise ConfigError(where, key, f"{monitor} is not measured", "trainer.limit_val_batches is 0")
        mode_key, best = key.removesuffix("monitor") + "mode", schema.METRICS.get(monitor)
        mode = config[mode_key] if mode_key in config.parameters else None
        if best and mode not in (None, best):
            place = config.origins.get(mode_key, where)
            raise ConfigError(place, mode_key, f"{mode} does not fit {monitor}", f"set {mode_key}={best}")


def _check_is_logged(config: "Config", key: str, monitor: str) -> None:
    patterns = {*schema.METRICS, *_logged_patterns({component.path for component in config.components.values()})}
    names = (monitor, SUFFIX.sub("", monitor))
    if not any(fnmatchcase(name, pattern) for name in names for pattern in patterns):
        literal = [pattern for pattern in patterns if "*" not in pattern]
        raise ConfigError(
            config.where(key), key, f"metric {monitor!r} is not logged", suggest(monitor, literal, "logged metrics")
        )


def _logged_patterns(files: set[Path]) -> Iterator[str]:
    """Yield the names of metrics that `files` and the files that they import log, with ``*`` for a computed part."""
    waiting, seen = [*files], set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        waiting += imported_files(file)
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and (arguments := [*node.args, *(item.value for item in node.keywords)]):
                called = ast.unparse(node.func).split(".")
                names = _patterns(arguments[0])
                if called[-1] in COLLECTION_CALLS:
                    yield from (f"val/{name}" for name in names)
                elif called[-1] in LOGGING_CALLS and called[0] not in OTHER_LOGS:
                    # in the base class, STAGE/NAME stands for the names of its metric collections
                    is_base = file.parts[-2:] == BASE_CLASS.parts
                    yield from (name for name in names if not (is_base and name == "*/*"))


def _patterns(node: ast.expr) -> Iterator[str]:
    """Yield the names that an expression stands for: a text, or the keys of a dict."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield from _patterns(value if key is None else key)  # {**others}
    elif isinstance(node, ast.DictComp):
        yield from _patterns(node.key)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    else:
        yield node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "*"
