"""Read texts and labels from CSV, TSV, JSON Lines and Parquet files, or from a dataset of the Hugging Face hub.

An invalid row raises an error that names its line. Rows are never skipped silently. Rows are read one after another and
copied to an Arrow file, which is memory-mapped, so texts may be larger than memory.
"""

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from engine.contracts import DataError
from engine.hub import describe_hub_error, is_hub_reachable

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_CHARACTERS = 1 << 27  # per field; the default of Python's csv module is 131,072
CHUNK = 10_000  # rows in memory at a time


class Row(NamedTuple):
    """A row of a file or of a split of a dataset.

    Attributes:
        number: Line in a text file, or number of the row, both counted from 1.
        text: Text, or first text of a pair.
        second_text: Second text of a pair; None for a single text.
        label: Label as it is written.
    """

    number: int
    text: str
    second_text: str | None
    label: str


@dataclass(frozen=True)
class Columns:
    """The names of the columns. `second_text` is None for single texts, `label` is None for texts without labels."""

    text: str
    second_text: str | None
    label: str | None


@dataclass(frozen=True)
class LabelledTexts:
    """All rows of a source, in a memory-mapped Arrow file.

    Attributes:
        source: Name of the file, or of the split of a dataset, for messages.
        table: Columns with the fields of `Row`.
        digest: Hash of the rows.
    """

    source: str
    table: "pyarrow.Table"
    digest: str

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def are_pairs(self) -> bool:
        return not self.table["second_text"].null_count

    def place(self, row: int) -> str:
        """Return file and line of a row, counted from 0."""
        return place_of(self.source, self.table["number"][row].as_py())

    def chunks(self, chosen: np.ndarray | None = None) -> Iterator[list[tuple[str, str | None]]]:
        """Yield text and second text of all rows, or of the rows where `chosen` (N,) is true, in lists."""
        for start in range(0, len(self), CHUNK):
            part = self.table.slice(start, CHUNK)
            if chosen is not None:
                part = part.filter(chosen[start : start + CHUNK])
            yield list(zip(part["text"].to_pylist(), part["second_text"].to_pylist(), strict=True))


def place_of(source: str, number: int) -> str:
    """Return ``FILE:LINE`` for a text file, and the number of the row for other sources."""
    return f"{source}:{number}" if source.lower().endswith(SUFFIXES[:3]) else f"{source} row {number}"


def copy_rows(rows: Iterator[Row], file: Path) -> None:
    """Copy rows to an Arrow file."""
    import pyarrow as pa

    types = [("number", pa.int64()), ("text", pa.string()), ("second_text", pa.string()), ("label", pa.string())]
    schema = pa.schema(types)
    progress = tqdm(desc="reading", unit=" texts", unit_scale=True, disable=None, leave=False)
    with progress, pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while chunk := list(islice(rows, CHUNK)):
            columns = [
                pa.array(values, kind) for values, (_, kind) in zip(zip(*chunk, strict=True), types, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            progress.update(len(chunk))


def map_rows(source: str, file: Path, digest: str) -> LabelledTexts:
    """Memory-map an Arrow file of `copy_rows`."""
    import pyarrow as pa

    return LabelledTexts(source, pa.ipc.open_file(pa.memory_map(str(file))).read_all(), digest)


def check_file(key: str, path: Path) -> None:
    """Raise a `DataError` if a path is not a readable file in a supported format. `key` is its config key."""
    if path.suffix.lower() not in SUFFIXES:
        hint = f"give a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"
        raise DataError(f"{key}: the format of {path} is unknown; {hint}")
    if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe or a device might never end
        raise DataError(f"{key}: {path} is not a regular file")
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise DataError(f"{key}: {path} does not exist; give a {', '.join(SUFFIXES)} file") from None
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror})") from None


