"""The table of private names of other packages: every name exists, and no other one is used."""

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torchmetrics import MeanMetric

from engine.config.signatures import PROJECT
from engine.private_names import PRIVATE_NAMES, PrivateName

ROOMS = ("engine", "lit_models", "datamodules", "callbacks", "benchmarks")
SOURCES = [path for room in ROOMS for path in sorted((PROJECT / room).rglob("*.py"))] + sorted(PROJECT.glob("*.py"))
MODULES = [
    ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    for path in SOURCES
    if path.name != "__init__.py" and not path.is_relative_to(PROJECT / "benchmarks")  # they import other packages
]


def closed_events() -> EventFileWriter:
    with TemporaryDirectory() as folder:
        writer = EventFileWriter(folder)
        writer.close()
        return writer


ROOTS = {
    "events": closed_events,
    "trainer": lambda: Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False),
    "module": LightningModule,
    "metric": MeanMetric,
}
PACKAGES = ("lightning", "torch", "torchmetrics", "tensorboard", "transformers")
BENCHMARKED = {"_splits"}  # private names of this project that its benchmarks use
TABLE = {part.removesuffix("()") for row in PRIVATE_NAMES for part in row.path.split(".")}
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def resolve(path: str) -> Any:
    """The object that a path of the table names.

    Raises:
        AssertionError: it names the part of `path` that does not exist.
    """
    root, *names = path.split(".")
    value: Any = ROOTS[root]() if root in ROOTS else importlib.import_module(root)
    for i, name in enumerate(names):
        found = name.removesuffix("()")
        if inspect.ismodule(value) and not hasattr(value, found):
            importlib.import_module(f"{value.__name__}.{found}")
        assert hasattr(value, found), f"{'.'.join([root, *names[: i + 1]])} does not exist any more"
        value = getattr(value, found)
        value = value() if name.endswith("()") else value
    return value


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def foreign_names(path: Path) -> Iterator[tuple[str, int]]:
    """The private names that a file uses but does not define, each with its line.

    An attribute of `self` may be defined in any file of the project, because a base class may define it.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = definitions(tree)
    inherited = own | all_definitions()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            parts = ".".join([*modules, *(alias.name for alias in node.names)]).split(".")
            if parts[0] not in (*ROOMS, "", "__future__"):
                yield from ((part, node.lineno) for part in parts if is_private(part))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            base = node.value.id if isinstance(node.value, ast.Name) else ""
            known = inherited if base in ("self", "cls") else own
            if node.attr not in known and base not in sys.stdlib_module_names:
                yield node.attr, node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "hasattr",
            "setattr",
            "delattr",
        ):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and name.value not in own:
                yield str(name.value), node.lineno


def definitions(tree: ast.AST) -> set[str]:
    """The names that a file defines: functions, classes, variables, and attributes that it assigns to `self`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


@cache
def all_definitions() -> frozenset[str]:
    return frozenset().union(*map(definitions, TREES.values()))


@cache
def overridden_names() -> frozenset[str]:
    """The private methods and properties of other packages that classes of the project override."""
    names: set[str] = set()
    for module in map(importlib.import_module, MODULES):
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                own = {
                    name
                    for name, value in vars(cls).items()
                    if inspect.isfunction(value) or isinstance(value, property)
                }
                bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] in PACKAGES]
                names |= {name for name in own for base in bases if is_private(name) and name in vars(base)}
    return frozenset(names)


@pytest.mark.parametrize("row", PRIVATE_NAMES, ids=lambda row: row.path)
def test_a_private_name_exists(row):
    resolve(row.path)


def test_a_name_that_is_gone_is_named():
    with pytest.raises(AssertionError, match=r"trainer.fit_loop._gone does not exist any more"):
        resolve("trainer.fit_loop._gone.restarting")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_private_names_of_other_packages_are_in_the_table(path):
    used = {f"line {line}: {name}" for name, line in foreign_names(path) if name not in BENCHMARKED}
    allowed = TABLE if path.is_relative_to(PROJECT / "engine") else set()
    assert {use for use in used if use.rpartition(" ")[2] not in allowed} == set()


def test_every_row_of_the_table_is_used():
    engine = [path for path in SOURCES if path.is_relative_to(PROJECT / "engine")]
    private = {name for path in engine for name, _ in foreign_names(path)} | overridden_names()
    public = {node.attr for path in engine for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute)}
    names = {row.path: row.path.rpartition(".")[2] for row in PRIVATE_NAMES}
    assert [path for path, name in names.items() if name not in (private if is_private(name) else public)] == []


def test_overridden_private_names_are_in_the_table():
    assert overridden_names() - TABLE == set()


def test_the_table_has_no_row_twice():
    assert len({row.path for row in PRIVATE_NAMES}) == len(PRIVATE_NAMES)
    assert all(isinstance(row, PrivateName) and all(row) for row in PRIVATE_NAMES)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from lightning.pytorch.loops.fetchers import _DataFetcher", "_DataFetcher"),
        ("import torch._dynamo", "_dynamo"),
        ("def f(trainer): return trainer._logger_connector.x", "_logger_connector"),
        ("def f(strategy): return getattr(strategy, '_timeout', 0)", "_timeout"),
        ("class A:\n    def f(self): return self._results", "_results"),
    ],
)
def test_the_search_finds_private_names(code, name, tmp_path):
    (tmp_path / "some.py").write_text(code, encoding="utf-8")
    assert [found for found, _ in foreign_names(tmp_path / "some.py")] == [name]


@pytest.mark.parametrize(
    "code",
    ["import os\nos._exit(0)", "class A:\n    def __init__(self): self._x = 1\ndef f(a: A): return a._x", "f.__name__"],
)
def test_the_search_ignores_other_names(code, tmp_path):
    (tmp_path / "some.py").write_text(code, encoding="utf-8")
    assert list(foreign_names(tmp_path / "some.py")) == []
