"""The parameters of a constructor or a function, read from its source without importing it.

The constructor is the schema of a config section. Names, types and defaults come from the signature. Ranges come from
annotations such as ``Annotated[float, ">= 0, < 1"]``, and hold for every number in a value. Help texts come from ``Args:`` in
the docstring. Reading the source with `ast` takes milliseconds; importing it would import torch.
"""

import ast
import inspect
import math
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union

from engine.contracts import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
REQUIRED = object()  # the default of a parameter without a default
COMPUTED = object()  # a default that is not a literal, so the constructor has to compute it

_SCALARS: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "Any": Any, "None": NoneType}
_LISTS = {"list", "List", "Sequence", "Iterable", "tuple", "Tuple"}  # YAML has only one kind of list
_DICTS = {"dict", "Dict", "Mapping"}
_BOUND = re.compile(r"\s*(>=|<=|>|<)\s*(-?[0-9.]+(?:e[-+]?[0-9]+)?)\s*(?:,|$)")
_COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Parameter:
    """One key of a section.

    Attributes:
        name: The key.
        type: Its type as in `typing`; None if no YAML value can have it (a `Logger`, for example).
        default: The value if the config does not set the key, or `REQUIRED`, or `COMPUTED`.
        bounds: The range of every number in the value, such as ``">= 0, < 1"``; "" for any.
        meaning: Its description in the docstring.
        where: File and line of the declaration.
    """

    name: str
    type: Any
    default: Any
    bounds: str
    meaning: str
    where: str

    @property
    def accepts(self) -> str:
        """Type and range as shown to the user."""
        return describe_type(self.type) + (f", {self.bounds}" if self.bounds else "")


@dataclass(frozen=True)
class Component:
    """A class or function that a config can name."""

    name: str
    path: Path
    parameters: dict[str, Parameter]
    constants: dict[str, Any]  # class attributes with literal values, such as `modality`
    summary: str  # first line of the docstring


