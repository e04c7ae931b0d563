"""The columns of a table: numbers, or categories with codes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datamodules.parts.labels import without_missing
from datamodules.parts.table_files import to_numbers
from engine.threads import available_cores

if TYPE_CHECKING:
    import pyarrow

# N rows, D columns

FEW_ROWS = 20  # up to which all values of a column may differ by chance
MANY_ROWS = 500_000  # read at a time
LARGEST = 1e38  # in float32, the difference of two such numbers is finite


@dataclass(frozen=True)
class Column:
    """A column of the training set.

    Attributes:
        name: Its name in the files.
        categories: Names of its categories in the order of their codes, which begin with 1; () for numbers.
        num_missing: Number of missing values.
        is_identifier: Whether it has a different text or whole number in each row.
        is_rounded: Whether different numbers are equal in 32 bits, in which they are stored.
    """

    name: str
    categories: tuple[str, ...]
    num_missing: int = 0
    is_identifier: bool = False
    is_rounded: bool = False


def describe_column(
    name: str, texts: "pyarrow.ChunkedArray", is_category: bool = False, is_number: bool = False
) -> Column:
    """Find the kind of a column from its values.

    Args:
        name: Its name.
        texts: Its values in the training part, as text; null if they are missing.
        is_category: Whether it has categories, even if all values are numbers.
        is_number: Whether it has numbers. Then other values are missing values.
    """
    import pyarrow.compute as pc

    numbers = None if is_category else to_numbers(texts, others_are_missing=is_number)
    categories: tuple[str, ...] = ()
    if numbers is None:
        categories = tuple(sorted(pc.unique(texts.drop_null()).to_pylist())) or ("",)
    values = texts if numbers is None else numbers
    is_identifier = len(values) > FEW_ROWS and _are_different(values[:MANY_ROWS]) and _are_different(values)
    is_rounded = numbers is not None and _are_rounded(numbers[:MANY_ROWS])
    return Column(name, categories, values.null_count, is_identifier, is_rounded)


def encode_rows(table: "pyarrow.Table", columns: Sequence[Column], inputs: np.ndarray) -> None:
    """Write the rows to `inputs` (N, D): numbers, NaN if they are missing, and codes of categories, 0 if unknown."""
    with ThreadPoolExecutor(max(1, available_cores())) as pool:  # pyarrow computes without Python's lock
        for start in range(0, table.num_rows, MANY_ROWS):
            rows = table.slice(start, MANY_ROWS)
            encoded = pool.map(lambda column, rows=rows: _encode(rows[column.name], column), columns)
            for i, values in enumerate(encoded):
                inputs[start : start + MANY_ROWS, i] = values


def _encode(texts: "pyarrow.ChunkedArray", column: Column) -> np.ndarray:
    """Return the numbers or the codes (N,) of a column. A column without missing values and spaces takes half the time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.categories:
        categories = pa.array(column.categories, pa.string())
        codes = pc.index_in(texts, categories)
        if codes.null_count or column.categories == ("",):  # all values of the training part were missing
            codes = pc.index_in(without_missing(texts), categories)
        return pc.fill_null(codes, -1).to_numpy() + 1
    numbers = to_numbers(texts)
    if numbers is None:
        numbers = to_numbers(without_missing(texts), others_are_missing=True)
    return pc.fill_null(numbers, float("nan")).to_numpy().clip(-LARGEST, LARGEST)


def _are_different(values: "pyarrow.ChunkedArray") -> bool:
    """Return whether all values are different texts or whole numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(values.type) and not pc.all(pc.equal(values, pc.round(values))).as_py():
        return False
    return not values.null_count and pc.count_distinct(values).as_py() == len(values)


def _are_rounded(numbers: "pyarrow.ChunkedArray") -> bool:
    """Return whether most differences between numbers are lost in 32 bits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    largest = pc.max(pc.abs(numbers)).as_py()
    if largest is None or largest < 2**24 or largest > LARGEST:  # smaller whole numbers are exact
        return False
    distinct = pc.unique(numbers.drop_null())
    return len(pc.unique(distinct.cast(pa.float32(), safe=False))) < len(distinct) / 2
