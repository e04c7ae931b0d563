"""A constructor's parameters, read without importing its module.

The constructor is the schema: names, types and defaults come from the signature, ranges from ``Annotated[float, ">= 0"]``,
help from the docstring's ``Args:``. Reading source with `ast` takes milliseconds; importing it would take torch with it.
"""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from configs.annotations import describe, inside, read_annotation, well_formed
from configs.nodes import ConfigError

PROJECT = Path(__file__).resolve().parent.parent
REQUIRED = object()  # the default of a parameter that has none
COMPUTED = object()  # a default that is no literal: the constructor's own business


@dataclass(frozen=True)
class Parameter:
    """One key of a section.

    Attributes:
        name: the key.
        type: what `typing` calls it, or None where no YAML value could be one (a `Logger`, say).
        default: its value where the config is silent, or `REQUIRED`, or `COMPUTED`.
        bounds: the range of every number in it, as in ``">= 0, < 1"``, or "".
        meaning: its lines in the docstring.
        where: file and line of its declaration.
    """

    name: str
    type: Any
    default: Any
    bounds: str
    meaning: str
    where: str

    @property
    def accepts(self) -> str:
        """The type and range, for people."""
        return describe(self.type) + (f", {self.bounds}" if self.bounds else "")

    def inside(self, value: Any) -> bool:
        """Whether every number in `value` is finite and within `bounds`."""
        return inside(value, self.bounds)


@dataclass(frozen=True)
class Component:
    """A class or function that a config can name: where it is, what it takes, what it says of itself."""

    name: str
    path: Path
    parameters: dict[str, Parameter]
    constants: dict[str, Any]  # literal class attributes, such as `modality`
    summary: str  # the docstring's first line


@lru_cache
def component(path: Path, name: str) -> Component:
    """The class or function `name` of the file `path`.

    A constructor's ``**options`` stand for the parameters of its first base class.
    """
    node = next(
        item for item in _tree(path).body if isinstance(item, ast.ClassDef | ast.FunctionDef) and item.name == name
    )
    docstring = ast.get_docstring(node) or ""
    constants = dict(_constants(node)) if isinstance(node, ast.ClassDef) else {}
    return Component(name, path, _parameters(path, node), constants, docstring.partition("\n")[0])


def subclasses(path: Path, bases: Iterable[str]) -> list[str]:
    """The classes of the file `path` that derive from a class called one of `bases`, and are none of these."""
    return [
        node.name
        for node in _tree(path).body
        if isinstance(node, ast.ClassDef)
        and node.name not in bases
        and any(ast.unparse(one).split(".")[-1] in bases for one in node.bases)
    ]


def functions(path: Path) -> list[str]:
    """The public functions of the file `path`."""
    return [node.name for node in _tree(path).body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]


@lru_cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise ConfigError(f"{shown(path)}:{error.lineno}", "", f"is not valid Python: {error.msg}") from None
    except UnicodeDecodeError:
        raise ConfigError(shown(path), "", "is not UTF-8 text") from None


def shown(path: Path) -> str:
    """A file's name as a person would say it."""
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else path.name


def texts(path: Path) -> set[str]:
    """Every string that is written out in the file `path`."""
    return {
        node.value for node in ast.walk(_tree(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for item in node.body:
        target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        value = getattr(item, "value", None)
        if isinstance(target, ast.Name) and value is not None:
            literal = _literal(value)
            if literal is not COMPUTED:
                yield target.id, literal


def _parameters(path: Path, node: ast.ClassDef | ast.FunctionDef) -> dict[str, Parameter]:
    if isinstance(node, ast.FunctionDef):
        return _of_function(path, node, ast.get_docstring(node))
    init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if init is None and not node.bases:  # a dataclass: its fields are its constructor
        meanings = _meanings(ast.get_docstring(node))
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
        return {f.target.id: _parameter(path, f.target.id, f, f.annotation, f.value, meanings) for f in fields}  # type: ignore[union-attr]
    own: dict[str, Parameter] = {}
    if init is not None:
        docstring = "\n\n".join(text for owner in (node, init) if (text := ast.get_docstring(owner)))
        own = _of_function(path, init, docstring)
        if init.args.kwarg is None:
            return own
    inherited = _base(path, node)
    return {**own, **{name: one for name, one in inherited.items() if name not in own}}


def _base(path: Path, node: ast.ClassDef) -> dict[str, Parameter]:
    """The parameters of the first base class, where its file is in the project."""
    if not node.bases:
        return {}
    base = ast.unparse(node.bases[0])
    for item in _tree(path).body:
        if isinstance(item, ast.ClassDef) and item.name == base:
            return _parameters(path, item)
        if isinstance(item, ast.ImportFrom) and item.module and base in [alias.name for alias in item.names]:
            file = PROJECT.joinpath(*item.module.split(".")).with_suffix(".py")
            return component(file, base).parameters if file.is_file() else {}
    return {}


def _of_function(path: Path, node: ast.FunctionDef, docstring: str | None) -> dict[str, Parameter]:
    """Keyword-only parameters where there are any (what stands before them is not the user's), else all but self."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, [*padding, *arguments.defaults], strict=True))
    pairs = [pair for pair in pairs if pair[0].arg != "self"]
    if node.name != "__init__":
        pairs = []
    pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    meanings = _meanings(docstring)
    return {arg.arg: _parameter(path, arg.arg, arg, arg.annotation, value, meanings) for arg, value in pairs}


def _parameter(
    path: Path,
    name: str,
    node: ast.arg | ast.AnnAssign,
    annotation: ast.expr | None,
    default: ast.expr | None,
    meanings: dict[str, str],
) -> Parameter:
    where = f"{shown(path)}:{node.lineno}"
    bounds: list[str] = []
    try:
        kind = read_annotation(annotation, bounds) if annotation is not None else Any
    except ValueError:
        raise ConfigError(where, name, "has an annotation that only running it could tell", "write literals") from None
    if not all(map(well_formed, bounds)):
        raise ConfigError(where, name, f"has the bounds {bounds}", 'write them as in ">= 0, < 1"')
    value = REQUIRED if default is None else _literal(default)
    value = list(value) if isinstance(value, tuple) else value
    return Parameter(name, kind, value, ", ".join(bounds), meanings.get(name, ""), where)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return COMPUTED


def _meanings(docstring: str | None) -> dict[str, str]:
    """The entries of a docstring's ``Args:`` (or ``Attributes:``), each on one line."""
    found: dict[str, str] = {}
    for block in re.findall(
        r"^(?:Args|Attributes):\n((?:[ ]+\S.*\n?|\n)+)", inspect.cleandoc(docstring or "") + "\n", re.M
    ):
        indent = len(block) - len(block.lstrip(" "))
        for entry in re.split(rf"^ {{{indent}}}(?=\S)", block, flags=re.M):
            name, colon, text = entry.partition(":")
            if colon and re.fullmatch(r"[\w*, ]+( \(.*\))?", name):
                found[name.split(" ")[0].strip("*")] = " ".join(text.split())
    return found
