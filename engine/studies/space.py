"""Reads ``--vary KEY=VALUES``: a range of numbers, or a list of choices. Every value is checked like a value in a config."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, get_args

from engine.config.config import Config, load_config
from engine.config.errors import suggest
from engine.config.yaml_reader import parse, plain
from engine.contracts import COMMAND_LINE, ConfigError
from engine.inference.trained_run import RUN_KEYS, with_found_runs
from engine.studies.results import Choices, Range, Space

EXAMPLE = "write a range, such as log(1e-4, 1e-1) or range(0, 0.5), or choices, such as 64,128"
_CALL = re.compile(r"\s*([a-z_]\w*)\s*\((.*)\)\s*")  # a range, such as log(1e-4, 1e-1)
STUDIED = ("seed", "data.fold", "data.num_folds", "run.name", "run.root")  # set by the study itself


def read_spaces(arguments: Sequence[str], config: Config, overrides: Sequence[str]) -> dict[str, Space]:
    """Return the values of each varied key.

    Args:
        arguments: ``KEY=VALUES`` for each key.
        config: The config of the study.
        overrides: The overrides of the config.

    Raises:
        ConfigError: if a key is unknown, or does not accept a value.
    """
    spaces: dict[str, Space] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not text.strip():
            raise ConfigError(COMMAND_LINE, "--vary", f"{argument!r} has no values", f"{EXAMPLE}, as in KEY=64,128")
        if key in STUDIED:
            raise ConfigError(COMMAND_LINE, key, "cannot be varied", "use --seeds or --folds")
        if key in spaces:
            raise ConfigError(COMMAND_LINE, key, "is varied twice")
        if key in [override.partition("=")[0] for override in overrides]:
            raise ConfigError(COMMAND_LINE, key, "is varied and set to a value", "leave out one of them")
        spaces[key] = _read_range(key, text, config) or _read_choices(key, text)
    names = {key: space for key, space in spaces.items() if key.endswith(".name")}
    spaces = {**names, **spaces}  # names first, because a name decides which other keys exist
    for key, space in spaces.items():
        others = [setting(name, first_value(names[name])) for name in names if name != key]
        values = space.values if isinstance(space, Choices) else (space.low, space.high)
        configs = [load_config(config.path, [*overrides, *others, setting(key, value)]) for value in values]
        if key in RUN_KEYS:  # the runs of the study do not find a run by its name
            spaces[key] = Choices(tuple(with_found_runs(each)[key] for each in configs))
    return spaces


def split_values(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the words after ``--vary`` into keys with several values, and overrides with a single value for all runs.

    Raises:
        ConfigError: if no key has several values.
    """
    single = [word for word in words if not _CALL.fullmatch(word.partition("=")[2]) and len(_values(word)) == 1]
    if words and len(single) == len(words):
        key, _, text = words[0].partition("=")
        raise ConfigError(COMMAND_LINE, key, f"{text.strip()} is a single value", EXAMPLE)
    return [word for word in words if word not in single], single


def first_value(space: Space) -> Any:
    """Return one of the values."""
    return space.values[0] if isinstance(space, Choices) else space.low


def setting(key: str, value: Any) -> str:
    """Return an override ``KEY=VALUE`` of a config."""
    return f"{key}={value if isinstance(value, float) and not math.isfinite(value) else json.dumps(value)}"


def to_text(space: Space) -> str:
    """Return the values as `read_spaces` reads them."""
    if isinstance(space, Choices):
        return ",".join(json.dumps(value) for value in space.values)
    return f"{'log' if space.is_log else 'range'}({space.low}, {space.high})"


def _read_range(key: str, text: str, config: Config) -> Range | None:
    """Return a range; None if `text` is a list of choices."""
    if (match := _CALL.fullmatch(text)) is None:
        return None
    kind, ends = match[1], [end.strip() for end in match[2].split(",")]
    if kind not in ("log", "range"):
        raise ConfigError(COMMAND_LINE, key, f"{kind}(...) is unknown", suggest(kind, ["log", "range"], "ranges"))
    try:
        low, high = (float(end) for end in ends)
    except ValueError:
        problem = f"{kind}({match[2]}) is not a range of two numbers"
        raise ConfigError(COMMAND_LINE, key, problem, f"write {kind}(LOW, HIGH)") from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(COMMAND_LINE, key, f"{kind}({match[2]}) is not finite")
    if low >= high:
        hint = f"write {kind}({ends[1]}, {ends[0]})" if low > high else "choose two different numbers"
        raise ConfigError(COMMAND_LINE, key, f"the range from {ends[0]} to {ends[1]} is empty", hint)
    if kind == "log" and low <= 0:
        raise ConfigError(COMMAND_LINE, key, f"log({match[2]}) needs numbers above 0", "use range(LOW, HIGH)")
    kinds = _kinds(config, key)
    if kinds and not kinds & {int, float}:
        problem = f"{kind}(...) needs a key with numbers"
        raise ConfigError(COMMAND_LINE, key, problem, f"{key} accepts {_accepts(config, key)}")
    if float not in kinds and kinds:
        if low != int(low) or high != int(high):
            problem = f"{kind}({match[2]}): the ends must be integers"
            raise ConfigError(COMMAND_LINE, key, problem, f"accepts {_accepts(config, key)}")
        return Range(int(low), int(high), kind == "log", is_int=True)
    return Range(low, high, kind == "log")


def _read_choices(key: str, text: str) -> Choices:
    values = _values(f"{key}={text}")
    for i, value in enumerate(values):
        if json.dumps(value) in map(json.dumps, values[:i]):
            raise ConfigError(COMMAND_LINE, key, f"{json.dumps(value)} is given twice")
    return Choices(tuple(values))


def _values(word: str) -> list[Any]:
    key, _, text = word.partition("=")
    values: list[Any] = plain(parse(f"[{text}]", COMMAND_LINE, key), key)
    return values


def _kinds(config: Config, key: str) -> set[Any]:
    """Return the types that a key accepts; {} if it is unknown, which the check of its values finds."""
    parameter = config.parameters.get(key)
    return set() if parameter is None else set(get_args(parameter.type) or (parameter.type,))


def _accepts(config: Config, key: str) -> str:
    return config.parameters[key].accepts
