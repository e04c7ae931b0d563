"""Reads tables from CSV, TSV and Parquet files with pyarrow.

Separator, header and kinds of columns are found by themselves. The kinds come from the values of the whole training file, so
they do not depend on the block size of a reader.
"""

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.contracts import DataError, listed

if TYPE_CHECKING:
    import pyarrow

PARQUET, TEXT = (".parquet", ".pq"), (".csv", ".tsv", ".txt", ".data")
SEPARATORS = ",;\t|"
MISSING = ("", "NA", "N/A", "na", "n/a", "NaN", "nan", "NULL", "null", "?")
HEAD_BYTES = 1 << 18  # of a file, to find separator and header


def read_table(key: str, path: Path) -> "pyarrow.Table":
    """Read a table whose columns are texts without surrounding spaces, with null for missing values.

    Args:
        key: Config key of the file, for errors.
        path: The file.

    Raises:
        DataError: if the file is missing or is not a table.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if path.is_dir():
        raise DataError(f"{key}: {path} is a folder; give a {listed([*TEXT[:2], PARQUET[0]])} file")
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise DataError(f"{key}: {path} is not a regular file")
    if not path.exists():
        raise DataError(f"{key}: {path} does not exist; give a {listed([*TEXT[:2], PARQUET[0]])} file")
    try:
        table = _read_parquet(path) if path.suffix.lower() in PARQUET else _read_text(key, path)
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror or error})") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{key}: {path} cannot be read: {_reason(error)}") from None
    names = table.column_names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{key}: {path} has two columns with the name {repeated[0]!r}; rename one of them")
    if not table.num_rows:
        raise DataError(f"{key}: {path} has no rows")
    missing = pa.array(MISSING, pa.string())
    columns = []
    for column in table.columns:
        text = pc.utf8_trim_whitespace(column)
        columns.append(pc.if_else(pc.is_in(text, missing), pa.scalar(None, pa.string()), text))
    return pa.table(columns, names=names)


def _read_parquet(path: Path) -> "pyarrow.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns.append(column.cast(pa.string()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(f"{path}: column {name!r} has the type {column.type}; drop it with data.drop") from None
    return pa.table(columns, names=table.column_names)


def _read_text(key: str, path: Path) -> "pyarrow.Table":
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if b"\0" in head:
        raise DataError(f"{key}: {path} is not a text file; give a CSV or TSV file in UTF-8, or a .parquet file")
    lines = head.decode("utf-8-sig", errors="replace").splitlines()
    lines = [line for line in lines[: max(1, len(lines) - (len(head) == HEAD_BYTES))] if line.strip()][:200]
    if not lines:
        raise DataError(f"{key}: {path} is empty")
    separator = find_separator(lines)
    first, *rows = csv.reader(lines, delimiter=separator)
    names = [name.strip() for name in first]
    has_header = is_header(names, rows)
    if not has_header:
        names = [f"column_{number}" for number in range(1, len(names) + 1)]
    table = read_csv(
        path,
        ReadOptions(column_names=names, skip_rows=int(has_header)),
        ParseOptions(delimiter=separator, newlines_in_values=True),
        ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )
    if separator != ";":
        return table
    # such files usually have decimal commas
    columns = [pc.replace_substring_regex(column, r"^([+-]?\d+),(\d+)$", r"\1.\2") for column in table.columns]
    return pa.table(columns, names=names)


def find_separator(lines: list[str]) -> str:
    """Return the separator with which most lines have the same number of columns, which must be at least two."""
    best = (0.0, 0, ",")
    for separator in SEPARATORS:
        try:
            counts = [len(row) for row in csv.reader(lines, delimiter=separator)]
        except csv.Error:
            continue
        if counts and counts[0] > 1:
            best = max(best, (counts.count(counts[0]) / len(counts), counts[0], separator))
    return best[2]


def is_header(first: list[str], rows: list[list[str]]) -> bool:
    """Return whether the first row has names: all are different, and none is a number or missing."""
    if not rows:
        return True
    are_names = not any(_is_number(name) or name in MISSING for name in first)
    return are_names and len(set(first)) == len(first)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def to_numbers(column: "pyarrow.ChunkedArray") -> "pyarrow.ChunkedArray | None":
    """Return a column of texts as numbers; None if a value is not a finite number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers = column.cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    return numbers if pc.all(pc.is_finite(numbers)).as_py() is not False else None


def close_name(name: str, names: Any) -> str:
    """Return a hint for a column that does not exist."""
    from difflib import get_close_matches

    close = get_close_matches(name, names, 1)
    return f"did you mean {close[0]}?" if close else f"it has {listed(list(names), 20)}"


def _reason(error: Exception) -> str:
    """Return what pyarrow says about a broken file, in our words."""
    text = str(error).splitlines()[0]
    if "invalid UTF8" in text or "UTF-8" in text:
        return "it is not UTF-8 text; save it as UTF-8"
    if match := re.search(r"Expected (\d+) columns, got (\d+): (.*)", str(error)):
        return f"a row has {match[2]} columns, and the first row has {match[1]}: {match[3][:60]}"
    return text[:150]
