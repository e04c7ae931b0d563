"""The output of ``runs.py``: aligned columns for people, JSON for programs."""

import json
import math
import shutil
import sys
from typing import Any

from engine.contracts import escape

GAP = "  "  # between columns
MIN_WIDTH = 16  # of a shortened column


def print_table(titles: list[str], rows: list[list[str]], shorten: bool = True) -> None:
    """Print aligned columns. Empty columns are left out.

    Args:
        titles: Title of each column.
        rows: One text per column.
        shorten: Whether to fit the table to the width of a terminal. Long texts are cut. If that is not enough, columns are
            left out, the last ones first, because a number that is cut would look like another number.
    """
    columns = [list(map(escape, column)) for column in zip(titles, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    if shorten and sys.stdout.isatty():
        widths = _fit(widths, shutil.get_terminal_size().columns)
    for line in zip(*columns, strict=True):
        print(GAP.join(_cut(text, width).ljust(width) for text, width in zip(line, widths, strict=False)).rstrip())


def _fit(widths: list[int], room: int) -> list[int]:
    """Narrow the widest columns, then drop the last columns, until a line has at most `room` characters."""
    widths = list(widths)
    while len(GAP.join(" " * width for width in widths)) > room and max(widths[1:], default=0) > MIN_WIDTH:
        widths[widths.index(max(widths[1:]), 1)] -= 1
    while len(GAP.join(" " * width for width in widths)) > room and len(widths) > 1:
        widths.pop()
    return [min(widths[0], room), *widths[1:]]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 2, 0)] + ".."


def print_json(content: Any) -> None:
    """Print strict JSON in ASCII. NaN and infinity become null."""
    print(json.dumps(_finite(content), indent=2))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
