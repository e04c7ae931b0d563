"""Loads one experiment: a YAML file and ``key=value`` overrides, checked and completed with defaults.

OmegaConf checks the type of each value against the signature of the component. This module also refuses values that
OmegaConf would convert silently, values out of range, and unknown names. `cross_checks` refuses combinations.
"""

import os
import re
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.config import schema
from engine.config.components import FIXED, NAMED, SECTIONS, component_names, find_component, section_schema
from engine.config.cross_checks import check_model_takes_data, cross_check
from engine.config.errors import as_written, closest, suggest
from engine.config.interpolation import resolve_interpolation
from engine.config.signatures import COMPUTED, REQUIRED, Component, Parameter, in_range
from engine.config.yaml_reader import Section, Value, ambiguity_error, plain, read_override, read_yaml, write_yaml
from engine.contracts import COMMAND_LINE, ConfigError, DataError, OptionError, UserError, listed

# The options of ``trainer`` about which Lightning complains without naming them.
DEVICE_OPTIONS = ("accelerator", "devices", "num_nodes", "strategy")
COMMON_KEYS = ("data.batch_size", "model.name", "optimizer.lr", "optimizer.name", "seed")


@dataclass(frozen=True)
class Config:
    """The values of an experiment and where each of them was written.

    Attributes:
        path: The YAML file.
        values: Plain nested data. Keys that the file does not set have their defaults.
        components: The component of each section, and of each callback under ``callbacks.NAME``.
        parameters: The declaration of each dotted key.
        origins: For each dotted key that was written, its file and line, or "command line".
        resumed_folder: Folder of the run to resume; None for a new run.
        checkpoint: Checkpoint to resume from; None for the newest.
        may_fall_back: Whether to resume from the best checkpoint if the last one is damaged.
        is_check: Whether to run only the checks of ``--check``, and keep no files.
    """

    path: Path
    values: dict[str, Any]
    components: dict[str, Component]
    parameters: dict[str, Parameter]
    origins: dict[str, str]
    resumed_folder: Path | None = None
    checkpoint: Path | None = None
    may_fall_back: bool = False
    is_check: bool = False

    def __getitem__(self, key: str) -> Any:
        """Return the value of a dotted key, or a whole section."""
        value: Any = self.values
        for name in key.split("."):
            value = value[name]
        return value

    def all_keys(self) -> list[str]:
        """Return every dotted key, ``SECTION.name`` included."""
        return [*self.parameters, *(f"{section}.name" for section in NAMED)]

    def where(self, key: str) -> str:
        """Return file and line of a key or section, or "command line"; only the file if the key was not written."""
        return self.origins.get(key) or self.origins.get(f"{key}.name") or str(self.path)

    def error(self, key: str, problem: str, hint: str = "") -> ConfigError:
        """Return the error that the value of a key, or a whole section, is wrong."""
        return ConfigError(self.where(key), key, problem, hint)

    def options(self, section: str) -> dict[str, Any]:
        """Return the arguments of the section's component: the section without ``name``."""
        return {name: value for name, value in self[section].items() if name != "name"}

    def flat(self) -> dict[str, bool | int | float | str]:
        """Return the values as scalars by dotted key, without None and empty lists, for TensorBoard's HPARAMS."""
        found = {key: self[key] for key in sorted(self.all_keys()) if self[key] not in (None, [])}
        scalars = (bool, int, float, str)
        return {key: value if isinstance(value, scalars) else str(value) for key, value in found.items()}

    def varied_keys(self) -> set[str]:
        """Return the dotted keys in which runs of one experiment probably differ: common keys and overrides."""
        overridden = {key for key in self.all_keys() if self.origins.get(key) == COMMAND_LINE}
        folders = {key for key in overridden if key.startswith("run.") or key.endswith(".root")}
        return (overridden - folders) | set(COMMON_KEYS)

    def monitors(self) -> dict[str, str]:
        """Return the keys that name a metric to watch, each with its metric."""
        keys = [key for key in self.parameters if key.endswith(".monitor") and isinstance(self[key], str)]
        return {key: self[key] for key in keys}

    def to_yaml(self, **run: Any) -> str:
        """Return YAML that `load_config` reads back to the same values. `run` replaces values of the section ``run``."""
        return write_yaml({**self.values, "run": {**self["run"], **run}})

    def option_error(self, section: str, error: Exception | str, hardware: str = "") -> UserError:
        """Translate an error of a component about its options to an error of the key that caused it.

        Args:
            section: The section of the component.
            error: ``KEY: problem``, or a message of Lightning that may contain the name of an argument.
            hardware: The hardware of this machine, for errors about devices.
        """
        if isinstance(error, UserError) and not isinstance(error, OptionError | DataError):
            return error
        message = str(error)
        key, colon, problem = message.partition(": ")
        if colon and (key in self.parameters or key in SECTIONS):
            return self.error(key, problem)
        if colon and os.path.isfile(re.sub(r":\d+$", "", key)):  # FILE or FILE:LINE of the user's data
            return ConfigError(key, "", problem)
        written = [name for name in self.options(section) if f"{section}.{name}" in self.origins]
        found = {name: match.start() for name in written if (match := re.search(rf"\b{name}\b", message))}
        devices = [name for name in DEVICE_OPTIONS if name in written]
        name = min(found, key=found.__getitem__, default=devices[0] if devices else "")
        key = f"{section}.{name}" if name else section
        return self.error(key, message, hardware if not name or name in DEVICE_OPTIONS else "")

    def missing_monitor(self, error: Exception) -> ConfigError | None:
        """Translate Lightning's error about a monitor that was not logged to an error of the key; None for other errors."""
        message = str(error)
        if (match := re.search(r"conditioned on metric `?(.+?)`? which is not available", message)) is None:
            return None
        key = next((key for key, monitor in self.monitors().items() if monitor == match[1]), "trainer")
        names = message[match.end() :].partition(": ")[2].partition(". Condition")[0]
        logged = sorted(name.strip(" `'[]") for name in names.split(","))
        return self.error(key, f"metric {match[1]!r} is not logged", f"logged metrics: {listed(logged, 20)}")


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read, check and complete one experiment.

    Args:
        path: A YAML file.
        overrides: ``section.key=value`` with values in YAML. If a key is given twice, the last value is used.

    Raises:
        ConfigError: for the first mistake.
    """
    path = Path(path)
    tree = read_yaml(path)
    written = [read_override(argument) for argument in overrides]
    chosen = {key.split(".")[0]: value for key, node in written if (value := _chosen_name(key, node))}
    for section, value in chosen.items():
        _clear_other_component(tree, section, value)
    for key, node in written:
        _insert(tree, key, node)
    resolve_interpolation(tree)
    config = Config(path, {}, {}, {}, {})
    top = {name: node for name, node in tree.items.items() if name not in SECTIONS}
    for name, node in top.items():
        if isinstance(node, Section) or closest(name, SECTIONS):
            raise _unknown_key(config, name, section_schema(""), node.where)
    for name in SECTIONS:
        node = tree.items.get(name, Section(str(path)))
        if isinstance(node, Value):
            if node.data is not None:
                hint = f"write {name}.name={node.data}" if name in NAMED else ""
                raise ConfigError(node.where, name, f"is a section, not {as_written(node.data)}", hint)
            node = Section(node.where)
        config.values[name] = _fill_section(config, name, node)
    # the top level is read last, so that the error for a key without its section can name the section
    top_values = _fill(config, "", section_schema(""), Section(tree.where, top))
    config = replace(config, values={**top_values, **config.values})
    cross_check(config)
    return config


def _chosen_name(key: str, node: Section | Value) -> Value | None:
    """Return the component name that an override chooses; None if it does not choose a component."""
    section, _, rest = key.partition(".")
    if section in NAMED and not rest and isinstance(node, Section):
        node = node.items.get("name", node)
    return node if isinstance(node, Value) and section in NAMED and rest in ("", "name") else None


def _clear_other_component(tree: Section, section: str, name: Value) -> None:
    """Drop the keys of a section whose component is replaced, because they were written for the old component."""
    existing = tree.items.get(section)
    old = existing.items.get("name") if isinstance(existing, Section) else None
    if isinstance(old, Value) and old.data != name.data:
        tree.items[section] = Section(name.where, {"name": name})


def _insert(tree: Section, key: str, node: Section | Value) -> None:
    """Set the dotted `key` in `tree`. A mapping is merged into a mapping."""
    *parents, last = key.split(".")
    for depth, name in enumerate(parents):
        child = tree.items.get(name)
        if isinstance(child, Value) and child.data is not None:
            above = ".".join(parents[: depth + 1])
            raise ConfigError(node.where, key, f"{above} is {as_written(child.data)} ({child.where}), not a section")
        if not isinstance(child, Section):
            child = tree.items[name] = Section(node.where)
        tree = child
    existing = tree.items.get(last)
    if isinstance(existing, Section) and isinstance(node, Section):
        for name, child in node.items.items():
            _insert(existing, name, child)
    else:
        tree.items[last] = node


def _fill_section(config: Config, name: str, section: Section) -> dict[str, Any]:
    """Return the values of a section. Its component and the origins of its keys are added to `config`."""
    if name in FIXED:
        return _fill(config, name, section_schema(name), section)
    if name == "callbacks":
        return _fill_callbacks(config, section)
    key = f"{name}.name"
    node = section.items.get("name")
    if not isinstance(node, Value) or not isinstance(node.data, str):
        problem = "is missing" if node is None else "is not a name"
        raise ConfigError((node or section).where, key, problem, f"available: {', '.join(component_names(name))}")
    component = find_component(name, node.data, node.where, key)
    config.origins[key] = node.where
    if name == "model":  # checked first, because a model for other data has other keys as well
        check_model_takes_data(component, node.data, node.where, config.components["data"], config["data.name"])
    rest = {child: value for child, value in section.items.items() if child != "name"}
    return {"name": node.data, **_fill(config, name, component, Section(section.where, rest))}


def _fill_callbacks(config: Config, section: Section) -> dict[str, Any]:
    """Return the options of each callback; None for a callback that is switched off."""
    values: dict[str, Any] = {}
    defaults = {name: Section(section.where) for name in schema.DEFAULT_CALLBACKS}
    for name, node in {**defaults, **section.items}.items():
        key = f"callbacks.{name}"
        if key in schema.RENAMED:
            raise ConfigError(node.where, key, f"was renamed to {schema.RENAMED[key]}")
        component = find_component("callbacks", name, node.where, key)
        if isinstance(node, Section):
            values[name] = _fill(config, key, component, node)
        elif node.data is None:
            values[name] = None
        else:
            problem = f"is a section, not {as_written(node.data)}"
            raise ConfigError(node.where, key, problem, f"write {name}: {{}}, or null")
    return values


def _fill(config: Config, prefix: str, component: Component, section: Section) -> dict[str, Any]:
    """Return the values of a section, converted to the declared types and completed with defaults."""
    dot = f"{prefix}." if prefix else ""
    usable = {name: parameter for name, parameter in component.parameters.items() if parameter.type is not None}
    for name, node in section.items.items():
        if name not in usable:
            raise _unknown_key(config, f"{dot}{name}", component, node.where)
        config.origins[dot + name] = node.where
    values = {}
    for name, parameter in usable.items():
        if name in section.items:
            values[name] = _convert(dot + name, parameter, section.items[name])
        elif parameter.default is REQUIRED:
            raise ConfigError(section.where, dot + name, "is missing", f"accepts {parameter.accepts}")
        elif parameter.default is not COMPUTED:
            values[name] = parameter.default
        if name in values:
            config.parameters[dot + name] = parameter
    if prefix:
        config.components[prefix] = component
    return values


def _unknown_key(config: Config, key: str, component: Component, where: str) -> ConfigError:
    section, _, name = key.rpartition(".")
    usable = [name for name, parameter in component.parameters.items() if parameter.type is not None]
    if key in schema.RENAMED:
        return ConfigError(where, key, f"was renamed to {schema.RENAMED[key]}")
    if not section:
        close = closest(name, [*usable, *SECTIONS]) or closest(name, config.parameters)
        hint = f"did you mean {close}?" if close else f"sections: {', '.join(SECTIONS)}"
        return ConfigError(where, key, "unknown key", hint)
    if name in component.parameters:
        hint = "write it under callbacks:" if name == "callbacks" else "it takes a Python object"
        return ConfigError(where, key, "cannot be set in a config", hint)
    choices = [*usable, *(["name"] if key.split(".")[0] in NAMED else [])]
    hint = suggest(name, choices, "known keys") if choices else f"{component.name} has no keys"
    return ConfigError(where, key, "unknown key", hint)


def _convert(key: str, parameter: Parameter, node: Section | Value) -> Any:
    """Return the written value with the type of `parameter`."""
    kinds = get_args(parameter.type) or (parameter.type,)
    if isinstance(node, Value):
        if node.is_ambiguous and not (isinstance(node.data, bool) and bool in kinds):
            raise ambiguity_error(node, key)
        as_text = node.text is not None and str in kinds and not {int, float} & set(kinds)
        given = node.text if as_text else node.data  # run.name=1e3 stays "1e3"
    else:
        given = plain(node, key)
    # OmegaConf has no unions with lists, so the members are also tried one by one
    members = get_args(parameter.type) if get_origin(parameter.type) is Union else ()
    reads = (_read(kind, given) for kind in (parameter.type, *members))
    read = next((value for value in reads if _is_unchanged(given, value)), REQUIRED)
    if not _is_unchanged(given, read) or not _has_depth_of(parameter.type, read):
        close = closest(str(given), map(str, kinds)) if get_origin(parameter.type) is Literal else None
        hint = f"did you mean {close}?" if close else f"accepts {parameter.accepts}"
        raise ConfigError(node.where, key, f"{as_written(given)} is not accepted", hint)
    if not in_range(read, parameter.bounds):
        raise ConfigError(node.where, key, f"{as_written(given)} is out of range", f"accepts {parameter.accepts}")
    return _expand_home(list(read) if isinstance(read, tuple) else read)


def _read(kind: Any, given: Any) -> Any:
    """Return a value as OmegaConf reads it for a type; `REQUIRED` if the type does not accept it."""
    try:
        shape = OmegaConf.structured(make_dataclass("Shape", [("value", kind, field(default=MISSING))]))
        return OmegaConf.to_container(OmegaConf.merge(shape, {"value": given}))["value"]  # type: ignore[index, call-overload]
    except (OmegaConfBaseException, TypeError, ValueError):
        return REQUIRED


def _has_depth_of(kind: Any, value: Any) -> bool:
    """Return whether lists and dicts are nested as in the type `kind`. OmegaConf accepts [[1]] as a list of numbers."""
    origin, members = get_origin(kind), get_args(kind)
    if kind is Any or origin is Union:
        return kind is Any or any(_has_depth_of(member, value) for member in members)
    if origin in (list, dict) and isinstance(value, dict if origin is dict else list | tuple):
        return all(_has_depth_of(members[-1], item) for item in (value.values() if isinstance(value, dict) else value))
    return origin not in (list, dict) and not isinstance(value, list | tuple | dict)


def _expand_home(value: Any) -> Any:
    """Return the value with the home folder in place of ``~`` or ``~user`` at the start of a path."""
    if isinstance(value, list):
        return [_expand_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and re.match(r"~[\w-]*/", value) else value


def _is_unchanged(given: Any, read: Any) -> bool:
    """Return whether OmegaConf kept the written value, except that an int may become a float."""
    if isinstance(given, list):
        return isinstance(read, list | tuple) and len(given) == len(read) and all(map(_is_unchanged, given, read))
    if isinstance(given, dict):
        same_keys = isinstance(read, dict) and given.keys() == read.keys()
        return same_keys and all(_is_unchanged(given[key], read[key]) for key in given)
    if type(given) is int and type(read) is float:
        return True
    return type(given) is type(read) and (given == read or given != given) and given != MISSING
