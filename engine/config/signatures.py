"""Reads the parameters of a constructor or a function from its source, without importing it.

The constructor is the schema of a config section. Names, types and defaults come from the signature. Ranges come from
annotations such as ``Annotated[float, ">= 0, < 1"]`` and apply to every number in a value. Help texts come from ``Args:`` in
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
_REST_ROLE = re.compile(r":\w+:`~?(.*?)`")  # :class:`torch.Tensor`
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
    """A class or function that a config can name.

    Attributes:
        name: Its name in the source.
        path: The file.
        parameters: The keys of its section.
        constants: Class attributes with literal values, own and inherited, such as `modality`.
        summary: First line of the docstring.
    """

    name: str
    path: Path
    parameters: dict[str, Parameter]
    constants: dict[str, Any]
    summary: str


@lru_cache
def read_component(path: Path, name: str) -> Component:
    """Return the class or function `name` of the file `path`.

    If a constructor takes ``**options``, the parameters of the next constructor among the base classes are added.
    """
    node = next(n for n in tree_of(path).body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
    docstring = ast.get_docstring(node) or ""
    constants: dict[str, Any] = {}
    for _, owner in reversed([*lineage(path, node)] if isinstance(node, ast.ClassDef) else []):
        constants |= own_constants(owner)
    return Component(name, path, _parameters(path, node), constants, docstring.partition("\n")[0])


@lru_cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file."""
    try:
        return ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise ConfigError(f"{short_path(path)}:{error.lineno}", "", f"is not valid Python: {error.msg}") from None


def short_path(path: Path) -> str:
    """Return the path relative to the project, or only the name of a file outside the project."""
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else path.name


def classes_of(path: Path) -> list[ast.ClassDef]:
    """Return the class statements at the top level of a file."""
    return [node for node in tree_of(path).body if isinstance(node, ast.ClassDef)]


def lineage(path: Path, node: ast.ClassDef) -> Iterator[tuple[Path, ast.ClassDef]]:
    """Yield a class and its base classes in the project at any depth, each with its file."""
    yield path, node
    for module, name in named_bases(path, node):
        file = PROJECT.joinpath(*module.split(".")).with_suffix(".py") if module else path
        for base in classes_of(file) if file.is_file() else ():
            if base.name == name and base is not node:
                yield from lineage(file, base)


def named_bases(path: Path, node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of each direct base class; the module is "" if the file does not import the class."""
    imported: dict[str, str] = {}
    for statement in tree_of(path).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            packages = []
            if isinstance(statement, ast.ImportFrom):  # with a level, it is relative: from .cnn import LitCNN
                packages = [path.parent.name if statement.level else None, statement.module]
            prefix = "".join(f"{package}." for package in packages if package)
            imported |= {alias.asname or alias.name: prefix + alias.name for alias in statement.names}
    for base in node.bases:
        first, dot, rest = ast.unparse(base).partition(".")
        module, _, name = f"{imported.get(first, first)}{dot}{rest}".rpartition(".")
        yield module, name


def own_constants(node: ast.ClassDef) -> dict[str, Any]:
    """Return the class attributes with literal values that the class itself sets."""
    found = {}
    for item in node.body:
        target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        value = getattr(item, "value", None)
        if isinstance(target, ast.Name) and value is not None and (literal := _literal(value)) is not COMPUTED:
            found[target.id] = literal
    return found


def _parameters(path: Path, node: ast.ClassDef | ast.FunctionDef) -> dict[str, Parameter]:
    if isinstance(node, ast.FunctionDef):
        return _function_parameters(path, node, ast.get_docstring(node))
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        meanings = _meanings(ast.get_docstring(node))
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
        return {f.target.id: _parameter(path, f.target.id, f, f.annotation, f.value, meanings) for f in fields}  # type: ignore[union-attr]
    found: dict[str, Parameter] = {}
    for owner_path, owner in lineage(path, node):
        functions = {item.name: item for item in owner.body if isinstance(item, ast.FunctionDef)}
        if (init := functions.get("__init__")) is not None:
            docstring = "\n\n".join(text for documented in (owner, init) if (text := ast.get_docstring(documented)))
            for name, parameter in _function_parameters(owner_path, init, docstring).items():
                found.setdefault(name, parameter)
            if init.args.kwarg is None:
                break
    return found


def _function_parameters(path: Path, node: ast.FunctionDef, docstring: str | None) -> dict[str, Parameter]:
    """Return all parameters of a constructor except self, or the keyword-only parameters of any other function."""
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
    except (ValueError, SyntaxError, IndexError):
        hint = "write its choices and bounds as literals"
        raise ConfigError(where, name, "has an annotation that cannot be read without running the file", hint) from None
    if any(_BOUND.sub("", bound) for bound in bounds):
        raise ConfigError(where, name, f"has the bounds {bounds}", 'write them as in ">= 0, < 1"')
    value = REQUIRED if default is None else _literal(default)
    value = list(value) if isinstance(value, tuple) else value
    return Parameter(name, kind, value, ", ".join(bounds), meanings.get(name, ""), where)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return COMPUTED


def _meanings(docstring: str | None) -> dict[str, str]:
    """Return the entries of a docstring's ``Args:`` or ``Attributes:``, each on one line and without reST markup."""
    found: dict[str, str] = {}
    text = inspect.cleandoc(docstring or "") + "\n"
    for block in re.findall(r"^(?:Args|Attributes):\n((?:[ ]+\S.*\n?|\n)+)", text, re.M):
        indent = len(block) - len(block.lstrip(" "))
        for entry in re.split(rf"^ {{{indent}}}(?=\S)", block, flags=re.M):
            name, colon, meaning = entry.partition(":")
            if colon and re.fullmatch(r"[\w*, ]+( \(.*\))?", name):
                meaning = _REST_ROLE.sub(r"\1", meaning).replace("``", "")
                found[name.split(" ")[0].strip("*")] = " ".join(meaning.split())
    return found


def read_annotation(node: ast.expr, bounds: list[str]) -> Any:
    """Convert an annotation to a type that OmegaConf can check.

    Args:
        node: The annotation.
        bounds: Receives the ranges in the annotation.

    Returns:
        The type; None if YAML cannot express it.

    Raises:
        ValueError, SyntaxError, IndexError: if the choices or bounds are not literals.
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
    """Return a type as a person would write it."""
    origin = getattr(annotation, "__origin__", None)
    if origin is Union:
        return " | ".join(describe_type(member) for member in annotation.__args__)
    if origin is Literal:
        return " | ".join(dict.fromkeys(map(str, annotation.__args__)))
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(describe_type(member) for member in annotation.__args__)}]"
    return "null" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def in_range(value: Any, bounds: str) -> bool:
    """Return whether `value`, or every number in a list, is finite, has at most 64 bits, and is within `bounds`."""
    if isinstance(value, list | tuple):
        return all(in_range(item, bounds) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    limits = _BOUND.findall(bounds)
    fits = math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63
    return fits and all(_COMPARISONS[symbol](value, float(limit)) for symbol, limit in limits)
