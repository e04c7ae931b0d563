"""Reads data for predictions: arrays, tables and pictures, in parts, so that it may be larger than memory."""

import io
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datamodules.parts.columns import Column, encode_rows
from datamodules.parts.labels import without_missing
from datamodules.parts.picture_files import SUFFIXES, Format, decode, picture_problem
from datamodules.parts.table_files import close_name, is_number
from engine.contracts import DataError, DataSpec, InputPart, NewInputs
from engine.threads import available_cores

if TYPE_CHECKING:
    import pyarrow

# n rows of a part, D columns, C channels, H height, W width

ARRAY_BYTES = 1 << 26  # of an array in a part
PICTURES = 256  # in a part
TABLE_ROWS = 16_384  # in a part, so that a slow model shows its progress
SMALL = 1 << 14  # bytes; threads would wait for each other longer than they decode such files


def read_array(path: Path, spec: DataSpec) -> NewInputs:
    """Memory-map the inputs (N, *input_shape) in a .npy file.

    Raises:
        DataError: if the file is not such an array.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"INPUT: {path} cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError):
        raise DataError(f"INPUT: {path} is not an array that numpy.save has written") from None
    return array_inputs(array, spec, str(path))


def array_inputs(array: np.ndarray, spec: DataSpec, title: str) -> NewInputs:
    """Return the rows of an array (N, *input_shape). `title` names it in errors."""
    if tuple(array.shape[1:]) != spec.input_shape:
        problem = f"has the shape {tuple(array.shape)}; the model takes (N, {', '.join(map(str, spec.input_shape))})"
        raise DataError(f"INPUT: {title} {problem}")
    if not len(array):
        raise DataError(f"INPUT: {title} has no rows")
    if array.dtype.kind not in "uifb":
        raise DataError(f"INPUT: {title} has values of type {array.dtype}; numbers are needed")
    size = max(1, ARRAY_BYTES // max(1, array[:1].nbytes))

    def parts() -> Iterator[InputPart]:
        for start in range(0, len(array), size):
            rows = array[start : start + size]
            kind = rows.dtype if rows.dtype == np.uint8 else np.float32
            inputs = torch.from_numpy(np.array(rows, kind))
            problems: dict[int, str] = {}
            if spec.categories is None and inputs.is_floating_point():
                finite = inputs.flatten(1).isfinite().all(1)
                problems = dict.fromkeys(torch.nonzero(~finite).flatten().tolist(), "a value is NaN or infinite")
            yield InputPart(range(start + 1, start + 1 + len(rows)), inputs, None, problems)

    return NewInputs(parts(), len(array))


def table_inputs(
    title: str,
    names: Sequence[str],
    batches: Iterable["pyarrow.RecordBatch"],
    columns: Sequence[Column],
    target: str | None,
    may_be_missing: bool,
    ragged: Mapping[int, str] | None = None,
    lenient: Container[str] = (),
) -> Iterator[InputPart]:
    """Encode the rows of a table. Columns may have any order, and other columns are ignored.

    Args:
        title: Name of the table, for errors.
        names: Names of its columns.
        batches: Its rows. All columns are texts.
        columns: Columns of the model.
        target: Column of labels to read; None for data without labels.
        may_be_missing: Whether the model takes missing values.
        ragged: Rows that `open_table` leaves out while it reads the batches, and what is wrong with them.
        lenient: Columns of numbers in which other texts are missing values, as in training. In other columns of numbers,
            such a text is a problem of its row.

    Raises:
        DataError: if a column is missing.
    """
    import pyarrow as pa

    wanted = list(dict.fromkeys([*(column.name for column in columns), *([target] if target else [])]))
    for name in wanted:
        if name not in names:
            needed = "" if name == target else ", which the model needs"
            raise DataError(f"INPUT: {title} has no column {name!r}{needed}; {close_name(name, names)}")

    def parts() -> Iterator[InputPart]:
        start = 0
        pieces = (batch.slice(row, TABLE_ROWS) for batch in batches for row in range(0, len(batch), TABLE_ROWS))
        for batch in pieces:
            table = pa.Table.from_batches([batch]).select(wanted)
            inputs = torch.empty(len(batch), len(columns))
            encode_rows(table, columns, inputs.numpy())
            problems: dict[int, str] = {}
            if not may_be_missing:
                for row, column in inputs.isnan().nonzero().tolist():
                    problems.setdefault(row, f"no number in column {columns[column].name!r}")
            else:
                problems = _no_numbers(table, inputs, columns, lenient)
            labels = without_missing(table[target]).to_pylist() if target else None
            part = _with_ragged_rows(start, inputs, labels, problems, ragged or {})
            yield part
            start += len(part.names)
        if others := {row - start: problem for row, problem in (ragged or {}).items() if row >= start}:
            names, labels = range(start + 1, start + 1 + len(others)), [None] * len(others) if target else None
            yield InputPart(names, torch.zeros(len(others), len(columns)), labels, others)

    return parts()


def _no_numbers(
    table: "pyarrow.Table", inputs: Tensor, columns: Sequence[Column], lenient: Container[str]
) -> dict[int, str]:
    """Return the problems of rows in which a text is neither a number nor a missing value.

    The arguments are those of `table_inputs`, and the rows of `table` as `inputs` (N, D).
    """
    problems: dict[int, str] = {}
    for number, column in enumerate(columns):
        rows = inputs[:, number].isnan().nonzero().flatten().numpy()
        if column.categories or column.name in lenient or not len(rows):
            continue
        texts = without_missing(table[column.name].take(rows)).to_pylist()
        for row, text in zip(rows.tolist(), texts, strict=True):
            if text is not None and not is_number(text):
                problems.setdefault(row, f"{text[:40]!r} in column {column.name!r} is not a number")
    return dict(sorted(problems.items()))


def _with_ragged_rows(
    start: int, inputs: Tensor, labels: Sequence[str | None] | None, problems: dict[int, str], ragged: Mapping[int, str]
) -> InputPart:
    """Return a part with the rows that were left out of it.

    Args:
        start: Index of its first row in the file.
        inputs: The other rows (n, D).
        labels: Their labels.
        problems: Their problems.
        ragged: The rows of the file that were left out, and what is wrong with them.
    """
    left_out: list[int] = []
    for row in sorted(row - start for row in ragged if row >= start):
        if row < len(inputs) + len(left_out):  # the others belong to later parts
            left_out.append(row)
    names = range(start + 1, start + 1 + len(inputs) + len(left_out))
    if not left_out:
        return InputPart(names, inputs, labels, problems)
    kept = np.setdiff1d(np.arange(len(names)), left_out)
    all_inputs = torch.zeros(len(names), inputs.shape[1])
    all_inputs[kept] = inputs
    all_problems = {int(kept[row]): problem for row, problem in problems.items()}
    all_problems |= {row: ragged[start + row] for row in left_out}
    all_labels: list[str | None] = [None] * len(names)
    for row, label in zip(kept, labels or (), strict=False):
        all_labels[row] = label
    return InputPart(names, all_inputs, None if labels is None else all_labels, all_problems)


def list_pictures(source: Path) -> list[str]:
    """Return a picture, all pictures below a folder in alphabetical order, or the pictures that a .txt file lists.

    Raises:
        DataError: if there are none.
    """
    if source.is_dir():
        walk = os.walk(source, followlinks=False)
        paths = [os.path.join(folder, name) for folder, _, names in walk for name in names if _is_picture(name)]
        if not paths:
            raise DataError(f"INPUT: {source} has no pictures ({', '.join(SUFFIXES)})")
        return sorted(paths)
    if source.suffix.lower() != ".txt":
        return [str(source)]
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"INPUT: {source} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    paths = [os.path.join(source.parent, os.path.expanduser(line.strip())) for line in lines if line.strip()]
    if not paths:
        raise DataError(f"INPUT: {source} is empty; write the path of a picture in each line")
    return paths


def picture_inputs(
    pictures: Sequence[str | bytes], how: Format, channels: int, labels: Sequence[str] | None = None
) -> NewInputs:
    """Decode pictures with all cores.

    Args:
        pictures: The paths or the bytes of the files.
        how: How they are scaled.
        channels: 3, or 1 for grey pictures.
        labels: Label of each picture; None for pictures without labels.
    """

    def parts() -> Iterator[InputPart]:
        for start in range(0, len(pictures), PICTURES):
            part = pictures[start : start + PICTURES]
            decoded = _decode_all(part, how, channels)
            problems = {row: found for row, found in enumerate(decoded) if isinstance(found, str)}
            images = torch.zeros(len(part), channels, how.size, how.size, dtype=torch.uint8)
            for row, found in enumerate(decoded):
                if not isinstance(found, str):
                    images[row] = torch.from_numpy(found)
            chosen = None if labels is None else list(labels[start : start + PICTURES])
            names = [row if isinstance(picture, bytes) else picture for row, picture in enumerate(part, start + 1)]
            yield InputPart(names, images, chosen, problems)

    return NewInputs(parts(), len(pictures))


def _decode_all(pictures: Sequence[str | bytes], how: Format, channels: int) -> list[Any]:
    """Return what `_decode` returns for each picture."""
    decode_one = partial(_decode, how=how, channels=channels)
    if all(isinstance(picture, bytes) and len(picture) < SMALL for picture in pictures):
        return list(map(decode_one, pictures))
    with ThreadPoolExecutor(max(1, available_cores())) as pool:
        return list(pool.map(decode_one, pictures))


def _decode(picture: str | bytes, how: Format, channels: int) -> Any:
    """Return a picture (C, H, W), or why it cannot be decoded."""
    file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    try:
        pixels = decode(file, how)
    except Exception as error:  # a decoder raises errors of many types for a broken file
        return picture_problem(file, error)
    if channels == 1:
        pixels = (pixels @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)[:, :, None]  # ITU-R BT.601
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
