"""Finds the component that a config names. A new file in a folder is a new name; there is no registry."""

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
    classes_of,
    lineage,
    named_bases,
    own_constants,
    read_component,
    short_path,
    tree_of,
)
from engine.contracts import ConfigError

# section -> its folder, and the base class of its components
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
    """Return every name that `section` accepts."""
    if section in FUNCTIONS:
        return _functions(section)
    folder, _ = FOLDERS[section]
    found = [path.stem for path in (PROJECT / folder).glob("*.py") if len(_choices(section, path)) == 1]
    return sorted([*found, *schema.LIGHTNING_CALLBACKS]) if section == "callbacks" else sorted(found)


def find_component(section: str, name: str, where: str = "", key: str = "") -> Component:
    """Return the component called `name` in `section`, without the parameters that `train.py` passes itself.

    Args:
        section: ``data``, ``model``, ``optimizer``, ``schedule`` or ``callbacks``.
        name: The name of a file in the folder of the section, of a function, or of a callback of Lightning.
        where: File and line of the name, for errors.
        key: The key that holds the name, for errors.

    Raises:
        ConfigError: if there is no such component, or if its file does not have exactly one class that can be chosen.
    """
    if section in FUNCTIONS:
        if name in _functions(section):
            return read_component(FUNCTIONS[section], name)
    elif section == "callbacks" and name in schema.LIGHTNING_CALLBACKS:
        file, class_name = schema.LIGHTNING_CALLBACKS[name]
        found = read_component(lightning_folder() / "callbacks" / f"{file}.py", class_name)
        bounds = schema.LIGHTNING_BOUNDS.get(name, {})
        return replace(found, parameters={k: replace(p, bounds=bounds.get(k, "")) for k, p in found.parameters.items()})
    elif (path := PROJECT / FOLDERS[section][0] / f"{name}.py").is_file() and "/" not in name:
        found = read_component(path, _chosen_class(section, path, where, key))
        passed = schema.PASSED_BY_TRAIN.get(section, ())
        return replace(found, parameters={k: p for k, p in found.parameters.items() if k not in passed})
    raise ConfigError(where, key, f"unknown name {name!r}", suggest(name, component_names(section), "available"))


def _chosen_class(section: str, path: Path, where: str, key: str) -> str:
    """Return the only class of a file that a config can choose."""
    _, base = FOLDERS[section]
    choices = _choices(section, path)
    if len(choices) == 1:
        return choices[0]
    file = short_path(path)
    if choices:
        problem = f"{file} has {len(choices)} classes that derive from {base}: {', '.join(choices)}"
        raise ConfigError(where, key, problem, "keep one per file, or set choosable = False in the others")
    if fixed := [node.name for node in _subclasses(section, path)]:
        problem = f"{file}: {fixed[0]} cannot be chosen in a config (choosable = False)"
    else:
        problem = f"{file} has no class that derives from {base}"
    raise ConfigError(where, key, problem, f"available: {', '.join(component_names(section))}")


def _choices(section: str, path: Path) -> list[str]:
    """Return the classes of a file that a config can choose.

    These are the subclasses that do not set ``choosable = False`` themselves and are not the base class of another choice.
    """
    found = [node for node in _subclasses(section, path) if own_constants(node).get("choosable", True)]
    bases = [base for node in found for _, base in list(lineage(path, node))[1:]]
    return [node.name for node in found if node not in bases]


def _subclasses(section: str, path: Path) -> Iterator[ast.ClassDef]:
    """Yield the classes of a file that derive from the base class of the section at any depth, and the base class itself."""
    _, base = FOLDERS[section]
    for node in classes_of(path):
        bases = [found for file, owner in lineage(path, node) for found in named_bases(file, owner)]
        # all classes of lightning.pytorch.callbacks are callbacks
        names = ("Callback" if "lightning.pytorch.callbacks" in module else name for module, name in bases)
        if base in (node.name, *names):
            yield node


def _functions(section: str) -> list[str]:
    tree = tree_of(FUNCTIONS[section])
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


@lru_cache
def section_schema(section: str) -> Component:
    """Return the keys of ``trainer``, of ``run`` or, for ``""``, of the top level of a config."""
    path = Path(schema.__file__)
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
    """Return the folder of `lightning.pytorch` without importing it."""
    spec = importlib.util.find_spec("lightning")
    if spec is None or spec.origin is None:
        raise ConfigError("", "", "lightning is not installed", "run: pip install -e . -c constraints.txt")
    return Path(spec.origin).parent / "pytorch"
