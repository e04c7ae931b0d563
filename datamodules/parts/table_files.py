"""Reads tables from CSV, TSV and Parquet files with pyarrow.

Separator, header and types of columns are detected. A type comes from all values of a column in the training part, not from
the first rows.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from datamodules.parts.labels import MISSING, without_missing
from engine.contracts import DataError, listed
from engine.terminal import count_of

if TYPE_CHECKING:
    import pyarrow

PARQUET, TEXT = (".parquet", ".pq"), (".csv", ".tsv", ".txt", ".data")
SEPARATORS = ",;\t|"
OTHER = (
    ".json",
    ".jsonl",
    ".xls",
    ".xlsx",
    ".ods",
    ".gz",
    ".zip",
    ".bz2",
    ".xz",
    ".feather",
    ".npz",
    ".npy",
    ".pkl",
    ".db",
)
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
HEAD_BYTES = 1 << 18  # that are read to detect separator and header
BLOCK_BYTES = 1 << 24  # of a text file in memory at a time; a row cannot be longer


def read_table(key: str, path: Path, drop: Sequence[str] = ()) -> "pyarrow.Table":
    """Read a table into memory. All columns are texts.

    Args:
        key: Config key of the file, for errors.
        path: The file.
        drop: Columns whose values are not needed. They may have any type.

    Raises:
        DataError: if the file is missing or is not a table.
    """
    import pyarrow as pa

    names, batches = open_table(key, path, drop)
    return pa.Table.from_batches(_with_progress(path, batches), pa.schema([(name, pa.string()) for name in names]))


def copy_table(key: str, path: Path, target: Path, drop: Sequence[str] = ()) -> None:
    """Copy a table to an Arrow file, which can be memory-mapped. Arguments and errors are those of `read_table`."""
    import pyarrow as pa

    names, batches = open_table(key, path, drop)
    schema = pa.schema([(name, pa.string()) for name in names])
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in _with_progress(path, batches):
            writer.write_batch(batch)


def _with_progress(path: Path, batches: "Iterator[pyarrow.RecordBatch]") -> "Iterator[pyarrow.RecordBatch]":
    """Yield all batches, and show the number of rows in a terminal."""
    with tqdm(desc=f"reading {path.name}", unit=" rows", unit_scale=True, disable=None, leave=False) as progress:
        for batch in batches:
            yield batch
            progress.update(batch.num_rows)


def map_table(path: Path) -> "pyarrow.Table":
    """Memory-map an Arrow file of `copy_table`."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def estimated_bytes(path: Path) -> int:
    """Return the approximate memory in bytes that a table needs; 0 if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() not in PARQUET:
            return 3 * path.stat().st_size
        metadata = pq.read_metadata(path)
        return 24 * metadata.num_rows * metadata.num_columns
    except (OSError, pa.ArrowInvalid):
        return 0


def take_table(values: Any) -> "tuple[list[str], Iterator[pyarrow.RecordBatch]]":
    """Return the names and rows of a table in memory, as `open_table` does.

    Args:
        values: A list of dictionaries, a dictionary of columns, a DataFrame, or a table of pyarrow.

    Raises:
        DataError: if it is none of them.
    """
    import pyarrow as pa

    try:
        if isinstance(values, list | tuple):
            names = list(dict.fromkeys(name for row in values for name in row))
            values = {name: [row.get(name) for row in values] for name in names}
        if isinstance(values, dict):
            columns = {str(name): _as_texts(list(column)) for name, column in values.items()}
            table = pa.table(columns)
        else:
            table = pa.table(values)
            table = pa.table({name: table[name].cast(pa.string()) for name in table.column_names})
    except (pa.ArrowException, TypeError, AttributeError, ValueError) as error:
        hint = "give a list of dictionaries, a dictionary of columns, or a DataFrame"
        raise DataError(f"INPUT: the values are not a table ({str(error)[:100]}); {hint}") from None
    return table.column_names, iter(table.to_batches())


def _as_texts(values: list[Any]) -> "pyarrow.Array":
    """Return values of Python as text. A column may have numbers and texts."""
    import pyarrow as pa

    return pa.array([None if value is None else _as_text(value) for value in values], pa.string())


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def estimated_rows(path: Path) -> int | None:
    """Return about how many rows a table has; None if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() in PARQUET:
            return int(pq.read_metadata(path).num_rows)
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        return round(path.stat().st_size * head.count(b"\n") / len(head)) if head else None
    except (OSError, pa.ArrowInvalid):
        return None