@lru_cache
def read_component(path: Path, name: str) -> Component:
    """The class or function `name` in the file `path`.

    A constructor's ``**options`` stand for the parameters of its first base class.
    """
    node = next(n for n in tree_of(path).body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
    docstring = ast.get_docstring(node) or ""
    constants = inherited_constants(path, node) if isinstance(node, ast.ClassDef) else {}
    return Component(name, path, _parameters(path, node), constants, docstring.partition("\n")[0])


@lru_cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file.

    Raises:
        ConfigError: if the file is not valid Python.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise ConfigError(f"{short_path(path)}:{error.lineno}", "", f"is not valid Python: {error.msg}") from None
    except UnicodeDecodeError:
        raise ConfigError(short_path(path), "", "is not UTF-8 text") from None


def short_path(path: Path) -> str:
    """The path relative to the project, or only the name of a file outside the project."""
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else path.name


def classes_of(path: Path) -> list[ast.ClassDef]:
    return [node for node in tree_of(path).body if isinstance(node, ast.ClassDef)]


def base_classes(path: Path, node: ast.ClassDef) -> Iterator[tuple[str, Path | None, str]]:
    """Name, file (None if it is outside the project) and module of each direct base class."""
    for base in node.bases:
        prefix, _, name = ast.unparse(base).rpartition(".")
        if not prefix and any(other.name == name for other in classes_of(path)):
            yield name, path, ""
            continue
        module = _module_of(path, prefix or name, is_module=bool(prefix))
        file = PROJECT.joinpath(*module.split(".")).with_suffix(".py")
        yield name, file if module and file.is_file() else None, module


def ancestors(path: Path, node: ast.ClassDef) -> Iterator[tuple[str, Path | None, str]]:
    """Every base class at any depth, as from `base_classes`."""
    for name, file, module in base_classes(path, node):
        yield name, file, module
        if file is not None:
            for parent in classes_of(file):
                if parent.name == name:
                    yield from ancestors(file, parent)


def _module_of(path: Path, name: str, is_module: bool) -> str:
    """The module that `name` was imported from; with `is_module` the module that is called `name` in the file."""
    for node in tree_of(path).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return f"{node.module}.{alias.name}" if is_module else node.module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return alias.name
    return ""


def inherited_constants(path: Path, node: ast.ClassDef) -> dict[str, Any]:
    """Class attributes with literal values, those of base classes in the project included."""
    found: dict[str, Any] = {}
    for name, file, _ in base_classes(path, node):
        for parent in classes_of(file) if file is not None else ():
            if parent.name == name:
                found = {**inherited_constants(file, parent), **found}  # type: ignore[arg-type]
    return found | own_constants(node)


def own_constants(node: ast.ClassDef) -> dict[str, Any]:
    """Class attributes with literal values that the class itself sets."""
    found = {}
    for item in node.body:
        target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        value = getattr(item, "value", None)
        if isinstance(target, ast.Name) and value is not None and (literal := _literal(value)) is not COMPUTED:
            found[target.id] = literal
    return found


def _parameters(path: Path, node: ast.ClassDef | ast.FunctionDef) -> dict[str, Parameter]:
    if isinstance(node, ast.FunctionDef):
        return _of_function(path, node, ast.get_docstring(node))
    init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if init is None and not node.bases:  # a dataclass: its fields are the constructor's parameters
        meanings = _meanings(ast.get_docstring(node))
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
        return {f.target.id: _parameter(path, f.target.id, f, f.annotation, f.value, meanings) for f in fields}  # type: ignore[union-attr]
    own: dict[str, Parameter] = {}
    if init is not None:
        docstring = "\n\n".join(text for owner in (node, init) if (text := ast.get_docstring(owner)))
        own = _of_function(path, init, docstring)
        if init.args.kwarg is None:
            return own
    name, file, _ = next(base_classes(path, node), ("", None, ""))
    inherited = read_component(file, name).parameters if file is not None else {}
    return {**own, **{key: parameter for key, parameter in inherited.items() if key not in own}}


def _of_function(path: Path, node: ast.FunctionDef, docstring: str | None) -> dict[str, Parameter]:
    """All parameters of a constructor but self, or the keyword-only parameters of any other function."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, [*padding, *arguments.defaults], strict=True))[1:] if node.name == "__init__" else []
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
    where = f"{short_path(path)}:{node.lineno}"
    bounds: list[str] = []
    try:
        kind = read_annotation(annotation, bounds) if annotation is not None else Any
    except ValueError:
        raise ConfigError(where, name, "has an annotation that is not made of literals", "write literals") from None
    if any(_BOUND.sub("", bound) for bound in bounds):
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
    """The entries of a docstring's ``Args:`` or ``Attributes:``, each on one line."""
    found: dict[str, str] = {}
    text = inspect.cleandoc(docstring or "") + "\n"
    for block in re.findall(r"^(?:Args|Attributes):\n((?:[ ]+\S.*\n?|\n)+)", text, re.M):
        indent = len(block) - len(block.lstrip(" "))
        for entry in re.split(rf"^ {{{indent}}}(?=\S)", block, flags=re.M):
            name, colon, meaning = entry.partition(":")
            if colon and re.fullmatch(r"[\w*, ]+( \(.*\))?", name):
                found[name.split(" ")[0].strip("*")] = " ".join(meaning.split())
    return found


def read_annotation(node: ast.expr, bounds: list[str]) -> Any:
    """An annotation as a type that OmegaConf can check, or None if YAML cannot express it. Ranges are added to `bounds`.

    Raises:
        ValueError: if the annotation is not made of literals.
    """
    if isinstance(node, ast.Constant):
        return NoneType if node.value is None else read_annotation(ast.parse(str(node.value), mode="eval").body, bounds)
    if isinstance(node, ast.BinOp):
        return _union([node.left, node.right], bounds)
    if not isinstance(node, ast.Subscript):
        return _SCALARS.get(ast.unparse(node).split(".")[-1])
    outer = ast.unparse(node.value).split(".")[-1]
    inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if outer == "Literal":
        return Literal[tuple(ast.literal_eval(item) for item in inner)]
    if outer == "Annotated":
        bounds.append(str(ast.literal_eval(inner[1])))
        return read_annotation(inner[0], bounds)
    if outer in ("Union", "Optional"):
        return _union([*inner, *([ast.Constant(None)] if outer == "Optional" else [])], bounds)
    inner = [item for item in inner if not (isinstance(item, ast.Constant) and item.value is Ellipsis)]
    members = [read_annotation(item, bounds) for item in inner]
    if None in members:
        return None
    if outer in _LISTS:
        return list[members[0]]  # type: ignore[valid-type]
    return dict[members[0], members[1]] if outer in _DICTS else None  # type: ignore[valid-type]


def _union(nodes: list[ast.expr], bounds: list[str]) -> Any:
    members = [member for node in nodes if (member := read_annotation(node, bounds)) is not None]
    if not members or members == [NoneType]:
        return None
    return Union[tuple(members)]  # noqa: UP007  (a computed list of members cannot be written with |)


def describe_type(annotation: Any) -> str:
    """A type as a person would write it."""
    origin = getattr(annotation, "__origin__", None)
    if origin is Union:
        return " | ".join(describe_type(member) for member in annotation.__args__)
    if origin is Literal:
        return " | ".join(dict.fromkeys(map(str, annotation.__args__)))
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(describe_type(member) for member in annotation.__args__)}]"
    return "null" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def in_range(value: Any, bounds: str) -> bool:
    """Whether `value`, or every number in a list, is finite and within `bounds`."""
    if isinstance(value, list | tuple):
        return all(in_range(item, bounds) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    limits = _BOUND.findall(bounds)
    return math.isfinite(value) and all(_COMPARISONS[symbol](value, float(limit)) for symbol, limit in limits)


def logged_names(path: Path) -> tuple[set[str], bool]:
    """The metrics that a file logs by ``self.log`` or ``self.log_dict``, and whether it logs some under computed names."""
    names: set[str] = set()
    computed = False
    for node in ast.walk(tree_of(path)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("log", "log_dict")
        ):
            first = node.args[0] if node.args else node.keywords[0].value if node.keywords else None
            keys = first.keys if isinstance(first, ast.Dict) else [first]
            literals = {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
            computed |= len(literals) < len(keys)
            names |= literals
    return names, computed
