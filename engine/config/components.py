"""What a config can name. A new file in a folder is a new name; nothing is registered."""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from engine.config import schema
from engine.config.errors import suggest
from engine.config.signatures import (
    PROJECT,
    Component,
    ancestors,
    base_classes,
    classes_of,
    own_constants,
    read_component,
    tree_of,
)
from engine.contracts import ConfigError

# section -> its folder, and the class that its components derive from
FOLDERS = {
    "data": ("datamodules", "LightningDataModule"),
    "model": ("lit_models", "LitClassifier"),
    "callbacks": ("callbacks", "Callback"),
}
FUNCTIONS = {"optimizer": PROJECT / "lit_models/optimizers.py", "schedule": PROJECT / "lit_models/schedules.py"}
NAMED = ("data", "model", "optimizer", "schedule")  # sections that choose a component by `name`
FIXED = ("trainer", "run")  # sections that always configure the same component
SECTIONS = (*NAMED, "trainer", "callbacks", "run")


def component_names(section: str) -> list[str]:
    """Every name that `section` accepts."""
    if section in FUNCTIONS:
        return _functions(section)
    folder, _ = FOLDERS[section]
    found = [path.stem for path in (PROJECT / folder).glob("*.py") if _choices(section, path)]
    return sorted([*found, *schema.LIGHTNING_CALLBACKS]) if section == "callbacks" else sorted(found)


def find_component(section: str, name: str, where: str = "", key: str = "") -> Component:
    """The component called `name` in `section`.

    Args:
        section: ``data``, ``model``, ``optimizer``, ``schedule`` or ``callbacks``.
        name: The name of its file, of its function, or of a callback of Lightning.
        where: File and line of the name, for errors.
        key: The key that holds the name, for errors.

    Raises:
        ConfigError: if there is no such component, or if its file does not say which class it is.
    """
    if section in FUNCTIONS:
        if name in _functions(section):
            return read_component(FUNCTIONS[section], name)
    elif section == "callbacks" and name in schema.LIGHTNING_CALLBACKS:
        file, class_name = schema.LIGHTNING_CALLBACKS[name]
        return read_component(lightning_folder() / "callbacks" / f"{file}.py", class_name)
    elif (path := PROJECT / FOLDERS[section][0] / f"{name}.py").is_file() and name.isidentifier():
        found = read_component(path, _chosen_class(section, path, where, key))
        given = schema.HANDED_OVER.get(section, ())
        return replace(found, parameters={k: p for k, p in found.parameters.items() if k not in given})
    raise ConfigError(where, key, f"unknown name {name!r}", suggest(name, component_names(section), "available"))


def _chosen_class(section: str, path: Path, where: str, key: str) -> str:
    """The one class of a file that a config can choose."""
    folder, base = FOLDERS[section]
    choices = _choices(section, path)
    if len(choices) == 1:
        return choices[0]
    file = f"{folder}/{path.name}"
    if choices:
        problem = f"{file} has {len(choices)} classes that derive from {base}: {', '.join(choices)}"
        raise ConfigError(where, key, problem, "keep one per file, or set choosable = False in the others")
    if fixed := [node.name for node in _subclasses(section, path)]:
        problem = f"{file}: {fixed[0]} cannot be chosen in a config (choosable = False)"
    else:
        problem = f"{file} has no class that derives from {base}"
    raise ConfigError(where, key, problem, f"available: {', '.join(component_names(section))}")


def _choices(section: str, path: Path) -> list[str]:
    """The classes of a file that a config can choose: those that do not say ``choosable = False`` themselves and that no
    other class of the file derives from."""
    found = [node for node in _subclasses(section, path) if own_constants(node).get("choosable", True)]
    bases = {name for node in found for name, file, _ in base_classes(path, node) if file == path}
    return [node.name for node in found if node.name not in bases]


def _subclasses(section: str, path: Path) -> Iterator[ast.ClassDef]:
    """The classes of a file that derive, at any depth, from the base class of the section, and that base class itself."""
    _, base = FOLDERS[section]
    for node in classes_of(path):
        names = {node.name}
        for name, _, module in ancestors(path, node):
            names.add("Callback" if module.startswith("lightning.pytorch.callbacks") else name)
        if base in names:
            yield node


def _functions(section: str) -> list[str]:
    return [n.name for n in tree_of(FUNCTIONS[section]).body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]


@lru_cache
def section_schema(section: str) -> Component:
    """The keys of ``trainer``, of ``run`` or, for ``""``, of the top of a file."""
    path = PROJECT / "engine/config/schema.py"
    if section == "trainer":
        ours = read_component(path, "Trainer")
        theirs = read_component(lightning_folder() / "trainer" / "trainer.py", "Trainer")
        merged = dict(theirs.parameters)
        for name, parameter in ours.parameters.items():
            merged[name] = replace(parameter, meaning=parameter.meaning or theirs.parameters[name].meaning)
        return replace(theirs, parameters=merged)
    return read_component(path, {"run": "Run", "": "Experiment"}[section])


@lru_cache
def lightning_folder() -> Path:
    """The folder of `lightning.pytorch`, found without importing it."""
    spec = importlib.util.find_spec("lightning")
    if spec is None or spec.origin is None:
        raise ConfigError("", "", "lightning is not installed", "run: pip install -e . -c constraints.txt")
    return Path(spec.origin).parent / "pytorch"
