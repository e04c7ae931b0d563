"""Tables with a column of labels, from CSV, TSV and Parquet files of the user."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Generator, Tensor

from datamodules.classification import ClassificationDataModule, DataError, DataSpec, Labelled, Split, stratified_split
from datamodules.parts.batches import derive_seed
from datamodules.parts.table_files import close_name, read_table, to_numbers
from engine.contracts import OptionError, listed
from engine.terminal import count_of, print_line

if TYPE_CHECKING:
    import pyarrow

# N rows, D columns

rank_zero_print = rank_zero_only(print_line)
MAX_NUMBERS = 100  # different values of a target of numbers; more are a quantity to predict, not classes
YES_NO = {"yes", "no", "y", "n", "true", "false", "t", "f"}


@dataclass(frozen=True)
class Column:
    """A column of the training set.

    Attributes:
        name: Its name in the files.
        categories: Names of its categories in the order of their codes, which begin with 1; () for numbers.
        num_missing: Number of missing values.
    """

    name: str
    categories: tuple[str, ...]
    num_missing: int


class Table(ClassificationDataModule):
    """Rows of numbers and categories, with a label, from CSV, TSV or Parquet files.

    Separator, header and the kind of each column are found by themselves. Missing values (empty, NA, ?, nan, null) may occur
    in all columns but the label. Everything that is learnt comes from the training part.

    Args:
        train: File with the training set.
        target: Column with the label: words or numbers.
        val: File with the validation set; null to use a fraction of the training set.
        test: File with the test set; null to use a fraction of the training set.
        drop: Columns that are left out.
        categorical: Columns of categories. By default, columns with a value that is not a number.
        numeric: Columns of numbers. Other values in them are missing values.
        group_column: Column whose rows with the same value stay in one split; null if rows are independent.
        batch_size: Number of training samples per step and device.
        eval_batch_size: Number of samples per validation or test batch. It changes speed and memory, but no results.
        val_fraction: Fraction of the training set that is used for validation if `val` is null.
        test_fraction: Fraction of the training set that is used for the test if `test` is null.
        split_seed: Seed of both splits.
        gpu_memory_gigabytes: Maximum GPU memory for the data; null for half of the free memory.
        seed: Seed of shuffling. `train.py` passes the seed of the experiment.
    """

    modality = "features"

    def __init__(
        self,
        train: str,
        target: str,
        val: str | None = None,
        test: str | None = None,
        drop: Sequence[str] = (),
        categorical: Sequence[str] = (),
        numeric: Sequence[str] = (),
        group_column: str | None = None,
        batch_size: Annotated[int, ">= 1"] = 256,
        eval_batch_size: Annotated[int, ">= 1"] = 1000,
        val_fraction: Annotated[float, "> 0, < 1"] = 0.15,
        test_fraction: Annotated[float, "> 0, < 1"] = 0.2,
        split_seed: Annotated[int, ">= 0"] = 0,
        gpu_memory_gigabytes: Annotated[float, ">= 0"] | None = None,
        seed: int = 0,
    ) -> None:
        options: dict[str, Any] = {"gpu_memory_gigabytes": gpu_memory_gigabytes, "normalize": False, "seed": seed}
        super().__init__(batch_size, eval_batch_size, val_fraction, split_seed, **options)
        given: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.files = {split: Path(file).expanduser() for split, file in given.items() if file is not None}
        self.target, self.group_column, self.test_fraction = target, group_column, test_fraction
        self.drop, self.categorical, self.numeric = list(drop), list(categorical), list(numeric)
        if len({file.resolve() for file in self.files.values()}) < len(self.files):
            hint = "use different files for training and evaluation"
            raise OptionError(f"data.train: another split uses the same file; {hint}")
        if both := sorted({*self.categorical} & {*self.numeric}):
            raise OptionError(f"data.numeric: {both[0]} is in data.categorical, too; remove it from one of them")
        for key in ("drop", "categorical", "numeric"):
            if target in getattr(self, key):
                raise OptionError(f"data.{key}: {target} is the target; remove it from the list")
        self.columns: list[Column] = []
        self.class_names: tuple[str, ...] = ()
        self._prepared: dict[Split, Labelled] = {}
        self._sources: dict[Split, tuple[Split, Tensor]] = {}  # file of each split, and its rows

    @property
    def spec(self) -> DataSpec:
        """The description of the data. The files are read first."""
        self.prepare_data()
        names, categories = zip(*((column.name, column.categories) for column in self.columns), strict=True)
        return DataSpec(self.modality, (len(names),), self.class_names, feature_names=names, categories=categories)

    def prepare_data(self) -> None:
        """Read, check and split the files, once."""
        if self._prepared:
            return
        tables = {split: read_table(f"data.{split}", file) for split, file in self.files.items()}
        for split, table in tables.items():
            self._check_columns(split, table, tables["train"].column_names)
        labels = {split: self._labels(split, table) for split, table in tables.items()}
        self.class_names = _class_names(labels["train"])
        numbers = {split: self._number_labels(split, texts) for split, texts in labels.items()}
        sources = self._split(tables, numbers)
        training = tables["train"].take(sources["train"][1].numpy())
        self.columns = [self._describe(name, training[name]) for name in self._features(training.column_names)]
        if not self.columns:
            raise DataError(f"data.train: {self.files['train']} has no column besides the target {self.target!r}")
        inputs = {split: self._encode(table) for split, table in tables.items()}
        self._prepared = {
            split: (inputs[source][rows], numbers[source][rows]) for split, (source, rows) in sources.items()
        }
        self._sources = sources
        self._report()

    def splits(self) -> dict[Split, Labelled]:
        """Return the three splits."""
        self.prepare_data()
        return self._prepared

    def place(self, split: Split, row: int) -> str:
        """Return the file and the row of a sample."""
        source, rows = self._sources[split]
        return f"row {int(rows[row]) + 1} of {self.files[source]}"

    def _features(self, names: list[str]) -> list[str]:
        return [name for name in names if name not in {self.target, self.group_column, *self.drop}]

    def _check_columns(self, split: Split, table: "pyarrow.Table", training: list[str]) -> None:
        """Raise a `DataError` if a column of the config or of the training set is missing."""
        file, names = self.files[split], table.column_names
        wanted = {"target": [self.target]} | {"group_column": [self.group_column] if self.group_column else []}
        wanted |= {key: getattr(self, key) for key in ("drop", "categorical", "numeric")}
        for key, columns in wanted.items():
            for name in columns if split == "train" or key == "target" else []:
                if name not in names:
                    raise DataError(f"data.{key}: {file} has no column {name!r}; {close_name(name, names)}")
        if missing := [name for name in self._features(training) if name not in names]:
            hint = close_name(missing[0], names)
            raise DataError(f"data.{split}: {file} has no column {missing[0]!r}, which the training set has; {hint}")

    def _labels(self, split: Split, table: "pyarrow.Table") -> list[str]:
        column = table[self.target]
        labels = column.to_pylist()
        if column.null_count:
            row = labels.index(None) + 1
            count = count_of(column.null_count, "row")
            hint = "every row needs a label"
            raise DataError(
                f"data.{split}: {self.files[split]}: {count} without {self.target!r}, first row {row}; {hint}"
            )
        return labels

    def _number_labels(self, split: Split, labels: list[str]) -> Tensor:
        """Convert labels to the numbers of their classes (N,)."""
        numbers = {name: i for i, name in enumerate(self.class_names)}
        try:
            return torch.tensor([numbers[label] for label in labels])
        except KeyError as error:
            row, known = labels.index(error.args[0]) + 1, listed(self.class_names, 20)
            problem = f"{error.args[0]!r} does not occur in the training set, which has {known}"
            raise DataError(f"data.{split}: {self.files[split]}, row {row}: the label {problem}") from None

    def _split(
        self, tables: "dict[Split, pyarrow.Table]", labels: dict[Split, Tensor]
    ) -> dict[Split, tuple[Split, Tensor]]:
        """Return the file and the rows of each split."""
        rows = {split: (split, torch.arange(len(values))) for split, values in labels.items()}
        groups = tables["train"][self.group_column].to_pylist() if self.group_column else None
        fractions: dict[Split, float] = {"test": self.test_fraction, "val": self.val_fraction}
        for split, fraction in fractions.items():
            if split in rows:
                continue
            training, key = rows["train"][1], f"data.{split}_fraction"
            if groups is None:
                first, second = stratified_split(labels["train"][training], fraction, self.split_seed, key)
            else:
                first, second = group_split([groups[row] for row in training.tolist()], fraction, self.split_seed, key)
            rows["train"], rows[split] = ("train", training[first]), ("train", training[second])
        return rows

    def _describe(self, name: str, column: "pyarrow.ChunkedArray") -> Column:
        """Find the kind of a column of the training part."""
        import pyarrow.compute as pc

        missing = int(column.null_count)
        if name not in self.categorical and (name in self.numeric or to_numbers(column) is not None):
            return Column(name, (), missing)
        return Column(name, tuple(sorted(pc.unique(column.drop_null()).to_pylist())) or ("",), missing)

    def _encode(self, table: "pyarrow.Table") -> Tensor:
        """Return the rows (N, D): numbers, NaN if they are missing, and codes of categories, 0 if they are unknown."""
        import pyarrow as pa
        import pyarrow.compute as pc

        inputs = torch.empty(table.num_rows, len(self.columns))
        for i, column in enumerate(self.columns):
            texts = table[column.name]
            if column.categories:
                codes = pc.fill_null(pc.index_in(texts, pa.array(column.categories, pa.string())), -1)
                values = codes.to_numpy() + 1
            elif (numbers := to_numbers(texts)) is not None:
                values = pc.fill_null(numbers, float("nan")).to_numpy()
            else:
                values = np.array([_number(text) for text in texts.to_pylist()])
            inputs[:, i] = torch.from_numpy(values.astype(np.float32))
        return inputs

    def _report(self) -> None:
        """Print the kinds of columns, and columns that look like identifiers."""
        num_rows = len(self._prepared["train"][1])
        numbers = [column for column in self.columns if not column.categories]
        yes_no = [c for c in self.columns if len(c.categories) == 2 and {n.lower() for n in c.categories} <= YES_NO]
        categories = [column for column in self.columns if column.categories and column not in yes_no]
        missing = sum(column.num_missing for column in self.columns)
        for title, columns in (("numbers", numbers), ("categories", categories), ("yes/no", yes_no)):
            if columns:
                rank_zero_print(f"{title:<13}{len(columns)}: {listed([column.name for column in columns], 20)}")
        if missing:
            affected = [f"{column.name} ({column.num_missing:,})" for column in self.columns if column.num_missing]
            rank_zero_print(f"{'missing':<13}{count_of(missing, 'value')} of the training part: {listed(affected, 10)}")
        inputs = self._prepared["train"][0]
        for i, column in enumerate(self.columns):
            whole = bool((inputs[:, i] == inputs[:, i].round()).all())
            num_values = len(column.categories) or (len(inputs[:, i].unique()) if whole else 0)
            if num_rows > 20 and num_values == num_rows:
                rank_zero_print(
                    f"warning: every row has another {column.name}; if it is an identifier: data.drop=[{column.name}]"
                )


def group_split(groups: list[Any], fraction: float, seed: int, key: str) -> tuple[Tensor, Tensor]:
    """Split rows into two sets so that the rows of a group are in one set.

    Args:
        groups: The group of each row; a row without a group is a group of its own.
        fraction: Fraction of the rows in the second set, approximately.
        seed: Seed of the random choice.
        key: Config key of the fraction, for errors.

    Returns:
        Row indices of the first and of the second set, both in ascending order.

    Raises:
        DataError: if one of the sets would be empty.
    """
    names = [(i, None) if group is None else (-1, group) for i, group in enumerate(groups)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    group_of = torch.tensor([numbers[name] for name in names])
    sizes = group_of.bincount()
    order = torch.randperm(len(sizes), generator=Generator().manual_seed(derive_seed(seed)))
    ends = sizes[order].cumsum(0)
    # a group belongs to the second set if its middle lies within the fraction
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    chosen[order] = ends - sizes[order] / 2 <= fraction * len(groups)
    second = chosen[group_of]
    if second.all() or not second.any():
        hint = f"data.group_column has {count_of(len(sizes), 'group')}; choose another fraction"
        raise DataError(f"{key}: {fraction} of {len(groups)} rows leaves an empty set; {hint}")
    return torch.nonzero(~second).flatten(), torch.nonzero(second).flatten()


def _class_names(labels: list[str]) -> tuple[str, ...]:
    """Return the distinct labels, in numerical order if all are numbers, otherwise in alphabetical order."""
    names = set(labels)
    if len(names) < 2:
        raise DataError(f"data.target: every row has the label {labels[0]!r}; at least two classes are needed")
    are_numbers = all(_number(name) == _number(name) for name in names)
    if are_numbers and len(names) > MAX_NUMBERS:
        problem = f"{len(names):,} different numbers"
        raise DataError(f"data.target: {problem}; this template classifies, and does not predict quantities")
    if len(names) > len(labels) / 2 and len(labels) > 4:
        raise DataError(
            f"data.target: {len(names):,} different labels in {len(labels):,} rows; is it the right column?"
        )
    if similar := _same_but_for_case(names):
        raise DataError(
            f"data.target: the labels {similar[0]!r} and {similar[1]!r} differ only in case; write them alike"
        )
    return tuple(sorted(names, key=lambda name: (_number(name) if are_numbers else 0, name)))


def _same_but_for_case(names: set[str]) -> tuple[str, str] | None:
    seen: dict[str, str] = {}
    for name in sorted(names):
        if (other := seen.setdefault(name.casefold(), name)) != name:
            return other, name
    return None


def _number(text: str | None) -> float:
    """Return a text as a number; NaN if it is missing or not a number."""
    try:
        return float(text) if text is not None and re.search(r"\d", text) else float("nan")
    except ValueError:
        return float("nan")
