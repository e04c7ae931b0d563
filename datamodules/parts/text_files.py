"""Texts and labels from CSV, TSV and JSON Lines files, or from a data set of the Hugging Face hub.

A row that cannot be used is an error that names its line: a row that was passed over in silence would be missed by nobody.
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

from datamodules.parts.download import reason
from engine.contracts import DataError
from engine.hub import is_hub_reachable

SUFFIXES = (".csv", ".tsv", ".jsonl")
LONGEST_FIELD = 1 << 27  # characters; Python's own limit is shorter than a book


@dataclass
class LabelledTexts:
    """Rows of one source.

    Attributes:
        source: As the user would name it.
        places: Where each row is: ``FILE:LINE``.
        texts: The texts, or the first ones of pairs.
        seconds: The second ones of pairs; empty for single texts.
        labels: As written.
    """

    source: str
    places: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seconds: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Columns:
    """The names of the columns; `second` is null for single texts."""

    text: str
    second: str | None
    label: str


def read_file(key: str, path: Path, columns: Columns) -> LabelledTexts:
    """All rows of a UTF-8 file; its suffix tells the format.

    CSV may quote fields (RFC 4180); a TSV never does: a quotation mark is a character like any other.

    Args:
        key: Of the config, that names the file.
        path: A .csv, .tsv or .jsonl file.
        columns: Which columns are wanted; others may be there.

    Raises:
        DataError: with file and line.
    """
    if path.suffix.lower() not in SUFFIXES:
        kinds = ".csv, .tsv or .jsonl (one object a line)"
        raise DataError(f"{key}: {path} is not read; give a file of {kinds}, or null to cut it from data.train")
    rows = LabelledTexts(str(path))
    content = _content(key, path)
    if not content.strip():
        raise DataError(f"{key}: {path} is empty")
    records = _json_lines(path, content) if path.suffix.lower() == ".jsonl" else _table(path, content)
    for place, record in records:
        _add(rows, place, record, columns)
    if not len(rows):
        raise DataError(f"{key}: {path} has a header and no rows")
    return rows


def read_hub(
    name: str, subset: str | None, revision: str | None, key: str, split: str, columns: Columns
) -> LabelledTexts:
    """All rows of one split of a data set of the hub; a label that is a number gets its name there.

    Args:
        name: Of the data set, as in ``stanfordnlp/sst2``.
        subset: Of it, where it has several.
        revision: Commit, tag or branch; null for the newest.
        key: Of the config, that names the split.
        split: As in ``train``.
        columns: Which columns are wanted.

    Raises:
        DataError: if `datasets` is not installed, the hub cannot be reached, or a row is not usable.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            "data.dataset: needs the package datasets; run: pip install -e '.[bert]' -c constraints.txt"
        ) from None
    answers = is_hub_reachable()
    datasets.config.HF_HUB_OFFLINE = not answers  # it has a copy of the switch
    try:
        table = datasets.load_dataset(name, subset, split=split, revision=revision)
        wanted = [one for one in (columns.text, columns.second, columns.label) if one in table.column_names]
        table = table.select_columns(wanted or table.column_names)  # others may need a package to be decoded
    except Exception as error:  # the library raises whatever its network, file and parser layers do
        why = reason(error) if answers else "the hub does not answer"
        raise DataError(
            f"data.dataset: {name} (split {split}) cannot be loaded ({why}); check the name and"
            f" the network, or set data.dataset=null and {key}=FILE with {', '.join(SUFFIXES)}"
        ) from None
    label = table.features.get(columns.label)
    rows = LabelledTexts(f"{name} ({split})")
    for number, record in enumerate(table, 1):
        if isinstance(label, datasets.ClassLabel) and isinstance(code := record[columns.label], int):
            record[columns.label] = label.names[code] if code >= 0 else None
        _add(rows, f"{rows.source} row {number}", record, columns)
    if not len(rows):
        raise DataError(f"{key}: {rows.source} has no rows")
    return rows


def _content(key: str, path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{key}: {path} does not exist; give your own {', '.join(SUFFIXES)} file") from None
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror})") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: is not UTF-8 text (byte {error.start}); save the file as UTF-8") from None


def _table(path: Path, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV or TSV, by the names of its header."""
    tabs = path.suffix.lower() == ".tsv"
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(
        io.StringIO(content, newline=""),  # its lines end where a file's do, not at every character like U+2028
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] | None = None
    first = 1
    try:
        for values in reader:
            line, first = first, reader.line_num + 1
            if len(values) <= 1 and not "".join(values).strip():
                continue  # an empty line
            if header is None:
                header = [name.strip() for name in values]
                if twice := sorted({name for name in header if header.count(name) > 1}):
                    raise DataError(f"{path}:{line}: the header has {twice[0]!r} twice")
                continue
            if len(values) != len(header):
                raise DataError(f"{path}:{line}: {len(values)} columns; the header has {len(header)}")
            yield f"{path}:{line}", dict(zip(header, values, strict=True))
    except csv.Error as error:
        hint = "; a quotation mark that opens a field must be closed" if not tabs else ""
        raise DataError(f"{path}:{first}: cannot be read ({error}){hint}") from None


def _json_lines(path: Path, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: is not JSON ({error}); one object a line is read") from None
        if not isinstance(record, dict):
            raise DataError(f'{path}:{line}: is not an object, as in {{"text": ..., "label": ...}}')
        yield f"{path}:{line}", record


def _add(rows: LabelledTexts, place: str, record: dict[str, Any], columns: Columns) -> None:
    """Append one row.

    Raises:
        DataError: if it lacks a column, a text or a label.
    """
    wanted = {"text_column": columns.text, "text_pair_column": columns.second, "label_column": columns.label}
    for key, name in wanted.items():
        if name is not None and name not in record:
            close = difflib.get_close_matches(name, record, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(map(str, record))}"
            if len(record) == 1 and re.search("[,;\t]", next(iter(record))):
                hint = f"its header is one column, {next(iter(record))!r}; .csv is split at commas, .tsv at tabs"
            raise DataError(f"data.{key}: {place} has no column {name!r}; {hint}")
    for name in (columns.text, columns.second):
        if name is None:
            continue
        if record[name] is None or not str(record[name]).strip():
            raise DataError(f"{place}: no text in column {name!r}")
        if not isinstance(record[name], str):
            raise DataError(f"{place}: {record[name]!r} in column {name!r} is no text; put it in quotes")
    label = record[columns.label]
    if label is None or not str(label).strip():
        raise DataError(f"{place}: no label in column {columns.label!r}")
    if not isinstance(label, str | int):
        raise DataError(f"{place}: {label!r} in column {columns.label!r} is no label; write a word or a whole number")
    for value in (record[columns.text], record[columns.second or columns.text], str(label)):
        if any("\ud800" <= character <= "\udfff" for character in value):  # JSON can write one half of a character
            raise DataError(f"{place}: holds half of a surrogate pair; write the whole character")
    rows.places.append(place)
    rows.texts.append(record[columns.text])
    if columns.second is not None:
        rows.seconds.append(record[columns.second])
    rows.labels.append(str(label).strip())
