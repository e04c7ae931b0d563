"""Tables with a column of labels, from CSV, TSV and Parquet files of the user."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from datamodules.classification import ClassificationDataModule, DataError, DataSpec, Labelled, Split
from datamodules.parts.cache import create_array, describe_files, load_or_create
from datamodules.parts.columns import MANY_ROWS, Column, describe_column, encode_rows
from datamodules.parts.labels import MAX_NUMBERS, check_missing, class_names_of, class_numbers, without_missing
from datamodules.parts.mapped import MappedRows
from datamodules.parts.new_inputs import read_array, table_inputs
from datamodules.parts.table_files import (
    close_name,
    copy_table,
    estimated_bytes,
    estimated_rows,
    get_column,
    map_table,
    open_table,
    read_table,
    take_table,
)
from engine.contracts import InputPart, NewInputs, OptionError, listed
from engine.terminal import count_of, print_line

if TYPE_CHECKING:
    import pyarrow

# N rows, D columns

rank_zero_print = rank_zero_only(print_line)
MANY_CATEGORIES = 20  # a column with at most this many categories causes no warning
MORE_MISSING = 0.2  # warn if a column's share of missing values exceeds that of the training set by more than this
YES_NO = {"yes", "no", "y", "n", "true", "false", "t", "f"}


class Table(ClassificationDataModule):
    """Rows of numbers and categories, with a label, from CSV, TSV or Parquet files.

    Separator, header and the kind of each column are detected. Values may be missing (empty, NA, ?, nan, null) in all
    columns but the label. All statistics and categories come from the training part.

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
        eval_batch_size: Samples per validation or test batch. Results depend on it only with callbacks.quantization.
        val_fraction: Fraction of the training set that is used for validation if `val` is null.
        test_fraction: Fraction of the training set that is used for the test if `test` is null.
        split_seed: Seed of both splits and of the folds.
        num_folds: Number of folds for cross-validation; null for no folds. The folds are stratified and depend only on this
            number and on `split_seed`. If `test` is null, a fold is the test set. Otherwise, a fold of the training set is
            the validation set, and `val_fraction` is not used.
        fold: Number of the fold that is held out, from 0 to num_folds - 1.
        gpu_memory_gigabytes: Maximum GPU memory for the data; null for half of the free memory.
        memory_gigabytes: Maximum main memory for the data; null for half of the free memory. A table that does not fit is
            copied to the cache and memory-mapped.
        cache: Folder for tables that do not fit in memory. It can be deleted at any time.
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
        num_folds: Annotated[int, ">= 2"] | None = None,
        fold: Annotated[int, ">= 0"] = 0,
        gpu_memory_gigabytes: Annotated[float, ">= 0"] | None = None,
        memory_gigabytes: Annotated[float, ">= 0"] | None = None,
        cache: str = "data/cache",
        seed: int = 0,
    ) -> None:
        options: dict[str, Any] = {"gpu_memory_gigabytes": gpu_memory_gigabytes, "normalize": False, "seed": seed}
        folds: dict[str, Any] = {"num_folds": num_folds, "fold": fold}
        super().__init__(batch_size, eval_batch_size, val_fraction, split_seed, **options, **folds)
        given: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.files = {split: Path(file).expanduser() for split, file in given.items() if file is not None}
        self.target, self.group_column, self.test_fraction = target, group_column, test_fraction
        self.memory_gigabytes, self.cache = memory_gigabytes, Path(cache).expanduser()
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
        self._in_memory: dict[Split, bool] = {}  # whether a file is read into memory
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
        tables = {split: self._read(split) for split in self.files}
        for split, table in tables.items():
            self._check_columns(split, table, tables["train"].column_names)
            self._check_groups(split, table, tables["train"])
        texts = {split: self._labels(split, table) for split, table in tables.items()}
        self.class_names = class_names_of(texts["train"], MAX_NUMBERS)
        labels = {
            split: class_numbers(column, self.class_names, partial(self._row, split)) for split, column in texts.items()
        }
        sources = self.choose_rows(labels, self.class_names, self._groups(tables["train"]))
        is_training = np.zeros(tables["train"].num_rows, bool)
        is_training[sources["train"][1].numpy()] = True
        self.columns = [
            describe_column(
                name,
                without_missing(tables["train"][name].filter(is_training)),
                name in self.categorical,
                name in self.numeric,
            )
            for name in self._features(tables["train"].column_names)
        ]
        if not self.columns:
            raise DataError(f"data.train: {self.files['train']} has no column besides the target {self.target!r}")
        inputs = {split: self._inputs(split, table) for split, table in tables.items()}
        self._prepared = {
            split: (_select(inputs[source], rows), labels[source][rows]) for split, (source, rows) in sources.items()
        }
        self._sources = sources
        self._report()

    def read_inputs(self, source: Path, spec: DataSpec, folder: Path, with_labels: bool = False) -> NewInputs:
        """Read the columns of the training set from a table. The table may have a column with labels."""
        if source.suffix.lower() == ".npy":
            return read_array(source, spec)
        ragged: dict[int, str] = {}
        names, batches = open_table("INPUT", source, ragged=ragged)
        return NewInputs(self._encoded(str(source), names, batches, spec, with_labels, ragged), estimated_rows(source))

    def take_inputs(self, values: Any, spec: DataSpec, folder: Path) -> NewInputs:
        """Take a table: a list of dictionaries, a dictionary of columns, a DataFrame, or an encoded array (N, D)."""
        if isinstance(values, np.ndarray | Tensor):
            return super().take_inputs(values, spec, folder)
        names, batches = take_table(values)
        return NewInputs(self._encoded("the table", names, batches, spec), None)

    def _encoded(
        self,
        title: str,
        names: Sequence[str],
        batches: "Iterable[pyarrow.RecordBatch]",
        spec: DataSpec,
        with_labels: bool = False,
        ragged: Mapping[int, str] | None = None,
    ) -> Iterator[InputPart]:
        assert spec.categories is not None
        columns = [Column(name, kind) for name, kind in zip(spec.feature_names, spec.categories, strict=True)]
        target = self.target if with_labels else None
        return table_inputs(title, names, batches, columns, target, True, ragged, self.numeric)

    def splits(self) -> dict[Split, Labelled]:
        """Return the three splits."""
        self.prepare_data()
        return self._prepared

    def place(self, split: Split, row: int) -> str:
        """Return the file and the row of a sample."""
        source, rows = self._sources[split]
        return f"row {int(rows[row]) + 1} of {self.files[source]}"

    def _row(self, split: Split, row: int) -> str:
        return f"data.{split}: {self.files[split]}, row {row + 1}"

    def _read(self, split: Split) -> "pyarrow.Table":
        """Return the table of a file. If it does not fit in memory, it is copied to the cache and memory-mapped."""
        key, file = f"data.{split}", self.files[split]
        if self._is_in_memory(split):
            return read_table(key, file, self.drop)

        def load(folder: Path) -> "pyarrow.Table":
            return map_table(folder / "table.arrow")

        identity = (*describe_files([str(file)]), *self.drop)
        return load_or_create(
            self.cache,
            "table",
            identity,
            lambda folder: copy_table(key, file, folder / "table.arrow", self.drop),
            load,
        )

    def _inputs(self, split: Split, table: "pyarrow.Table") -> Tensor | MappedRows:
        """Return all rows of a file (N, D). If they do not fit in memory, they are written to the cache."""
        shape = (table.num_rows, len(self.columns))
        if self._is_in_memory(split):
            inputs = torch.empty(shape)
            encode_rows(table, self.columns, inputs.numpy())
            return inputs

        def create(folder: Path) -> None:
            encode_rows(table, self.columns, create_array(folder / "inputs.npy", np.float32, shape))

        def load(folder: Path) -> MappedRows:
            return MappedRows(np.load(folder / "inputs.npy", mmap_mode="r"), torch.arange(shape[0]))

        key = (*describe_files([str(self.files[split])]), *self.columns)
        return load_or_create(self.cache, "inputs", key, create, load)

    def _is_in_memory(self, split: Split) -> bool:
        if split not in self._in_memory:
            self._in_memory[split] = self._fits_in_memory(estimated_bytes(self.files[split]))
        return self._in_memory[split]

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

    def _labels(self, split: Split, table: "pyarrow.Table") -> "pyarrow.ChunkedArray":
        labels = get_column("data.target", self.files[split], table, self.target)
        check_missing(labels, self.target, partial(self._row, split))
        return labels

    def _check_groups(self, split: Split, table: "pyarrow.Table", training: "pyarrow.Table") -> None:
        """Raise a `DataError` if a file for evaluation has a group of the training set."""
        import pyarrow.compute as pc

        if split == "train" or self.group_column is None or self.group_column not in table.column_names:
            return
        groups = pc.unique(without_missing(table[self.group_column]).drop_null())
        shared = groups.filter(pc.is_in(groups, pc.unique(without_missing(training[self.group_column]))))
        if len(shared):
            problem = f"{count_of(len(shared), 'group')} of data.group_column={self.group_column}"
            hint = f"the first is {shared[0].as_py()!r}; remove their rows from one of the files"
            raise DataError(
                f"data.{split}: {self.files[split]} has {problem} that {self.files['train']} has, too; {hint}"
            )

    def _groups(self, table: "pyarrow.Table") -> Tensor | None:
        """Return the number of the group of each row (N,); -1 for a row without a group."""
        import pyarrow.compute as pc

        if self.group_column is None:
            return None
        groups = without_missing(table[self.group_column])
        numbers = pc.fill_null(pc.index_in(groups, pc.unique(groups.drop_null())), -1)
        return torch.from_numpy(numbers.to_numpy().astype(np.int64))

    def _report(self) -> None:
        """Print the kinds of columns, and columns that look like identifiers."""
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
        suspects: set[str] = set()
        for column in self.columns:
            if column.is_rounded:
                hint = f"subtract a constant, or set 'data.categorical=[{column.name}]'"
                rank_zero_print(f"warning: different large numbers of {column.name} become equal in 32 bits; {hint}")
            if column.is_identifier:
                hint = f"if it is an identifier, set 'data.drop=[{column.name}]'"
                rank_zero_print(f"warning: {column.name} has a different value in every row; {hint}")
                suspects.add(column.name)
            elif len(column.categories) > max(MANY_CATEGORIES, len(self._prepared["train"][1]) / 4):
                problem = f"{column.name} has {len(column.categories):,} categories"
                rank_zero_print(f"warning: {problem}; if it is a text or a date, set 'data.drop=[{column.name}]'")
                suspects.add(column.name)
        self._report_unreadable([column for column in self.columns if column.name not in suspects])

    def _report_unreadable(self, columns: Sequence[Column]) -> None:
        """Print which of `columns` are missing or unknown far more often in an evaluation set than in the training set."""
        shares = {split: self._missing_shares(inputs[:MANY_ROWS]) for split, (inputs, _) in self._prepared.items()}
        for split in ("val", "test"):
            for column, before, now in zip(self.columns, shares["train"], shares[split], strict=True):
                if column in columns and now > before + MORE_MISSING:
                    problem = f"{now:.0%} of the values of {column.name} are missing or unknown in the {split} set"
                    rank_zero_print(f"warning: {problem}, compared with {before:.0%} in the training set")

    def _missing_shares(self, inputs: Tensor) -> list[float]:
        """Return the share of missing or unknown values in each column (D,) of rows (N, D)."""
        is_category = torch.tensor([bool(column.categories) for column in self.columns])
        shares: list[float] = (inputs.isnan() | ((inputs == 0) & is_category)).float().mean(0).tolist()
        return shares


def _select(inputs: Tensor | MappedRows, rows: Tensor) -> Tensor | MappedRows:
    return inputs.select(rows) if isinstance(inputs, MappedRows) else inputs[rows]
