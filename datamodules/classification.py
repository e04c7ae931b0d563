"""What every datamodule shares: the promise of its data, the split, mean and standard deviation, the loaders.

A dataset is one file: a subclass of `ClassificationDataModule` with its ``modality``, its `DataSpec` and ``load()``.
"""

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Generator, Tensor

from datamodules.parts.batches import AugmentContext, EpochOrder, TensorBatches, mixed_seed
from datamodules.parts.statistics import CHUNK, fingerprint, mean_and_std, num_bytes
from engine.contracts import DataError, DataSpec, Modality, Split

# N samples, B batch, C channels, H, W, D features, K classes
Labelled = tuple[Any, Tensor]  # inputs: a Tensor (N, ...), or TokenRows of N; labels (N,) of 0..K-1


class ClassificationDataModule(LightningDataModule):
    """Splits, measures and serves data that fits in memory; batches keep the units of the data (centimetres, 0 to 255).

    Validation is cut from the training set, stratified, as a function of `split_seed` alone. Mean and standard deviation
    come from the remaining training part. The model applies them, to training and evaluation alike, and its checkpoint
    keeps them, so that it can be given data as it comes.

    Attributes:
        mean: Per feature (D,) or per channel (C, 1, 1), once the data is loaded; 0 where nothing is normalised.
        std: Likewise; 1 where the data is constant.
        fingerprint: SHA-256 of the three parts.

    Args:
        batch_size: Training samples per step and device.
        eval_batch_size: Samples per validation or test batch; it changes speed and memory, not results.
        val_fraction: Share of the training set that is held out for validation.
        split_seed: Of the validation split.
        resident_gigabytes: Of a GPU's memory that the data may take; what does not fit stays with the host, and is copied
            batch by batch. Null for half of what is free.
        normalize: Have the model shift and scale its inputs to mean 0 and standard deviation 1.
        seed: Of the order and the augmentation; `train.py` hands over the experiment's.
    """

    choosable: ClassVar[bool] = False  # a base class, which no config can name
    modality: ClassVar[Modality]

    def __init__(
        self,
        batch_size: Annotated[int, ">= 1"] = 128,
        eval_batch_size: Annotated[int, ">= 1"] = 1000,
        val_fraction: Annotated[float, "> 0, < 1"] = 0.1,
        split_seed: Annotated[int, ">= 0"] = 0,
        resident_gigabytes: Annotated[float, ">= 0"] | None = None,
        normalize: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.split_seed, self.normalize, self.seed = val_fraction, split_seed, normalize, seed
        self.resident_gigabytes, self._resident_bytes = resident_gigabytes, 0
        self.fingerprint, self.mean, self.std = "", torch.zeros(()), torch.ones(())
        self._splits: dict[Split, Labelled] = {}
        self._resumed = (0, 0)

    @property
    def spec(self) -> DataSpec:
        """The shape and the classes of the data."""
        raise NotImplementedError(f"{type(self).__name__} needs a `spec` property that returns a DataSpec")

    def load(self) -> tuple[Labelled, Labelled]:
        """The training set and the official test set: inputs (N, *input_shape) of any type, labels (N,)."""
        raise NotImplementedError(f"{type(self).__name__} needs a `load` method that returns (train, test)")

    def augment(self, inputs: Tensor, context: AugmentContext) -> Tensor:
        """A training batch (B, *input_shape) of any type; the same shape comes back, as a function of it and `context`."""
        return inputs

    def save(self, folder: Path) -> None:
        """Leave in a run's folder what raw data needs on its way to a checkpoint; nothing, if not said otherwise."""

    def setup(self, stage: str | None = None) -> None:
        """Load, check, split and measure, once."""
        if self._splits:
            return
        self._splits = self.splits()
        self.fingerprint = fingerprint(one for part in self._splits.values() for one in part)
        if self.normalize:
            self.mean, self.std = mean_and_std(self._splits["train"][0])

    def splits(self) -> dict[Split, Labelled]:
        """Training, validation and test; by default what `load` gives, with validation cut from the training set."""
        train, test = ((inputs, labels.long()) for inputs, labels in self.load())
        for title, part in (("training", train), ("test", test)):
            self._check(title, *part)
        kept, held_out = hold_out(train[1], "data.val_fraction", self.val_fraction, self.split_seed)
        training, validation = ((train[0][rows], train[1][rows]) for rows in (kept, held_out))
        return {"train": training, "val": validation, "test": test}

    def train_dataloader(self) -> TensorBatches:
        batches = self._batches("train", self.batch_size, shuffle=True)
        batches.batch_sampler.resumed = self._resumed
        if self.trainer is not None and self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            batches.batch_sampler.repeats, batches.augment = True, None
        return batches

    def val_dataloader(self) -> TensorBatches:
        return self._batches("val", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> TensorBatches:
        return self._batches("test", self.eval_batch_size, shuffle=False)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches have been trained on: all that the order of samples depends on."""
        assert self.trainer is not None
        return {
            "epoch": self.trainer.current_epoch,
            "batches": self.trainer.fit_loop.epoch_loop.batch_progress.current.completed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = (state_dict["epoch"], state_dict["batches"])

    @property
    def is_loaded(self) -> bool:
        """Whether the splits are in memory. A subclass that brings its own DataLoaders has none."""
        return bool(self._splits)

    def training_inputs(self) -> Any:
        """All of them, in the units of the data."""
        return self._splits["train"][0]

    def num_samples(self, split: Split) -> int:
        """Samples in a part, over all devices."""
        return len(self._splits[split][1])

    def order(self, inputs: Any, batch_size: int, shuffle: bool, rank: int, world_size: int) -> EpochOrder:
        """Which samples each batch of a part holds."""
        return EpochOrder(len(inputs), batch_size, shuffle, self.seed, rank, world_size)

    def _batches(self, split: Split, batch_size: int, shuffle: bool) -> TensorBatches:
        rank, world_size, device = 0, 1, torch.device("cpu")
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            device = self.trainer.strategy.root_device
        inputs, labels = self._splits[split]
        if labels.device != device:
            fits = self._fits(num_bytes(inputs), device)
            self._splits[split] = inputs, labels = (inputs.to(device) if fits else inputs), labels.to(device)
        order = self.order(inputs, batch_size, shuffle, rank, world_size)
        return TensorBatches(inputs, labels, order, self.augment if shuffle else None)

    def _fits(self, size: int, device: torch.device) -> bool:
        """Whether so many bytes more may lie on the device."""
        budget = math.inf
        if self.resident_gigabytes is not None:
            budget = self.resident_gigabytes * 1e9 - self._resident_bytes
        elif device.type == "cuda":
            budget = torch.cuda.mem_get_info(device)[0] / 2
        fits = size <= budget
        self._resident_bytes += size if fits else 0
        return fits

    def _check(self, title: str, inputs: Tensor, labels: Tensor) -> None:
        spec = self.spec
        if len(labels) == 0 or len(labels) != len(inputs):
            raise DataError(f"{title} set: {len(inputs)} inputs and {len(labels)} labels; there must be one label each")
        if tuple(inputs.shape[1:]) != spec.input_shape:
            raise DataError(f"{title} set: inputs of shape {tuple(inputs.shape[1:])}; the spec says {spec.input_shape}")
        for first, chunk in enumerate(inputs.split(CHUNK) if inputs.is_floating_point() else ()):
            broken = torch.nonzero(~torch.isfinite(chunk).flatten(1).all(1))
            if len(broken):
                row = first * CHUNK + int(broken[0])
                raise DataError(f"{title} set: row {row} has a value that is missing or infinite (NaN, inf)")
        wrong = torch.nonzero((labels < 0) | (labels >= spec.num_classes))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{title} set: label {int(labels[row])} in row {row}; labels go from 0 to {spec.num_classes - 1}"
            )


def hold_out(labels: Tensor, key: str, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """A stratified split of which neither side is empty; `key` of the config gives the fraction.

    Raises:
        DataError: if one of them would be.
    """
    kept, held_out = stratified_split(labels, fraction, seed)
    if min(len(kept), len(held_out)) == 0:
        raise DataError(
            f"{key}: {fraction} of {len(labels)} samples leaves {len(kept)} and {len(held_out)}; choose another"
        )
    return kept, held_out


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of what is kept and of what is held out, `fraction` of every class, both in ascending order.

    Args:
        labels: (N,).
        fraction: Share that is held out, rounded per class.
        seed: Of the choice, which depends on nothing else.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    generator = Generator().manual_seed(mixed_seed(seed))
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        chosen = torch.randperm(len(members), generator=generator)[: round(fraction * len(members))]
        held_out[members[chosen]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()