def get_column(key: str, path: Path, table: "pyarrow.Table", name: str) -> "pyarrow.ChunkedArray":
    """Return a column with surrounding spaces removed and missing values replaced by null.

    Raises:
        DataError: if there is no such column. It begins with `key`.
    """
    if name not in table.column_names:
        raise DataError(f"{key}: {path} has no column {name!r}; {close_name(name, table.column_names)}")
    return without_missing(table[name])


def open_table(
    key: str, path: Path, drop: Sequence[str] = (), ragged: dict[int, str] | None = None
) -> "tuple[list[str], Iterator[pyarrow.RecordBatch]]":
    """Open a table whose rows are read in batches. The other arguments and errors are those of `read_table`.

    Args:
        key: Config key of the file, for errors.
        path: The file.
        drop: Columns whose values are not needed.
        ragged: Rows of a text file with too many or too few columns are left out and added here: their index, counted from
            0, and what is wrong. None to raise an error instead.

    Returns:
        The names of the columns, and an iterator over the batches. All columns are texts.
    """
    import pyarrow as pa

    expected = listed([*TEXT[:2], PARQUET[0]])
    if path.suffix.lower() in OTHER:
        raise DataError(f"{key}: {path} is not a table that can be read; convert it to a {expected} file")
    if path.is_dir():
        raise DataError(f"{key}: {path} is a folder; give a {expected} file")
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise DataError(f"{key}: {path} is not a regular file")
    if not path.exists():
        raise DataError(f"{key}: {path} does not exist; give a {expected} file")
    try:
        names, batches = (
            _open_parquet(key, path, drop) if path.suffix.lower() in PARQUET else _open_text(key, path, ragged)
        )
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{key}: {path} has two columns with the name {repeated[0]!r}; rename one of them")
        first = next((batch for batch in batches if batch.num_rows), None)
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror or error})") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{key}: {path} cannot be read: {_reason(error)}") from None
    if first is None:
        raise DataError(f"{key}: {path} has no rows")
    return names, _named_errors(key, path, first, batches)


def _named_errors(
    key: str, path: Path, first: "pyarrow.RecordBatch", others: "Iterator[pyarrow.RecordBatch]"
) -> "Iterator[pyarrow.RecordBatch]":
    """Yield all batches. An error names the file."""
    import pyarrow as pa

    yield first
    try:
        yield from others
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror or error})") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{key}: {path} cannot be read: {_reason(error)}") from None


def _open_parquet(key: str, path: Path, drop: Sequence[str]) -> "tuple[list[str], Iterator[pyarrow.RecordBatch]]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = file.schema_arrow.names

    def batches() -> "Iterator[pyarrow.RecordBatch]":
        for batch in file.iter_batches():
            columns = []
            for name, column in zip(names, batch.columns, strict=True):
                try:
                    columns.append(pa.nulls(len(column), pa.string()) if name in drop else column.cast(pa.string()))
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                    hint = "drop it with data.drop"
                    raise DataError(f"{key}: {path}: column {name!r} has the type {column.type}; {hint}") from None
            yield pa.record_batch(columns, names=names)

    return names, batches()


