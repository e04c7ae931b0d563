"""Read texts and labels from CSV, TSV and JSON Lines files, or from a dataset of the Hugging Face hub.

An invalid row raises an error that names its line. Rows are never skipped silently.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.contracts import DataError
from engine.hub import describe_hub_error, is_hub_reachable

SUFFIXES = (".csv", ".tsv", ".jsonl")
MAX_CHARACTERS = 1 << 27  # per field; the default of Python's csv module is 131,072


@dataclass
class LabelledTexts:
    """The rows of a file or of a split of a dataset.

    Attributes:
        source: Name of the file or split, for messages.
        places: ``FILE:LINE`` of each row.
        texts: Texts, or first texts of pairs.
        second_texts: Second texts of pairs; empty for single texts.
        labels: Labels as they are written.
    """

    source: str
    places: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    second_texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Columns:
    """The names of the columns. `second_text` is None for single texts."""

    text: str
    second_text: str | None
    label: str


def read_file(key: str, path: Path, columns: Columns) -> LabelledTexts:
    """Read all rows of a UTF-8 file. The suffix determines the format.

    Fields of CSV may be quoted (RFC 4180). In TSV a quotation mark is an ordinary character.

    Args:
        key: Config key that names the file.
        path: A .csv, .tsv or .jsonl file.
        columns: Columns to read. Other columns are ignored.

    Raises:
        DataError: if the file cannot be read or a row is invalid. The message names the file and the line.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = "give a .csv, .tsv or .jsonl file (one object per line), or null to split it off data.train"
        raise DataError(f"{key}: the format of {path} is unknown; {hint}")
    rows = LabelledTexts(str(path))
    content = _read_utf8(key, path)
    if not content.strip():
        raise DataError(f"{key}: {path} is empty")
    for place, record in _read_json_lines(path, content) if suffix == ".jsonl" else _read_table(path, content):
        _append(rows, place, record, columns)
    if not len(rows):
        raise DataError(f"{key}: {path} has a header and no rows")
    return rows


def read_hub(
    name: str, subset: str | None, revision: str | None, key: str, split: str, columns: Columns
) -> LabelledTexts:
    """Read all rows of a split of a dataset on the hub. Class numbers are replaced by class names.

    Args:
        name: Name of the dataset, such as ``stanfordnlp/sst2``.
        subset: Name of the subset, if the dataset has several.
        revision: Commit, tag or branch; None for the newest.
        key: Config key that names the split.
        split: Name of the split, such as ``train``.
        columns: Columns to read.

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
    label_type = table.features.get(columns.label)
    rows = LabelledTexts(f"{name} ({split})")
    for number, record in enumerate(table, 1):
        if isinstance(label_type, datasets.ClassLabel) and isinstance(label := record[columns.label], int):
            record[columns.label] = label_type.names[label] if label >= 0 else None
        _append(rows, f"{rows.source} row {number}", record, columns)
    if not len(rows):
        raise DataError(f"{key}: {rows.source} has no rows")
    return rows


def _read_utf8(key: str, path: Path) -> str:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe or a device might never end
            raise DataError(f"{key}: {path} is not a regular file")
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{key}: {path} does not exist; give a {', '.join(SUFFIXES)} file") from None
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror})") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: is not UTF-8 text (byte {error.start}); save the file as UTF-8") from None


def _read_table(path: Path, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the fields of each row of a CSV or TSV file."""
    is_tsv = path.suffix.lower() == ".tsv"
    csv.field_size_limit(MAX_CHARACTERS)
    reader = csv.reader(
        io.StringIO(content, newline=""),  # characters such as U+2028 do not end a line
        delimiter="\t" if is_tsv else ",",
        quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] | None = None
    next_line = 1
    try:
        for values in reader:
            line, next_line = next_line, reader.line_num + 1
            if len(values) <= 1 and not "".join(values).strip():
                continue  # an empty line
            if header is None:
                header = [name.strip() for name in values]
                if repeated := sorted({name for name in header if header.count(name) > 1}):
                    raise DataError(f"{path}:{line}: the header has {repeated[0]!r} twice")
                continue
            if len(values) != len(header):
                raise DataError(f"{path}:{line}: {len(values)} columns; the header has {len(header)}")
            yield f"{path}:{line}", dict(zip(header, values, strict=True))
    except csv.Error as error:
        hint = "" if is_tsv else "; a quotation mark that opens a field must be closed"
        raise DataError(f"{path}:{next_line}: cannot be read ({error}){hint}") from None


def _read_json_lines(path: Path, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the fields of each row of a JSON Lines file."""
    for line, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: is not JSON ({error}); write one object per line") from None
        if not isinstance(record, dict):
            raise DataError(f'{path}:{line}: is not an object such as {{"text": ..., "label": ...}}')
        yield f"{path}:{line}", record


def _append(rows: LabelledTexts, place: str, record: dict[str, Any], columns: Columns) -> None:
    """Check a row and append it."""
    keys = {"text_column": columns.text, "text_pair_column": columns.second_text, "label_column": columns.label}
    for key, name in keys.items():
        if name is not None and name not in record:
            close = difflib.get_close_matches(name, record, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(map(str, record))}"
            if len(record) == 1 and re.search("[,;\t]", next(iter(record))):
                hint = f"its header has one column, {next(iter(record))!r}; use commas in .csv and tabs in .tsv"
            raise DataError(f"data.{key}: {place} has no column {name!r}; {hint}")
    for name in (columns.text, columns.second_text):
        if name is None:
            continue
        if record[name] is None or not str(record[name]).strip():
            raise DataError(f"{place}: no text in column {name!r}")
        if not isinstance(record[name], str):
            raise DataError(f"{place}: {record[name]!r} in column {name!r} is not a text; put it in quotes")
    label = record[columns.label]
    if label is None or not str(label).strip():
        raise DataError(f"{place}: no label in column {columns.label!r}")
    if not isinstance(label, str | int):
        hint = "write a word or a whole number"
        raise DataError(f"{place}: {label!r} in column {columns.label!r} is not a label; {hint}")
    for value in (record[columns.text], record[columns.second_text or columns.text], str(label)):
        if any("\ud800" <= character <= "\udfff" for character in value):  # possible in JSON
            raise DataError(f"{place}: has an unpaired surrogate; write the whole character")
    rows.places.append(place)
    rows.texts.append(record[columns.text])
    if columns.second_text is not None:
        rows.second_texts.append(record[columns.second_text])
    rows.labels.append(str(label).strip())
