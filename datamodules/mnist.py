"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 in 10 classes.

MNIST: LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/ (this page describes the file format).
Fashion-MNIST: Xiao, Rasul, Vollgraf 2017, https://github.com/zalandoresearch/fashion-mnist.
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.classification import ClassificationDataModule, DataError, DataSpec, Labelled, check_labels
from datamodules.parts.augment import random_affine, random_crop, random_flip
from datamodules.parts.batches import AugmentContext
from datamodules.parts.download import RemoteFile, fetch

SIDE, TRAIN_SIZE, TEST_SIZE = 28, 60_000, 10_000
DEGREES, SHIFT_FRACTION, SCALE_FRACTION = 10.0, 0.07, 0.1  # small, like differences in handwriting
PADDING = 2  # maximum shift of clothing images in pixels
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


@dataclass(frozen=True)
class Variant:
    """One of the two datasets. `files` are training images, training labels, test images and test labels."""

    folder: str
    class_names: tuple[str, ...]
    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]


VARIANTS = {
    "mnist": Variant(
        "MNIST",
        tuple("0123456789"),
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        (
            RemoteFile(TRAIN_IMAGES, 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            RemoteFile(TRAIN_LABELS, 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            RemoteFile(TEST_IMAGES, 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            RemoteFile(TEST_LABELS, 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "fashion": Variant(
        "FashionMNIST",
        ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        (
            RemoteFile(TRAIN_IMAGES, 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            RemoteFile(TRAIN_LABELS, 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            RemoteFile(TEST_IMAGES, 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            RemoteFile(TEST_LABELS, 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
}


class MNIST(ClassificationDataModule):
    """Grey images of 28x28 pixels in 10 classes: handwritten digits or, with variant=fashion, articles of clothing.

    Args:
        root: Folder of the files, compressed or not. They can also be in its subfolder MNIST/raw (FashionMNIST/raw). Missing
            files are downloaded.
        variant: Name of the dataset.
        augment_images: Augment training images: rotate, shift and scale digits; shift and mirror clothing.
        mirrors: Base URLs of the files, which are tried before the default URLs.
        options: Options of `ClassificationDataModule`.
    """

    modality = "image"

    def __init__(
        self,
        root: str = "data",
        variant: Literal["mnist", "fashion"] = "mnist",
        augment_images: bool = False,
        mirrors: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.variant, self.augment_images = variant, augment_images
        self.source = VARIANTS[variant]
        self.folder = Path(root) / self.source.folder / "raw"
        self.search_folders = (self.folder, Path(root), Path(root) / self.source.folder)
        self.mirrors = (*mirrors, *self.source.mirrors)

    @property
    def spec(self) -> DataSpec:
        return DataSpec(self.modality, (1, SIDE, SIDE), self.source.class_names)

    def prepare_data(self) -> None:
        missing = [file for file in self.source.files if self._find(file.name) is None]
        if missing:
            fetch(missing, self.folder, self.mirrors)

    def load(self) -> tuple[Labelled, Labelled]:
        train_images, train_labels, test_images, test_labels = self.source.files
        return self._read(train_images, train_labels, TRAIN_SIZE), self._read(test_images, test_labels, TEST_SIZE)

    def augment(self, inputs: Tensor, context: AugmentContext) -> Tensor:
        if not self.augment_images:
            return inputs
        if self.variant == "fashion":  # clothing is always upright, and it may face left or right
            return random_flip(random_crop(inputs, PADDING, context.generator), context.generator)
        return random_affine(inputs, DEGREES, SHIFT_FRACTION, SCALE_FRACTION, context.generator)

    @property
    def is_augmented(self) -> bool:
        return self.augment_images or type(self).augment is not MNIST.augment

    def _find(self, name: str) -> Path | None:
        """Return the path of a file, compressed or not, in the first folder that contains it."""
        names = (name, name.removesuffix(".gz"))
        candidates = (folder / candidate for folder in self.search_folders for candidate in names)
        return next((path for path in candidates if path.is_file()), None)

    def _read(self, image_file: RemoteFile, label_file: RemoteFile, count: int) -> Labelled:
        """Read images (count, 1, 28, 28) and labels (count,)."""
        tensors = []
        for file, shape in ((image_file, (count, SIDE, SIDE)), (label_file, (count,))):
            path = self._find(file.name)
            if path is None:
                raise DataError(f"data.root: {file.name} is not in {self.folder}")
            tensors.append(read_idx(path, shape))
        images, labels = tensors
        check_labels(path, labels, len(self.source.class_names))
        return images.unsqueeze(1), labels


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read an IDX file, compressed by gzip or not, as a uint8 tensor of `shape`.

    Raises:
        DataError: if the file is broken or has another shape.
    """
    header = 4 + 4 * len(shape)  # magic number (0, 0, 8 for unsigned bytes, number of axes), then the size of each axis
    expected = math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(header + expected + 1)  # a small file could unpack to more bytes than fit in memory
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it to download it again") from None
    if len(content) < header or content[:4] != bytes([0, 0, 8, len(shape)]):
        found = content[:4].hex() or "missing"
        raise DataError(f"{path}: magic number {found}; an IDX file has 000008{len(shape):02x}")
    sizes = tuple(np.frombuffer(content, ">i4", len(shape), offset=4).tolist())
    if sizes != shape:
        raise DataError(f"{path}: has the shape {sizes}; expected {shape}")
    if len(content) != header + expected:
        found = f"{len(content) - header:,}" if len(content) < header + expected else f"more than {expected:,}"
        raise DataError(f"{path}: {found} bytes of data; its header says {expected:,}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())