def _open_text(
    key: str, path: Path, ragged: dict[int, str] | None
) -> "tuple[list[str], Iterator[pyarrow.RecordBatch]]":
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, open_csv

    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if b"\0" in head:
        raise DataError(f"{key}: {path} is not a text file; give a CSV or TSV file in UTF-8, or a .parquet file")
    text = head.decode("utf-8-sig", errors="replace")
    lines = io.StringIO(text, newline="").readlines()
    lines = lines[: max(1, len(lines) - (len(head) == HEAD_BYTES))]  # the last line may be cut off
    if not text.strip():
        raise DataError(f"{key}: {path} is empty")
    separator = find_separator([line for line in lines if line.strip()][:200])
    reader = csv.reader(lines, delimiter=separator)
    first = next(row for row in reader if any(name.strip() for name in row))
    header_lines = reader.line_num  # with empty lines above the header, and line breaks in quoted names
    rows = [row for row in islice(reader, 200) if row]
    names = [" ".join(name.split()) for name in first]
    has_header = is_header(names, rows)
    names = [name if has_header and name else f"column_{number}" for number, name in enumerate(names, 1)]
    if len(set(names)) < len(names):
        return names, iter(())  # an error, see `open_table`
    skipped = header_lines if has_header else 0

    def leave_out(row: Any) -> str:
        if ragged is None:
            return "error"
        ragged[row.number - skipped - 1] = f"{count_of(row.actual_columns, 'column')}; the file has {len(names)}"
        return "skip"

    # rows have numbers only if they are read by a single thread
    reading = ReadOptions(column_names=names, skip_rows=skipped, block_size=BLOCK_BYTES, use_threads=ragged is None)
    table = open_csv(
        path,
        reading,
        ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=leave_out),
        ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )
    if separator != ";":
        return names, iter(table)

    def with_decimal_points() -> "Iterator[pyarrow.RecordBatch]":  # such files usually have decimal commas
        for batch in table:
            columns = [pc.replace_substring_regex(c, r"^\s*([+-]?\d+),(\d+)\s*$", r"\1.\2") for c in batch.columns]
            yield pa.record_batch(columns, names=names)

    return names, with_decimal_points()


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
    """Return whether the first row is a header.

    A row that contains a number or a missing value is not a header. A row of distinct, non-empty texts is a header. If a
    text is empty, such as the name of a pandas index, or occurs twice, the row is a header in two cases: one of its texts
    is above a column of numbers, or none of its texts occurs again in its column.
    """
    if not rows:
        return True
    if not any(first) or any(is_number(name) or (name and name in MISSING) for name in first):
        return False
    if all(first) and len(set(first)) == len(first):
        return True
    columns = {i: {row[i].strip() for row in rows if i < len(row)} for i, name in enumerate(first) if name}
    is_above_numbers = any(all(is_number(text) for text in column - {*MISSING}) for column in columns.values())
    return is_above_numbers or not any(first[i] in column for i, column in columns.items())


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def to_numbers(column: "pyarrow.ChunkedArray", others_are_missing: bool = False) -> "pyarrow.ChunkedArray | None":
    """Return a column of texts as numbers, with null for infinite numbers.

    Args:
        column: Texts, or null for missing values.
        others_are_missing: Whether texts that are not numbers become null. If false, the result is None if any text is not
            a number.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers = column.cast(pa.float64())
    except pa.ArrowInvalid:
        if not others_are_missing:
            return None
        column = pc.if_else(pc.match_substring_regex(column, NUMBER), column, pa.scalar(None, pa.string()))
        numbers = column.cast(pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


def close_name(name: str, names: Any) -> str:
    """Return a hint for a column that does not exist."""
    from difflib import get_close_matches

    close = get_close_matches(name, names, 1)
    return f"did you mean {close[0]}?" if close else f"it has {listed(list(names), 20)}"


def _reason(error: Exception) -> str:
    """Translate an error message of pyarrow."""
    text = str(error).splitlines()[0]
    if "invalid UTF8" in text or "UTF-8" in text:
        return "it is not UTF-8 text; save it as UTF-8"
    if match := re.search(r"Expected (\d+) columns, got (\d+): (.*)", str(error)):
        return f"a row has {match[2]} columns, and the first row has {match[1]}: {match[3][:60]}"
    return text[:150]
