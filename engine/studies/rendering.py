"""Parts of a report, as text for the terminal and as Markdown."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from engine.contracts import escape
from engine.runs.tables import GAP

WIDTH = 110  # longest line on the terminal, in characters
INDENT = "  "
MIN_WRAPPED = 24  # smallest width of the last column of a table


@dataclass(frozen=True)
class Part:
    """A part of the report.

    Attributes:
        title: Its title.
        sentences: Sentences above the table.
        titles: Titles of the columns of the table.
        rows: One text per column.
        most: Most rows on the terminal; None for all.
        only: "text" or "markdown" if the other does not have this part.
    """

    title: str
    sentences: Sequence[str] = ()
    titles: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    most: int | None = None
    only: str = ""


def text_lines(part: Part) -> Iterator[str]:
    yield escape(part.title)
    for sentence in part.sentences:
        yield from textwrap.wrap(escape(sentence), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    if not part.rows:
        return
    rows = part.rows[: part.most]
    columns = [list(map(escape, column)) for column in zip(part.titles, *rows, strict=True)]
    columns = [column for column in columns if any(column[1:])]
    widths = [max(map(len, column)) for column in columns[:-1]]
    start = len(INDENT) + sum(width + len(GAP) for width in widths)
    for *cells, last in zip(*columns, strict=True):
        line = INDENT + "".join(cell.ljust(width) + GAP for cell, width in zip(cells, widths, strict=True))
        first, *others = textwrap.wrap(last, max(WIDTH - start, MIN_WRAPPED), break_on_hyphens=False) or [""]
        yield (line + first).rstrip()
        yield from (" " * start + other for other in others)
    if len(part.rows) > len(rows):
        yield f"{INDENT}{len(part.rows) - len(rows)} more rows are in study.md and study.json."


def markdown_lines(part: Part, index: int) -> Iterator[str]:
    yield f"{'##' if index else '#'} {_markdown(part.title)}"
    for sentence in part.sentences:
        yield from ("", _markdown(sentence))
    if part.rows:
        yield from ("", _row(part.titles), _row(["---"] * len(part.titles)))
        yield from map(_row, part.rows)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_markdown, cells))} |"


def _markdown(text: str) -> str:
    """Return a text whose characters have no other meaning in a table in Markdown."""
    for character in "\\|*<`":
        text = text.replace(character, f"\\{character}")
    return escape(text.replace("\n", " "))
