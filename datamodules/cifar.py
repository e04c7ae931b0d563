"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32x32 (Krizhevsky 2009).

Source and format: https://www.cs.toronto.edu/~kriz/cifar.html. This module reads the binary version,
because the Python version consists of pickle files, and loading a pickle can run code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.classification import ClassificationDataModule, DataError, DataSpec, Labelled, check_labels
from datamodules.parts.augment import alternating_flip, random_crop, random_flip
from datamodules.parts.batches import AugmentContext
from datamodules.parts.download import RemoteFile, fetch, lock_folder, unpack

SHAPE, PIXEL_BYTES = (3, 32, 32), 3072
TEST_RECORDS = 10_000
MIRRORS = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
    forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
    mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm""".split()
)


@dataclass(frozen=True)
class Variant:
    """One of the two datasets. A record has `label_bytes` labels of one byte and the pixels. The last label is used."""

    archive: RemoteFile
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    records: int  # records in each file of `train`
    label_bytes: int
    class_names: tuple[str, ...]


VARIANTS = {
    "cifar10": Variant(
        RemoteFile(
            "cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        ),
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        10_000,
        1,
        CIFAR10,
    ),
    "cifar100": Variant(
        RemoteFile(
            "cifar-100-binary.tar.gz", 168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
        ),
        "cifar-100-binary",
        ("train.bin",),
        ("test.bin",),
        50_000,
        2,  # the coarse label and the fine label
        CIFAR100,
    ),
}


class CIFAR(ClassificationDataModule):
    """Colour images of 32x32 pixels in 10 classes, or in 100 classes with variant=cifar100.

    Args:
        root: Folder that contains cifar-10-batches-bin (cifar-100-binary) or the archive. A missing archive is downloaded.
        variant: Name of the dataset.
        augment_images: Shift training images and mirror half of them.
        padding: Maximum shift in pixels. 4 is the value of He et al. 2015 (https://arxiv.org/abs/1512.03385).
        flip: Mirror each image with probability 0.5 (random) or in every second epoch (alternating).
        mirrors: Base URLs of the archive, which are tried before the default URLs.
        options: Options of `ClassificationDataModule`.
    """

    modality = "image"

    def __init__(
        self,
        root: str = "data",
        variant: Literal["cifar10", "cifar100"] = "cifar10",
        augment_images: bool = True,
        padding: Annotated[int, ">= 0, < 32"] = 4,
        flip: Literal["random", "alternating"] = "random",
        mirrors: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.augment_images, self.padding, self.flip = augment_images, padding, flip
        self.source, self.root = VARIANTS[variant], Path(root)
        self.folder = self.root / self.source.folder
        self.mirrors = (*mirrors, *MIRRORS)

    @property
    def spec(self) -> DataSpec:
        return DataSpec(self.modality, SHAPE, self.source.class_names)

    def prepare_data(self) -> None:
        if self._is_complete():
            return
        fetch([self.source.archive], self.root, self.mirrors)
        with lock_folder(self.root):
            if not self._is_complete():  # another process may have unpacked the archive
                unpack(self.source.archive, self.root)

    def load(self) -> tuple[Labelled, Labelled]:
        return self._read(self.source.train), self._read(self.source.test)

    def augment(self, inputs: Tensor, context: AugmentContext) -> Tensor:
        if not self.augment_images:
            return inputs
        shifted = random_crop(inputs, self.padding, context.generator)
        if self.flip == "alternating":
            return alternating_flip(shifted, context)
        return random_flip(shifted, context.generator)

    @property
    def is_augmented(self) -> bool:
        return self.augment_images or type(self).augment is not CIFAR.augment

    def _is_complete(self) -> bool:
        return all((self.folder / name).is_file() for name in self._sizes())

    def _sizes(self) -> dict[str, int]:
        """Return the size of each file in bytes."""
        record = self.source.label_bytes + PIXEL_BYTES
        train = dict.fromkeys(self.source.train, record * self.source.records)
        return train | dict.fromkeys(self.source.test, record * TEST_RECORDS)

    def _read(self, names: Sequence[str]) -> Labelled:
        sizes, record = self._sizes(), self.source.label_bytes + PIXEL_BYTES
        files = []
        for name in names:
            path = self.folder / name
            if not path.is_file():
                raise DataError(f"data.root: {name} is not in {self.folder}")
            if (size := path.stat().st_size) != sizes[name]:
                raise DataError(f"{path}: has {size:,} bytes; expected {sizes[name]:,} bytes")
            files.append(torch.from_numpy(np.fromfile(path, np.uint8).reshape(-1, record)))
            check_labels(path, files[-1][:, self.source.label_bytes - 1], len(self.source.class_names))
        records = torch.cat(files)
        pixels = records[:, self.source.label_bytes :].reshape(-1, *SHAPE)
        return pixels, records[:, self.source.label_bytes - 1].clone()
