"""What a config can name: a new file in a folder is a new name, nothing is registered."""

import difflib
import importlib.util
import traceback
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from configs import schema
from configs.nodes import ConfigError
from configs.signatures import PROJECT, REQUIRED, Component, component, functions, subclasses

FOLDERS = {  # section -> (folder, base classes)
    "data": ("datamodules", ("ClassificationDataModule",)),
    "model": ("lit_models", ("LitClassifier",)),
    "callbacks": ("callbacks", ("Callback", "EvaluationCallback")),
}
FUNCTIONS = {"optimizer": PROJECT / "lit_models/optimizers.py", "schedule": PROJECT / "lit_models/schedules.py"}
NAMED = ("data", "model", "optimizer", "schedule")  # sections that choose a component by `name`
CLOSED = ("trainer", "run")
SECTIONS = (*NAMED, "trainer", "callbacks", "run")


def names(section: str) -> list[str]:
    """Every name that `section` accepts: files with a component, Lightning's callbacks, functions."""
    if section in FUNCTIONS:
        return functions(FUNCTIONS[section])
    found = [path.stem for path in _files(section) if _offers(section, path)]
    return sorted([*found, *schema.LIGHTNING_CALLBACKS]) if section == "callbacks" else found


def _files(section: str) -> list[Path]:
    return sorted((PROJECT / FOLDERS[section][0]).glob("*.py"))


def _offers(section: str, path: Path) -> bool:
    """Whether a file has a component for `section`."""
    _, bases = FOLDERS[section]
    written = bases[0] in path.read_text(encoding="utf-8")  # which is quicker told than parsed
    return written and any(_from_yaml(path, name) for name in subclasses(path, bases))


def _from_yaml(path: Path, name: str) -> bool:
    """Whether YAML can give all that this class requires; `RunRecord` wants a folder, which is `train.py`'s to give."""
    return all(one.type is not None for one in component(path, name).parameters.values() if one.default is REQUIRED)


def named(section: str, name: str, where: str, key: str) -> Component:
    """The component that `name` means in `section`.

    Raises:
        ConfigError: if there is none, or its file has more than one.
    """
    if section in FUNCTIONS:
        if name in functions(FUNCTIONS[section]):
            return component(FUNCTIONS[section], name)
    elif (path := PROJECT / FOLDERS[section][0] / f"{name}.py") in _files(section) and _offers(section, path):
        return _of_file(section, path, where, key)
    elif section == "callbacks" and name in schema.LIGHTNING_CALLBACKS:
        file, class_name = schema.LIGHTNING_CALLBACKS[name]
        return component(lightning_folder() / "callbacks" / f"{file}.py", class_name)
    raise ConfigError(where, key, f"unknown name {name!r}", nearest(name, names(section), "available"))


def _of_file(section: str, path: Path, where: str, key: str) -> Component:
    folder, bases = FOLDERS[section]
    classes = subclasses(path, bases)
    if len(classes) > 1:
        problem = f"{folder}/{path.name} has {len(classes)} classes that derive from {bases[0]}"
        raise ConfigError(where, key, problem, "one a file")
    found = component(path, classes[0])
    own = {key: one for key, one in found.parameters.items() if key not in schema.HANDED_OVER.get(section, ())}
    return replace(found, parameters=own)


@lru_cache
def closed(section: str) -> Component:
    """The section `trainer`, `run` or, at the top of a file, ``""``."""
    path = PROJECT / "configs/schema.py"
    if section == "trainer":
        ours = component(path, "Trainer")
        theirs = component(lightning_folder() / "trainer" / "trainer.py", "Trainer")
        merged = dict(theirs.parameters)
        for name, parameter in ours.parameters.items():
            meaning = parameter.meaning or theirs.parameters[name].meaning
            merged[name] = replace(parameter, meaning=meaning)
        return replace(theirs, parameters=merged)
    return component(path, {"run": "Run", "": "Experiment"}[section])


@lru_cache
def lightning_folder() -> Path:
    """Where `lightning.pytorch` is installed, found without importing it."""
    spec = importlib.util.find_spec("lightning")
    if spec is None or spec.origin is None:
        raise ConfigError("", "", "lightning is not installed", "run: pip install -e . -c constraints.txt")
    return Path(spec.origin).parent / "pytorch"


def refused_by_lightning(error: BaseException) -> bool:
    """Whether Lightning has refused an option; any other error of these kinds is a bug."""
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    kind = isinstance(error, ValueError | ImportError) and where.is_relative_to(lightning_folder())
    return kind or type(error).__name__ == "MisconfigurationException"


def nearest(word: str, choices: Iterable[str], title: str) -> str:
    """``did you mean X?``, else all choices under `title`."""
    close = closest(word, choices)
    return f"did you mean {close}?" if close else f"{title}: {', '.join(sorted(set(choices)))}"


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` may have meant: spelt alike, or with something before or behind it."""
    choices = sorted(set(choices))
    ends = (f".{word}", f"_{word}") if len(word) > 2 else (f".{word}",)
    longer = (one for one in choices if one.endswith(ends) or (len(word) > 2 and one.startswith(f"{word}_")))
    return next(longer, None) or next(iter(difflib.get_close_matches(word, choices, 1, 0.6)), None)
