"""The base class of datamodules: loads the data once, splits it, computes its statistics, and makes batches.

A dataset is one file with a subclass of `ClassificationDataModule` that has a ``modality``, a ``spec`` and a ``load``
method. A subclass may instead override ``train_dataloader``, ``val_dataloader`` and ``test_dataloader`` and return ordinary
DataLoaders.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from datamodules.parts.batches import AugmentContext, EpochOrder, TensorBatches
from datamodules.parts.columns import Column
from datamodules.parts.labelled_set import LabelledSet, collect
from datamodules.parts.mapped import MappedRows
from datamodules.parts.new_inputs import array_inputs, list_pictures, picture_inputs, read_array, table_inputs
from datamodules.parts.picture_files import Format
from datamodules.parts.splits import held_out_split, hold_out, stratified_split  # noqa: F401 (own datamodules import it)
from datamodules.parts.statistics import chunks, fingerprint, mean_and_std, num_bytes
from datamodules.parts.table_files import estimated_rows, open_table
from engine.contracts import DataError, DataSpec, Labelled, Modality, NewInputs, OptionError, Split
from engine.memory import available_memory
from engine.terminal import print_line

# N samples, B batch, C channels, D features

rank_zero_print = rank_zero_only(print_line)
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MAX_TEACHER_LOGITS = 2**27  # numbers that are kept, which are 512 MB


class ClassificationDataModule(LightningDataModule):
    """A datamodule for data that fits in memory. Batches have the units of the data (centimetres, pixels of 0 to 255).

    The validation set is a stratified sample of the training set. It depends only on `val_fraction` and `split_seed`. Mean
    and standard deviation are computed from the remaining training samples. The model uses them to normalize its inputs,
    and its checkpoint contains them.

    Attributes:
        mean: Mean per feature (D,) or channel (C, 1, 1), computed by `setup`; 0 if the data is not normalized.
        std: Standard deviation in the same shape; 1 if the data is constant or not normalized.
        fingerprint: SHA-256 of the three splits.

    Args:
        batch_size: Number of training samples per step and device.
        eval_batch_size: Samples per validation or test batch. Results depend on it only with callbacks.quantization.
        val_fraction: Fraction of the training set that is used for validation.
        split_seed: Seed of the validation split.
        gpu_memory_gigabytes: Maximum GPU memory for the data; null for half of the free memory. Data that does not fit stays
            in main memory, and each batch is copied to the GPU.
        normalize: Let the model normalize its inputs to mean 0 and standard deviation 1.
        seed: Seed of shuffling and augmentation. `train.py` passes the seed of the experiment.
        num_folds: Number of folds for cross-validation; null for no folds. The folds are stratified and depend only on this
            number and on `split_seed`. If there is no official test set, a fold is the test set. Otherwise, a fold of the
            training set is the validation set, and `val_fraction` is not used.
        fold: Number of the fold that is held out, from 0 to num_folds - 1.
    """

    choosable: ClassVar[bool] = False  # a base class; a config cannot select it
    modality: ClassVar[Modality]
    memory_gigabytes: float | None = None  # main memory for data in mapped files; None for half of the free memory
    test_fraction: float = 0.2  # fraction of the samples for the test if there is no official test set

    def __init__(
        self,
        batch_size: Annotated[int, ">= 1"] = 128,
        eval_batch_size: Annotated[int, ">= 1"] = 1000,
        val_fraction: Annotated[float, "> 0, < 1"] = 0.1,
        split_seed: Annotated[int, ">= 0"] = 0,
        gpu_memory_gigabytes: Annotated[float, ">= 0"] | None = None,
        normalize: bool = True,
        seed: int = 0,
        num_folds: Annotated[int, ">= 2"] | None = None,
        fold: Annotated[int, ">= 0"] = 0,
    ) -> None:
        super().__init__()
        if not 0 <= fold < (num_folds or 1):  # in a config, `cross_checks` finds it
            raise OptionError(f"data.fold: {fold} is out of range for data.num_folds={num_folds}")
        self.num_folds, self.fold = num_folds, fold
        self.held_out: Split | None = None  # what the fold is: the test set or the validation set
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.split_seed, self.normalize, self.seed = val_fraction, split_seed, normalize, seed
        self.gpu_memory_gigabytes, self._bytes_on_device, self._bytes_in_memory = gpu_memory_gigabytes, 0, 0
        self.fingerprint, self.mean, self.std = "", torch.zeros(()), torch.ones(())
        self._splits: dict[Split, Labelled] = {}
        self._loaded_rows: dict[Split, tuple[Split, Tensor]] = {}  # for each split, its rows in a set of `load`

    @property
    def spec(self) -> DataSpec:
        """The description of the data."""
        raise NotImplementedError(f"{type(self).__name__} needs a `spec` property that returns a DataSpec")

    def load(self) -> "tuple[Labelled, Labelled | None]":
        """Return the training set and the official test set: inputs (N, *input_shape) of any type, and labels (N,).

        If the official test set is None, a fraction or a fold of the training set is used for the test.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a `load` method that returns (train, test)")

    def augment(self, inputs: Tensor, context: AugmentContext) -> Tensor:
        """Augment a training batch (B, *input_shape). The result must keep the shape and depend only on the arguments."""
        return inputs

    @property
    def is_augmented(self) -> bool:
        """Whether `augment` may change training batches. If not, a teacher can compute all logits before the first epoch."""
        return type(self).augment is not ClassificationDataModule.augment

    def save(self, folder: Path) -> None:
        """Write files that predictions need, such as a tokenizer, to a run's folder. By default, nothing is written."""

    def read_inputs(self, source: Path, spec: DataSpec, folder: Path, with_labels: bool = False) -> NewInputs:
        """Read new data for predictions, in the order of the file.

        Arrays (N, *input_shape) in .npy files can be read for all data. Pictures are scaled to the size of the images, and
        tables need the columns of the training set. A subclass may read other files.

        Args:
            source: A file or folder.
            spec: The data on which the model was trained.
            folder: Folder of the run.
            with_labels: Whether to read the labels, too.

        Raises:
            DataError: if the data cannot be read. The message begins with ``INPUT``.
        """
        if source.suffix.lower() == ".npy":
            return read_array(source, spec)
        if spec.modality == "image" and not with_labels:
            return picture_inputs(list_pictures(source), self.picture_format(spec), spec.input_shape[0])
        names = self.spec.feature_names
        if spec.modality == "features" and names and not with_labels:
            ragged: dict[int, str] = {}
            columns, batches = open_table("INPUT", source, ragged=ragged)
            wanted = [Column(name, ()) for name in names]
            parts = table_inputs(str(source), columns, batches, wanted, None, False, ragged)
            return NewInputs(parts, estimated_rows(source))
        labels = " with labels" if with_labels else ""
        raise DataError(f"INPUT: {type(self).__name__} cannot read {source}{labels}; give a .npy file")

    def take_inputs(self, values: Any, spec: DataSpec, folder: Path) -> NewInputs:
        """Take values in memory for predictions: here an array or tensor (N, *input_shape).

        Pictures may also be a list of paths, or of the bytes of picture files.

        Args:
            values: The values.
            spec: The data on which the model was trained.
            folder: Folder of the run.

        Raises:
            DataError: if they do not fit the model.
        """
        if spec.modality == "image" and not hasattr(values, "shape"):
            pictures = [value if isinstance(value, bytes) else str(value) for value in values]
            return picture_inputs(pictures, self.picture_format(spec), spec.input_shape[0])
        return array_inputs(np.asarray(values), spec, "the array")

    def picture_format(self, spec: DataSpec) -> Format:
        """Return how pictures of any size become inputs."""
        return Format(spec.input_shape[1], "crop", "black")

    def splits(self) -> dict[Split, Labelled]:
        """Load the data and return the three splits. The validation set is a sample of the training set."""
        train, test = self.load()
        loaded: dict[Split, Labelled] = {"train": train} if test is None else {"train": train, "test": test}
        loaded = {split: (inputs, labels.long()) for split, (inputs, labels) in loaded.items()}
        for split, labelled in loaded.items():
            self._check("training" if split == "train" else "test", *labelled)
        labels = {split: labelled[1] for split, labelled in loaded.items()}
        self._loaded_rows = self.choose_rows(labels, self.spec.class_names)
        splits: dict[Split, Labelled] = {}
        for split in SPLITS:
            source, rows = self._loaded_rows[split]
            inputs, classes = loaded[source]
            splits[split] = (inputs, classes) if source == "test" else (inputs[rows], classes[rows])  # saves a copy
        return splits

    def choose_rows(
        self, labels: dict[Split, Tensor], class_names: Sequence[str], groups: Tensor | None = None
    ) -> dict[Split, tuple[Split, Tensor]]:
        """Choose the rows of the three splits by the options of this datamodule. A subclass calls this to divide its data.

        Args:
            labels: (N,) of the training set, and of the official validation and test set if they exist.
            class_names: Names of the classes.
            groups: (N,) group of each training row, as for `group_split`; None for a stratified choice.

        Returns:
            For each split, the source of its rows and their indices in this source.

        Raises:
            DataError: if a set would be empty, or if the rows cannot be divided into folds.
        """
        fractions: dict[Split, float] = {"test": self.test_fraction, "val": self.val_fraction}
        rows = hold_out(labels, fractions, self.split_seed, groups, self.num_folds, self.fold, class_names)
        if self.num_folds is not None and self.held_out is None:
            self.held_out = held_out_split(labels)
            title = "validation set; there is no test" if self.held_out == "val" else "test set"
            size = f"{len(rows[self.held_out][1]):,} of {len(labels['train']):,} samples"
            rank_zero_print(f"fold {self.fold} of 0 to {self.num_folds - 1}: {size} are the {title}")
        return rows

    def place(self, split: Split, row: int) -> str:
        """Return the origin of a sample of a split, as text for a message."""
        if split in self._loaded_rows and self._loaded_rows[split][0] == "train":
            title = "the training set" if self._loaded_rows["test"][0] == "test" else "the data"
            return f"row {int(self._loaded_rows[split][1][row])} (from 0) of {title}"
        return f"row {row} (from 0) of {split}"

    def setup(self, stage: str | None = None) -> None:
        """Load, check and split the data, and compute its statistics. If there are only DataLoaders, do nothing."""
        if self.is_loaded:
            return
        self._splits = {} if self._has_only_loaders else self.splits()
        if self.num_folds is not None and self.held_out is None:
            hint = "divide the rows with `choose_rows`, or set data.num_folds=null"
            raise OptionError(f"data.num_folds: {type(self).__name__} divides its data without folds; {hint}")
        if not self.is_loaded:
            return
        self.fingerprint = fingerprint(tensor for labelled in self._splits.values() for tensor in labelled)
        if self.normalize:
            self.mean, self.std = mean_and_std(self._splits["train"][0])

    def train_dataloader(self) -> Any:
        batches = self._batches("train", self.batch_size, shuffle=True)
        if self.trainer is not None and self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            batches.batch_sampler.is_constant, batches.augment = True, None
        return batches

    def val_dataloader(self) -> Any:
        return self._batches("val", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> Any:
        return self._batches("test", self.eval_batch_size, shuffle=False)

    def teacher_logits(self, teacher: Callable[[Any], Tensor]) -> Tensor | None:
        """Return the logits (N, K) of a teacher for all training samples, on the device of the training.

        Return None if the samples are augmented, or if there are more than `MAX_TEACHER_LOGITS` logits. The training step
        then calls the teacher with each batch.

        Args:
            teacher: Function that maps inputs (B, ...) to logits (B, K).
        """
        if not self.is_loaded:
            return None
        is_too_large = self.num_samples("train") * self.spec.num_classes > MAX_TEACHER_LOGITS
        on_xla = self.trainer is not None and self.trainer.strategy.root_device.type == "xla"  # batches are on the CPU
        if self.is_augmented or is_too_large or on_xla:
            return None
        rank_zero_print(f"computing the logits of the teacher for {self.num_samples('train'):,} training samples")
        batches = self._batches("train", self.eval_batch_size, shuffle=False)
        # each process computes all logits: the order of the training samples differs in each epoch
        order = batches.batch_sampler = self.order(batches.inputs, self.eval_batch_size, False, 0, 1)
        logits: Tensor | None = None
        for indices, (inputs, *_) in zip(order, batches, strict=True):
            found = teacher(inputs)
            if logits is None:
                logits = found.new_empty(len(batches.labels), *found.shape[1:])
            logits[indices] = found
        return logits

    @property
    def is_loaded(self) -> bool:
        """Whether the splits are in memory."""
        return bool(self._splits)

    @property
    def _has_only_loaders(self) -> bool:
        """Whether a subclass overrides `train_dataloader`, but neither `load` nor `splits`."""
        base, own = ClassificationDataModule, type(self)
        loads = own.load is not base.load or own.splits is not base.splits
        return own.train_dataloader is not base.train_dataloader and not loads

    def training_inputs(self) -> Any:
        """Return all training inputs (N, ...), in the units of the data."""
        return self._splits["train"][0]

    def class_counts(self) -> Tensor:
        """Return the number of training samples of each class (K,)."""
        return self._splits["train"][1].bincount(minlength=self.spec.num_classes)

    def num_samples(self, split: Split) -> int:
        """Return the number of samples in a split, over all devices."""
        return len(self._splits[split][1])

    def order(self, inputs: Any, batch_size: int, shuffle: bool, rank: int, world_size: int) -> EpochOrder:
        """Return the indices of the samples in each batch of a split."""
        return EpochOrder(len(inputs), batch_size, shuffle, self.seed, rank, world_size)

    def labelled_set(self, source: Path, spec: DataSpec, folder: Path) -> LabelledSet:
        """Read new data with labels into memory, as a test set. Arguments and errors are those of `read_inputs`."""
        data = self.read_inputs(source, spec, folder, with_labels=True)
        return LabelledSet(self, *collect(data, spec, f"INPUT: {source}"), spec)

    def make_batches(self, inputs: Any, labels: Tensor) -> TensorBatches:
        """Return batches of a test set (N, ...) with labels (N,)."""
        self._splits["test"] = inputs, labels
        return self._batches("test", self.eval_batch_size, shuffle=False)

    def _batches(self, split: Split, batch_size: int, shuffle: bool) -> TensorBatches:
        rank, world_size, device = 0, 1, torch.device("cpu")
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            device = self.trainer.strategy.root_device
            if device.type == "xla":  # XLA would compile each slice of a tensor; Lightning copies the batches
                device = torch.device("cpu")
        inputs, labels = self._splits[split]
        if labels.device != device and self._reserve_memory(num_bytes(inputs), device):
            inputs = inputs.to(device)
        elif isinstance(inputs, MappedRows) and self._fits_in_memory(inputs.num_bytes):
            inputs = inputs.to(torch.device("cpu"))
        self._splits[split] = inputs, labels = inputs, labels.to(device)
        order = self.order(inputs, batch_size, shuffle, rank, world_size)
        return TensorBatches(inputs, labels, order, self.augment if shuffle else None)

    def _reserve_memory(self, size: int, device: torch.device) -> bool:
        """Return whether `size` more bytes fit on the device. If they fit, count them."""
        available = math.inf
        if self.gpu_memory_gigabytes is not None:
            available = self.gpu_memory_gigabytes * 1e9 - self._bytes_on_device
        elif device.type == "cuda":
            available = torch.cuda.mem_get_info(device)[0] / 2
        fits = size <= available
        self._bytes_on_device += size if fits else 0
        return fits

    def _fits_in_memory(self, size: int) -> bool:
        """Return whether `size` more bytes fit in main memory for each process of this machine. If they fit, count them."""
        if self.memory_gigabytes is not None:
            fits = self._bytes_in_memory + size <= self.memory_gigabytes * 1e9
            self._bytes_in_memory += size if fits else 0
            return fits
        processes = self.trainer.num_devices if self.trainer is not None else 1
        return size * processes <= available_memory() / 2

    def _check(self, title: str, inputs: Tensor, labels: Tensor) -> None:
        """Raise a `DataError` if inputs or labels do not match the spec."""
        spec = self.spec
        if len(labels) == 0 or len(labels) != len(inputs):
            raise DataError(f"{title} set: {len(inputs)} inputs and {len(labels)} labels; every input needs one label")
        if tuple(inputs.shape[1:]) != spec.input_shape:
            raise DataError(f"{title} set: inputs of shape {tuple(inputs.shape[1:])}; the spec says {spec.input_shape}")
        start = 0
        for chunk in chunks(inputs) if inputs.is_floating_point() else ():
            bad_rows = torch.nonzero(~torch.isfinite(chunk).flatten(1).all(1))
            if len(bad_rows):
                row = start + int(bad_rows[0])
                raise DataError(f"{title} set: row {row} (the first is 0) has a value that is NaN or infinite")
            start += len(chunk)
        check_labels(f"{title} set", labels, spec.num_classes)


def check_labels(place: object, labels: Tensor, num_classes: int) -> None:
    """Raise a `DataError` that begins with `place` if a label is not a number from 0 to num_classes - 1."""
    bad_rows = torch.nonzero((labels < 0) | (labels >= num_classes))
    if len(bad_rows):
        row = int(bad_rows[0])
        raise DataError(
            f"{place}: label {int(labels[row])} in row {row} (the first is 0); labels go from 0 to {num_classes - 1}"
        )
