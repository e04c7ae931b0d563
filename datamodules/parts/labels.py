"""Labels as they are written in files: words, numbers or yes/no. They become class numbers.

The functions take pyarrow columns of text, because ten million Python strings take a gigabyte.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.contracts import DataError, listed
from engine.terminal import count_of

if TYPE_CHECKING:
    import pyarrow

MISSING = ("", "NA", "N/A", "na", "n/a", "NaN", "nan", "NULL", "null", "?")
MAX_NUMBERS = 100  # most classes if all labels are numbers; a target with more values is a regression target


def without_missing(column: "pyarrow.ChunkedArray") -> "pyarrow.ChunkedArray":
    """Remove spaces around each text of a column, and replace missing values by null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(text, pa.array(MISSING, pa.string())), pa.scalar(None, pa.string()), text)


def check_missing(labels: "pyarrow.ChunkedArray", name: str, place: Callable[[int], str]) -> None:
    """Raise a `DataError` if a row has no label.

    Args:
        labels: Labels of the rows of a file.
        name: Their column.
        place: Returns the place of a row, counted from 0.
    """
    import pyarrow.compute as pc

    if labels.null_count:
        row = pc.index(pc.is_null(labels), True).as_py()
        others = f", and {count_of(labels.null_count - 1, 'more row')}" if labels.null_count > 1 else ""
        raise DataError(f"{place(row)}: no label in column {name!r}{others}; every row needs a label")


def class_names_of(labels: "pyarrow.ChunkedArray", max_numbers: int | None = None) -> tuple[str, ...]:
    """Return the distinct labels, in numerical order if all are numbers, otherwise in alphabetical order.

    Args:
        labels: Labels of the training set, without missing values.
        max_numbers: Maximum number of classes if all labels are numbers; None for no limit.

    Raises:
        DataError: if they are not the labels of a classification.
    """
    import pyarrow.compute as pc

    names, count = pc.unique(labels).to_pylist(), len(labels)
    if len(names) < 2:
        raise DataError(f"data.target: every row has the label {names[0]!r}; at least two classes are needed")
    are_numbers = all(_is_number(name) for name in names)
    if are_numbers and max_numbers is not None and len(names) > max_numbers:
        problem = f"{len(names):,} different numbers"
        raise DataError(f"data.target: {problem}; regression is not supported")
    if len(names) > count / 2 and count > 4:
        problem = f"{len(names):,} different labels in {count:,} rows"
        raise DataError(f"data.target: {problem}; is it the right column?")
    check_case(names, "data.target: the labels")
    if are_numbers:
        seen: dict[float, str] = {}
        for name in sorted(names):
            if (other := seen.setdefault(float(name), name)) != name:
                raise DataError(f"data.target: the labels {other!r} and {name!r} are the same number; write them alike")
    return tuple(sorted(names, key=lambda name: (float(name) if are_numbers else 0.0, name)))


def check_case(names: list[str], title: str) -> None:
    """Raise a `DataError` that begins with `title` if two names differ only in case."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise DataError(f"{title} {other!r} and {name!r} differ only in case; write them alike")


def class_numbers(labels: "pyarrow.ChunkedArray", class_names: tuple[str, ...], place: Callable[[int], str]) -> Tensor:
    """Return the number of the class of each label (N,).

    Args:
        labels: N labels.
        class_names: The classes of the training set.
        place: Returns the place of a row, counted from 0.

    Raises:
        DataError: if a label does not occur in the training set.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = pc.fill_null(pc.index_in(labels, pa.array(class_names, pa.string())), -1)
    if len(found := torch.from_numpy(numbers.to_numpy().astype("int64"))) and int(found.min()) < 0:
        row = int((found < 0).int().argmax())
        known = listed(class_names, 20)
        problem = f"the label {labels[row].as_py()!r} does not occur in the training set, which has {known}"
        raise DataError(f"{place(row)}: {problem}")
    return found


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text) and any(character.isdigit() for character in text)
    except ValueError:
        return False
