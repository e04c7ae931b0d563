"""Annotations as they are written in source -> types that OmegaConf can check, and ranges.

A range is text beside the type, ``Annotated[float, ">= 0, < 1"]``, and holds for every number in the value.
"""

import ast
import math
import operator
import re
from types import NoneType
from typing import Any, Literal, Union

_SCALARS: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "Any": Any, "None": NoneType}
_LISTS = {"list", "List", "Sequence", "Iterable", "tuple", "Tuple"}  # YAML has one kind of list
_DICTS = {"dict", "Dict", "Mapping"}
_BOUND = re.compile(r"\s*(>=|<=|>|<)\s*(-?[0-9.]+(?:e[-+]?[0-9]+)?)\s*(?:,|$)")
_COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def read_annotation(node: ast.expr, bounds: list[str]) -> Any:
    """The part of an annotation that YAML can express, as a type, or None; ranges are added to `bounds`.

    Raises:
        ValueError: if only running the code could tell.
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
    if outer == "Union":
        return _union(inner, bounds)
    if outer == "Optional":
        return _union([inner[0], ast.Constant(None)], bounds)
    members = [
        read_annotation(item, bounds)
        for item in inner
        if not (isinstance(item, ast.Constant) and item.value is Ellipsis)
    ]
    if None in members:
        return None
    if outer in _LISTS:
        return list[members[0]]  # type: ignore[valid-type]
    return dict[members[0], members[1]] if outer in _DICTS else None  # type: ignore[valid-type]


def _union(nodes: list[ast.expr], bounds: list[str]) -> Any:
    members = [member for node in nodes if (member := read_annotation(node, bounds)) is not None]
    if not members or members == [NoneType]:
        return None
    return Union[tuple(members)]  # noqa: UP007  (there is no other way to write it for a computed list)


def describe(annotation: Any) -> str:
    """A type as a person would write it."""
    origin = getattr(annotation, "__origin__", None)
    if origin is Union:
        return " | ".join(describe(member) for member in annotation.__args__)
    if origin is Literal:
        return " | ".join(dict.fromkeys(map(str, annotation.__args__)))
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(describe(member) for member in annotation.__args__)}]"
    return "null" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def well_formed(bounds: str) -> bool:
    """Whether all of `bounds` can be read."""
    return not _BOUND.sub("", bounds)


def inside(value: Any, bounds: str) -> bool:
    """Whether `value`, or every number of a list, is finite and within `bounds`."""
    if isinstance(value, list | tuple):
        return all(inside(item, bounds) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    limits = _BOUND.findall(bounds)
    return math.isfinite(value) and all(_COMPARISONS[symbol](value, float(limit)) for symbol, limit in limits)