def read_file(
    key: str, path: Path, columns: Columns, on_broken: Callable[[int, DataError], Row] | None = None
) -> Iterator[Row]:
    """Yield all rows of a file. The suffix determines the format. Text files must be in UTF-8.

    Fields of CSV may be quoted (RFC 4180). In TSV a quotation mark is an ordinary character.

    Args:
        key: Config key that names the file.
        path: A .csv, .tsv, .jsonl (one object per line) or .parquet file.
        columns: Columns to read. Other columns are ignored.
        on_broken: Function that takes the number and the error of an invalid row, and returns a row to use instead; None to
            raise the error.

    Raises:
        DataError: if the file cannot be read or a row is invalid. The message names the file and the line.
    """
    check_file(key, path)
    suffix, is_empty, has_rows = path.suffix.lower(), True, False
    read = {".jsonl": _read_json_lines, ".parquet": _read_parquet}.get(suffix, _read_table)
    try:
        for number, record in read(path):
            is_empty = False
            if record is not None:
                if not has_rows and suffix != ".jsonl":
                    _check_columns(place_of(str(path), number), record, columns)  # the same in all rows
                try:
                    row = _checked(str(path), number, record, columns)
                except DataError as error:
                    if on_broken is None:
                        raise
                    row = on_broken(number, error)
                yield row
                has_rows = True
    except UnicodeDecodeError:
        line, byte = _undecodable(path)
        raise DataError(f"{path}:{line}: is not UTF-8 text (byte {byte}); save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror})") from None
    if is_empty or not has_rows:
        raise DataError(f"{key}: {path} is empty" if is_empty else f"{key}: {path} has a header and no rows")


def read_lines(key: str, path: Path) -> Iterator[Row]:
    """Yield the non-empty lines of a text file.

    Raises:
        DataError: if the file cannot be read. The message begins with `key`.
    """
    is_empty = True
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if text := line.strip():
                    is_empty = False
                    yield Row(number, text, None, "")
    except UnicodeDecodeError:
        line_number, byte = _undecodable(path)
        raise DataError(f"{key}: {path}:{line_number}: is not UTF-8 text (byte {byte}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror})") from None
    if is_empty:
        raise DataError(f"{key}: {path} is empty")


def read_hub(
    name: str, subset: str | None, revision: str | None, key: str, split: str, columns: Columns
) -> tuple[list[str], Iterator[Row]]:
    """Open a split of a dataset on the hub. Class numbers are replaced by class names.

    Args:
        name: Name of the dataset, such as ``stanfordnlp/sst2``.
        subset: Name of the subset, if the dataset has several.
        revision: Commit, tag or branch; None for the newest.
        key: Config key that names the split.
        split: Name of the split, such as ``train``.
        columns: Columns to read.

    Returns:
        The local files of the split, and an iterator over its rows.

    Raises:
        DataError: if `datasets` is not installed, the dataset cannot be loaded, or a row is invalid.
    """
    try:
        import datasets
    except ImportError:
        hint = "run: pip install -e '.[bert]' -c constraints.txt"
        raise DataError(f"data.dataset: needs the package datasets; {hint}") from None
    datasets.config.HF_HUB_OFFLINE = not is_hub_reachable()  # a copy of the setting of huggingface_hub
    try:
        table = datasets.load_dataset(name, subset, split=split, revision=revision)
        names = [
            column for column in (columns.text, columns.second_text, columns.label) if column in table.column_names
        ]
        table = table.select_columns(names or table.column_names)  # other columns may need another package
    except Exception as error:  # including errors of network, file and parser libraries
        hint = f"check the name and the network, or set data.dataset=null and {key}=FILE with {', '.join(SUFFIXES)}"
        raise DataError(
            f"data.dataset: {name} (split {split}) cannot be loaded ({describe_hub_error(error)}); {hint}"
        ) from None
    if not len(table):
        raise DataError(f"{key}: {name} ({split}) has no rows")
    label_type = table.features.get(columns.label)

    def rows() -> Iterator[Row]:
        for number, record in enumerate(table, 1):
            if isinstance(label_type, datasets.ClassLabel) and isinstance(label := record[columns.label], int):
                record[columns.label] = label_type.names[label] if label >= 0 else None
            yield _checked(f"{name} ({split})", number, record, columns)

    return [file["filename"] for file in table.cache_files], rows()


