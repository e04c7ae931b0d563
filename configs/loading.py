"""A YAML file and ``key=value`` overrides -> one checked, complete, plain config.

Constructors are the schema: each key becomes an OmegaConf structured config made from its signature, which checks the
type; what OmegaConf would silently convert, ranges, names and impossible pairs are checked here. Every error is a
`ConfigError`.
"""

from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs import schema
from configs.catalogue import CLOSED, NAMED, SECTIONS, closed, closest, named, names, nearest
from configs.config import Config
from configs.nodes import ConfigError, Section, Value, ambiguity, plain, read_override, read_yaml
from configs.pairs import check_model_takes_data, check_pairs
from configs.references import resolve_references
from configs.signatures import COMPUTED, REQUIRED, Component, Parameter


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read, check and complete one experiment.

    Args:
        path: a YAML file.
        overrides: ``section.key=value``, with YAML's values; the last one wins.

    Raises:
        ConfigError: whatever is wrong with either, in one line.
    """
    path = Path(path)
    tree = read_yaml(path)
    written = [read_override(argument) for argument in overrides]
    chosen = {key.split(".")[0]: value for key, node in written if (value := _chosen(key, node))}
    for section, value in chosen.items():
        _start_anew(tree, section, value)
    for key, node in written:
        _put(tree, key, node)
    resolve_references(tree)
    config = Config(path, {}, {}, {}, {})
    top = {name: node for name, node in tree.items.items() if name not in SECTIONS}
    for name, node in top.items():
        if isinstance(node, Section) or closest(name, SECTIONS):
            raise _unknown_key(config, name, closed(""), closed("").parameters, node.where)
    for name in SECTIONS:
        node = tree.items.get(name, Section(str(path)))
        if isinstance(node, Value):
            if node.data is not None:
                hint = f"write {name}.name={node.data}" if name in NAMED else ""
                raise ConfigError(node.where, name, f"is a section, not {_shown(node.data)}", hint)
            node = Section(node.where)
        config.values[name] = _section(config, name, node)
    sections = dict(config.values)  # the top comes last, so that a key without its section finds where it belongs
    config.values.clear()
    config.values.update({**_filled(config, "", closed(""), Section(tree.where, top)), **sections})
    check_pairs(config)
    return config


def _chosen(key: str, node: Section | Value) -> Value | None:
    """The name that an override chooses for the component of a section, if it does."""
    section, _, rest = key.partition(".")
    if section in NAMED and not rest and isinstance(node, Section):
        node = node.items.get("name", node)
    return node if isinstance(node, Value) and section in NAMED and rest in ("", "name") else None


def _start_anew(tree: Section, section: str, name: Value) -> None:
    """Forget the keys of a section that is to be another component's: they were written for the old one."""
    there = tree.items.get(section)
    old = there.items.get("name") if isinstance(there, Section) else None
    if isinstance(old, Value) and old.data != name.data:
        tree.items[section] = Section(name.where, {"name": name})


def _put(tree: Section, key: str, node: Section | Value) -> None:
    """Set the dotted `key` in `tree`; a mapping is merged into a mapping."""
    *parents, last = key.split(".")
    for depth, name in enumerate(parents):
        child = tree.items.get(name)
        if isinstance(child, Value) and child.data is not None:
            above = ".".join(parents[: depth + 1])
            raise ConfigError(node.where, key, f"{above} is {_shown(child.data)} ({child.where}), not a section")
        if not isinstance(child, Section):
            child = tree.items[name] = Section(node.where)
        tree = child
    there = tree.items.get(last)
    if isinstance(there, Section) and isinstance(node, Section):
        for name, child in node.items.items():
            _put(there, name, child)
    else:
        tree.items[last] = node


def _section(config: Config, name: str, section: Section) -> dict[str, Any]:
    """The values of a section; what it configures and where its keys were written is noted in `config`."""
    if name in CLOSED:
        return _filled(config, name, closed(name), section)
    if name == "callbacks":
        return _callbacks(config, section)
    key = f"{name}.name"
    node = section.items.get("name")
    if not isinstance(node, Value) or not isinstance(node.data, str):
        problem = "is missing" if node is None else "is not a name"
        raise ConfigError((node or section).where, key, problem, f"available: {', '.join(names(name))}")
    part = named(name, node.data, node.where, key)
    config.origins[key] = node.where
    if name == "model":  # first of all: a model for other data has other keys, too
        check_model_takes_data(part, node.data, node.where, config.components["data"], config["data.name"])
    rest = {child: one for child, one in section.items.items() if child != "name"}
    return {"name": node.data, **_filled(config, name, part, Section(section.where, rest))}


