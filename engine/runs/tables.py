"""What `runs.py` prints: text in columns, for a terminal or a pipe, or JSON for programs."""

import json
import math
import shutil
import sys
from typing import Any

GAP, SHORTEST = "  ", 16  # between columns; what a text that is cut keeps, by which 120 columns show why a run failed


def table(titles: list[str], rows: list[list[str]], fits: bool = True) -> None:
    """Print aligned columns, but for empty ones.

    Args:
        titles: Of the columns.
        rows: A text for each.
        fits: Whether no line is to be longer than the terminal. There the longest texts are cut, and what then has no room
            is left out whole, from the right: half a figure would be another one.
    """
    columns = [[printable(one) for one in column] for column in zip(titles, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    if fits and sys.stdout.isatty():
        room = shutil.get_terminal_size().columns + len(GAP)
        while sum(widths) + len(GAP) * len(widths) > room and max(widths[1:], default=0) > SHORTEST:
            widths[widths.index(max(widths[1:]), 1)] -= 1
        while sum(widths) + len(GAP) * len(widths) > room and len(widths) > 1:
            widths.pop()
        widths[0] = min(widths[0], room - len(GAP))
    for line in zip(*columns, strict=True):
        print(GAP.join(cut(one, width).ljust(width) for one, width in zip(line, widths, strict=False)).rstrip())


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 2, 0)] + ".."


def printable(text: str) -> str:
    """`text` with what would move a terminal's cursor, or is no text at all, written out."""
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def dump(content: Any) -> int:
    """Print what any reader of JSON takes: in ASCII, null for what is not finite."""
    print(json.dumps(strict(content), indent=2))
    return 0


def strict(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: strict(value) for name, value in content.items()}
    if isinstance(content, list):
        return [strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