def _undecodable(path: Path) -> tuple[int, int]:
    """Return the line and the index of the first byte that is not UTF-8."""
    start = 0
    with path.open("rb") as file:
        for line, content in enumerate(file, 1):
            try:
                content.decode()
            except UnicodeDecodeError as error:
                return line, start + error.start
            start += len(content)
    return 1, 0


def _read_table(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield the line and the fields of each row of a CSV or TSV file. For the header, the second value is None."""
    is_tsv = path.suffix.lower() == ".tsv"
    csv.field_size_limit(MAX_CHARACTERS)
    header: list[str] | None = None
    next_line = 1
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(
            file,
            delimiter="\t" if is_tsv else ",",
            quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
            strict=True,
        )
        try:
            for values in reader:
                line, next_line = next_line, reader.line_num + 1
                if len(values) <= 1 and not "".join(values).strip():
                    continue  # an empty line
                if header is None:
                    header = [name.strip() for name in values]
                    if repeated := sorted({name for name in header if header.count(name) > 1}):
                        raise DataError(f"{path}:{line}: the header has {repeated[0]!r} twice")
                    yield line, None
                    continue
                if len(values) != len(header):
                    raise DataError(f"{path}:{line}: {len(values)} columns; the header has {len(header)}")
                yield line, dict(zip(header, values, strict=True))
        except csv.Error as error:
            hint = "" if is_tsv else "; a quotation mark that opens a field must be closed"
            raise DataError(f"{path}:{next_line}: cannot be read ({error}){hint}") from None


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line and the fields of each row of a JSON Lines file."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{line}: is not JSON ({error}); write one object per line") from None
            if not isinstance(record, dict):
                raise DataError(f'{path}:{line}: is not an object such as {{"text": ..., "label": ...}}')
            yield line, record


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield the number and the fields of each row of a Parquet file. The first item is (0, None), for the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    yield number, None
    try:
        for batch in pq.ParquetFile(path).iter_batches(CHUNK):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0][:150]}") from None


def _check_columns(place: str, record: dict[str, Any], columns: Columns) -> None:
    """Raise a `DataError` if a row lacks a column."""
    keys = {"text_column": columns.text, "text_pair_column": columns.second_text, "target": columns.label}
    for key, name in keys.items():
        if name is not None and name not in record:
            close = difflib.get_close_matches(name, record, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(map(str, record))}"
            if len(record) == 1 and re.search("[,;\t]", next(iter(record))):
                hint = f"its header has one column, {next(iter(record))!r}; use commas in .csv and tabs in .tsv"
            raise DataError(f"data.{key}: {place} has no column {name!r}; {hint}")


def _checked(source: str, number: int, record: dict[str, Any], columns: Columns) -> Row:
    """Return a row, or raise a `DataError` if it is invalid."""
    place = place_of(source, number)
    _check_columns(place, record, columns)
    for name in (columns.text, columns.second_text):
        if name is None:
            continue
        if record[name] is None or not str(record[name]).strip():
            raise DataError(f"{place}: no text in column {name!r}")
        if not isinstance(record[name], str):
            raise DataError(f"{place}: {record[name]!r} in column {name!r} is not a text; put it in quotes")
    label = "" if columns.label is None else _checked_label(place, record[columns.label], columns.label)
    for value in (record[columns.text], record[columns.second_text or columns.text], label):
        if any("\ud800" <= character <= "\udfff" for character in value):  # possible in JSON
            raise DataError(f"{place}: has an unpaired surrogate; write the whole character")
    second_text = None if columns.second_text is None else record[columns.second_text]
    return Row(number, record[columns.text], second_text, label)


def _checked_label(place: str, label: Any, name: str) -> str:
    if label is None or not str(label).strip():
        raise DataError(f"{place}: no label in column {name!r}")
    if not isinstance(label, str | int):
        hint = "write a word or a whole number"
        raise DataError(f"{place}: {label!r} in column {name!r} is not a label; {hint}")
    return str(label)