def _callbacks(config: Config, section: Section) -> dict[str, Any]:
    values: dict[str, Any] = {}
    defaults = {name: Section(section.where) for name in schema.DEFAULT_CALLBACKS}
    for name, node in {**defaults, **section.items}.items():
        key = f"callbacks.{name}"
        part = named("callbacks", name, node.where, key)
        if isinstance(node, Section):
            values[name] = _filled(config, key, part, node)
        elif node.data is None:  # switched off; a later reading of the resolved config must see that, too
            values[name] = None
        else:
            raise ConfigError(node.where, key, f"is a section, not {_shown(node.data)}", f"write {name}: {{}}, or null")
    return values


def _filled(config: Config, prefix: str, part: Component, section: Section) -> dict[str, Any]:
    """The section's values, of the types that the signature of `part` declares, with defaults for what is not written."""
    dot = f"{prefix}." if prefix else ""
    usable = {name: parameter for name, parameter in part.parameters.items() if parameter.type is not None}
    for name, node in section.items.items():
        if name not in usable:
            raise _unknown_key(config, f"{dot}{name}", part, usable, node.where)
        config.origins[dot + name] = node.where
    values = {}
    for name, parameter in usable.items():
        if name in section.items:
            values[name] = _value(dot + name, parameter, section.items[name])
        elif parameter.default is REQUIRED:
            raise ConfigError(section.where, dot + name, "is missing", f"accepts {parameter.accepts}")
        elif parameter.default is not COMPUTED:
            values[name] = parameter.default
        if name in values:
            config.parameters[dot + name] = parameter
    if prefix:
        config.components[prefix] = part
    return values


def _unknown_key(config: Config, key: str, part: Component, usable: dict[str, Parameter], where: str) -> ConfigError:
    section, _, name = key.rpartition(".")
    if not section:
        close = closest(name, [*usable, *SECTIONS]) or closest(name, config.parameters)
        hint = f"did you mean {close}?" if close else f"sections: {', '.join(SECTIONS)}"
        return ConfigError(where, key, "unknown key", hint)
    if name in part.parameters:
        hint = "write it under callbacks:" if name == "callbacks" else "it takes a Python object"
        return ConfigError(where, key, "cannot be set in a config", hint)
    choices = [*usable, *(["name"] if key.split(".")[0] in NAMED else [])]
    hint = nearest(name, choices, "known keys") if choices else f"{part.name} has no keys"
    return ConfigError(where, key, "unknown key", hint)


def _value(key: str, parameter: Parameter, node: Section | Value) -> Any:
    """What was written for `parameter`, as its type, or why it is refused."""
    kinds = get_args(parameter.type) or (parameter.type,)
    if isinstance(node, Value):
        if node.ambiguous and not (isinstance(node.data, bool) and bool in kinds):
            raise ambiguity(node, key)
        as_written = node.text is not None and str in kinds and not {int, float} & set(kinds)
        given = node.text if as_written else node.data  # a name such as 7 is wanted as it was written
    else:
        given = plain(node, key)
    shape = OmegaConf.structured(make_dataclass("Shape", [("value", parameter.type, field(default=MISSING))]))
    try:
        read = OmegaConf.to_container(OmegaConf.merge(shape, {"value": given}))["value"]  # type: ignore[index, call-overload]
    except (OmegaConfBaseException, TypeError, ValueError):
        read = REQUIRED
    if not _same(given, read):
        close = closest(str(given), map(str, kinds)) if get_origin(parameter.type) is Literal else None
        hint = f"did you mean {close}?" if close else f"accepts {parameter.accepts}"
        raise ConfigError(node.where, key, f"{_shown(given)} is not accepted", hint)
    if not parameter.inside(read):
        raise ConfigError(node.where, key, f"{_shown(given)} is out of range", f"accepts {parameter.accepts}")
    return list(read) if isinstance(read, tuple) else read


def _same(given: Any, read: Any) -> bool:
    """Whether OmegaConf kept what was written; an int may become a float, nothing else may change."""
    if isinstance(given, list):
        return isinstance(read, list | tuple) and len(given) == len(read) and all(map(_same, given, read))
    if isinstance(given, dict):
        return isinstance(read, dict) and given.keys() == read.keys() and all(_same(given[k], read[k]) for k in given)
    if type(given) is int and type(read) is float:
        return True
    return type(given) is type(read) and (given == read or given != given) and given != MISSING


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
