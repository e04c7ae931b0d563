"""MNIST and its drop-in Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 in 10 classes.

MNIST: LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/ (the file format is described there).
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

from datamodules.classification import ClassificationDataModule, DataError, DataSpec, Labelled
from datamodules.parts.augment import random_affine, random_crop, random_flip
from datamodules.parts.batches import AugmentContext
from datamodules.parts.download import RemoteFile, fetch

SIDE, TRAIN_SIZE, TEST_SIZE = 28, 60_000, 10_000
DEGREES, SHIFT_FRACTION, SCALE_FRACTION = 10.0, 0.07, 0.1  # of a digit: a little, as between two hands
PADDING = 2  # pixels that an article of clothing is shifted by at most


@dataclass(frozen=True)
class Variant:
    """Files and names of one of the two sets; the order of `files` is train images, train labels, test images, labels."""

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
            RemoteFile(
                "train-images-idx3-ubyte.gz",
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            RemoteFile(
                "train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
            ),
            RemoteFile(
                "t10k-images-idx3-ubyte.gz",
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            RemoteFile(
                "t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
            ),
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
            RemoteFile(
                "train-images-idx3-ubyte.gz",
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            RemoteFile(
                "train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
            ),
            RemoteFile(
                "t10k-images-idx3-ubyte.gz",
                4_422_102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            RemoteFile(
                "t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
            ),
        ),
    ),
}


class MNIST(ClassificationDataModule):
    """Handwritten digits, or with variant=fashion articles of clothing: grey images of 28x28 in 10 classes.

    Args:
        root: Folder of the files, gz or raw, in it or in MNIST/raw below it (for fashion, FashionMNIST/raw); what is not
            there is downloaded.
        variant: Which of the two sets.
        augment_images: Rotate, shift and scale training digits a little; shift and mirror clothing.
        mirrors: Addresses of the files to try before the built-in ones.
        options: Those of `ClassificationDataModule`.
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
        self.places = (self.folder, Path(root), Path(root) / self.source.folder)
        self.mirrors = (*mirrors, *self.source.mirrors)

    @property
    def spec(self) -> DataSpec:
        return DataSpec(self.modality, (1, SIDE, SIDE), self.source.class_names)

    def prepare_data(self) -> None:
        missing = [file for file in self.source.files if self._find(file.name) is None]
        if missing:
            fetch(missing, self.folder, self.mirrors)

    def load(self) -> tuple[Labelled, Labelled]:
        paths = [self._find(file.name) for file in self.source.files]
        if None in paths:
            raise DataError(f"data.root: {self.source.files[paths.index(None)].name} is not in {self.folder}")
        sizes = (TRAIN_SIZE, TRAIN_SIZE, TEST_SIZE, TEST_SIZE)
        shapes = ((SIDE, SIDE), (), (SIDE, SIDE), ())
        arrays = [read_idx(path, (n, *shape)) for path, n, shape in zip(paths, sizes, shapes, strict=True) if path]
        return (arrays[0].unsqueeze(1), arrays[1]), (arrays[2].unsqueeze(1), arrays[3])

    def augment(self, inputs: Tensor, context: AugmentContext) -> Tensor:
        if not self.augment_images:
            return inputs
        if self.variant == "fashion":  # articles stand upright, and may face either way
            return random_flip(random_crop(inputs, PADDING, context.generator), context.generator)
        return random_affine(inputs, DEGREES, SHIFT_FRACTION, SCALE_FRACTION, context.generator)

    def _find(self, name: str) -> Path | None:
        """The file, packed or not, in the first place that has it."""
        candidates = (place / one for place in self.places for one in (name, name.removesuffix(".gz")))
        return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The bytes of an IDX file, gz or raw, as a uint8 tensor of `shape`.

    Raises:
        DataError: if the file is broken, of another type or of another shape.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it, and it is downloaded again") from None
    header = 4 + 4 * len(shape)  # magic number: two zeros, 8 for unsigned bytes, the number of axes; then their lengths
    if len(content) < header or content[:4] != bytes([0, 0, 8, len(shape)]):
        raise DataError(
            f"{path}: magic number {content[:4].hex() or 'missing'}; an IDX file has 000008{len(shape):02x}"
        )
    found = tuple(np.frombuffer(content, ">i4", len(shape), offset=4).tolist())
    if found != shape:
        raise DataError(f"{path}: holds {found}; expected {shape}")
    if len(content) != header + math.prod(shape):
        raise DataError(f"{path}: {len(content) - header:,} bytes of data; its header promises {math.prod(shape):,}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())
