"""Data files: every layout is found, and every damage is one line."""

import gzip
import importlib
import math
import tracemalloc

import numpy as np
import pytest
import torch

from datamodules import cifar, mnist
from datamodules.cifar import CIFAR
from datamodules.classification import ClassificationDataModule, DataError, DataSpec
from datamodules.iris import Iris
from datamodules.mnist import MNIST
from datamodules.parts.batches import AugmentContext
from engine.config.signatures import PROJECT
from tests import files


def problem(datamodule: ClassificationDataModule) -> str:
    with pytest.raises(DataError) as caught:
        datamodule.setup()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# MNIST and its layouts


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["MNIST/raw", "MNIST", "."])
def test_mnist_is_found_in_every_layout(small_data, tmp_path, packed, below):
    files.write_mnist(tmp_path / "other" / below, packed)
    datamodule = MNIST(root=str(tmp_path / "other"))
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.num_samples("train") + datamodule.num_samples("val") == files.TRAIN
    reference = MNIST(root=str(small_data))
    reference.setup()
    assert datamodule.fingerprint == reference.fingerprint


def test_complete_files_are_not_downloaded(small_data, monkeypatch):
    monkeypatch.setattr(mnist, "fetch", lambda *_: pytest.fail("nothing is missing"))
    monkeypatch.setattr(cifar, "fetch", lambda *_: pytest.fail("nothing is missing"))
    MNIST(root=str(small_data)).prepare_data()
    CIFAR(root=str(small_data)).prepare_data()


def test_digits_are_rotated_and_clothing_is_mirrored(small_data):
    for variant, mirrored in (("mnist", False), ("fashion", True)):
        datamodule = MNIST(root=str(small_data), variant=variant, augment_images=True)
        image = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
        image[:, :, 13:15, 14:26] = 255
        moved = datamodule.augment(
            image, AugmentContext(torch.Generator().manual_seed(0), 0, 0, torch.arange(200))
        ).float()
        left = moved[..., :12].sum((1, 2, 3)) > moved[..., 16:].sum((1, 2, 3))
        assert left.any() == mirrored


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content[:-1], "78,399 bytes of data; its header says 78,400"),
        (lambda content: content + b"x", "more than 78,400 bytes of data; its header says 78,400"),
        (lambda content: b"\x00\x00\x08\x01" + content[4:], "magic number 00000801; an IDX file has 00000803"),
        (lambda content: b"", "magic number missing; an IDX file has 00000803"),
        (
            lambda content: content[:4] + (99).to_bytes(4, "big") + content[8:],
            "has the shape (99, 28, 28); expected (100, 28, 28)",
        ),
    ],
)
def test_a_broken_idx_file(small_data, change, expected):
    path = small_data / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    assert problem(MNIST(root=str(small_data))) == f"{path}: {expected}"


@pytest.mark.parametrize(
    "damage", [lambda packed: packed[:-20], lambda packed: b"text", lambda packed: packed[:40] + b"xx" + packed[42:]]
)
def test_a_broken_gz_file(small_data, damage):
    path = small_data / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert problem(MNIST(root=str(small_data))).startswith(f"{path}: ")


def test_a_label_out_of_range(small_data):
    path = small_data / "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[8 + 5] = 10
    path.write_bytes(gzip.compress(content))
    assert problem(MNIST(root=str(small_data))) == f"{path}: label 10 in row 5 (the first is 0); labels go from 0 to 9"


@pytest.mark.parametrize(
    "unpacked",
    [
        lambda content: content + bytes(1 << 26),
        lambda content: content[:4] + (1 << 30).to_bytes(4, "big") + content[8:] + bytes(1 << 26),
        lambda content: bytes(1 << 26),
    ],
    ids=["content", "header", "zeros"],
)
@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_file_is_read_only_as_far_as_its_header_promises(small_data, name, unpacked, packed):
    folder = small_data / "MNIST/raw"
    content = unpacked(gzip.decompress((folder / f"{name}.gz").read_bytes()))
    (folder / f"{name}.gz").unlink()
    path = folder / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    datamodule = MNIST(root=str(small_data))
    tracemalloc.start()
    assert problem(datamodule).startswith(f"{path}: ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6


def test_many_empty_parts_in_a_gz_file(small_data):
    path = small_data / "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"") * 10_000 + path.read_bytes())
    datamodule = MNIST(root=str(small_data))
    datamodule.setup()
    assert datamodule.num_samples("test") == files.TEST


# CIFAR


def test_cifar_pixels_and_labels_are_read_from_the_right_bytes(small_data):
    for name in ("cifar10", "cifar100"):
        (images, labels), _ = CIFAR(root=str(small_data), variant=name).load()
        expected, numbers = files.pictures(
            cifar.VARIANTS[name].records, len(cifar.VARIANTS[name].class_names), cifar.SHAPE, 0
        )
        assert torch.equal(images[: len(expected)], torch.from_numpy(expected))
        assert torch.equal(labels[: len(numbers)], torch.from_numpy(numbers))


def test_class_names_are_complete():
    assert [len(set(one.class_names)) for one in (*mnist.VARIANTS.values(), *cifar.VARIANTS.values())] == [
        10,
        10,
        10,
        100,
    ]
    assert sorted(cifar.CIFAR100) == list(cifar.CIFAR100)  # the archive's fine_label_names.txt is sorted


def test_a_huge_cifar_file_is_not_read(small_data):
    path = small_data / "cifar-10-batches-bin/test_batch.bin"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert problem(CIFAR(root=str(small_data))) == f"{path}: has {1 << 40:,} bytes; expected 307,300 bytes"


def test_a_cifar100_label_out_of_range(small_data):
    path = small_data / "cifar-100-binary/train.bin"
    content = bytearray(path.read_bytes())
    content[3074 * 7 + 1] = 100
    path.write_bytes(content)
    expected = f"{path}: label 100 in row 7 (the first is 0); labels go from 0 to 99"
    assert problem(CIFAR(root=str(small_data), variant="cifar100")) == expected


@pytest.mark.parametrize("size", [0, 3072, 3073 * 119, 3073 * 121])
def test_a_cifar_file_of_a_wrong_size(small_data, size):
    path = small_data / "cifar-10-batches-bin/data_batch_3.bin"
    path.write_bytes((path.read_bytes() * 2)[:size])
    assert problem(CIFAR(root=str(small_data))) == f"{path}: has {size:,} bytes; expected 368,760 bytes"


def test_a_cifar_label_out_of_range(small_data):
    path = small_data / "cifar-10-batches-bin/test_batch.bin"
    content = bytearray(path.read_bytes())
    content[3073 * 2] = 77
    path.write_bytes(content)
    assert problem(CIFAR(root=str(small_data))) == f"{path}: label 77 in row 2 (the first is 0); labels go from 0 to 9"


# Mistakes in a datamodule of the user


class Own(ClassificationDataModule):
    modality = "features"

    def __init__(self, train, test, **options):
        super().__init__(**options)
        self.sets = train, test

    @property
    def spec(self):
        return DataSpec("features", (2,), ("a", "b") if self.sets[0][1].max() < 3 else tuple(map(str, range(5000))))

    def load(self):
        return self.sets


def own(count: int, shape: tuple[int, ...] = (2,), labels: int = 2):
    return torch.randn(count, *shape), torch.arange(count) % labels


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (own(20, (3,)), own(4), "training set: inputs of shape (3,); the spec says (2,)"),
        (own(20), own(4, (2, 1)), "test set: inputs of shape (2, 1); the spec says (2,)"),
        (own(20), own(4, labels=3), "test set: label 2 in row 2 (the first is 0); labels go from 0 to 1"),
        ((own(20)[0], own(19)[1]), own(4), "training set: 20 inputs and 19 labels; every input needs one label"),
        (own(20), own(0), "test set: 0 inputs and 0 labels; every input needs one label"),
        (
            (torch.tensor([[1.0, 2.0]] * 5 + [[1.0, math.nan]] * 5), own(10)[1]),
            own(4),
            "training set: row 5 (the first is 0) has a value that is NaN or infinite",
        ),
        (
            own(20),
            (torch.tensor([[1.0, math.inf]]), own(1)[1]),
            "test set: row 0 (the first is 0) has a value that is NaN or infinite",
        ),
        (
            (torch.full((20, 2), 6e4, dtype=torch.float16), own(20)[1]),
            (torch.tensor([[1.0, math.inf]]), own(1)[1]),
            "test set: row 0 (the first is 0) has a value",
        ),  # large values are not infinite
        (own(2), own(4), "data.val_fraction: 0.1 of 2 samples leaves sets of 2 and 0; choose another fraction"),
        (
            own(5000, labels=5000),
            own(4),
            "data.val_fraction: 0.1 of 5000 samples leaves sets of 5000 and 0; choose another fraction: it is rounded in"
            " each class, and the largest class has 1 sample",
        ),
    ],
)
def test_own_data_that_does_not_fit_its_spec(train, test, expected):
    assert problem(Own(train, test)).startswith(expected)


def test_a_constant_feature_and_a_missing_class_are_accepted():
    inputs, labels = own(20)
    inputs[:, 1] = 3.0
    datamodule = Own((inputs, torch.zeros_like(labels)), own(4))
    datamodule.setup()
    assert datamodule.std[1] == 1
    assert datamodule.mean[1] == 3


def test_iris_is_fishers_corrected_data():
    datamodule = Iris()
    rows = (PROJECT / "datamodules/iris.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(rows) == 150
    assert rows[34] == "4.9,3.1,1.5,0.2,setosa"  # UCI's copy has 0.1
    assert rows[37] == "4.9,3.6,1.4,0.1,setosa"  # UCI's copy has 3.1,1.5
    (inputs, labels), official_test = datamodule.load()
    assert official_test is None
    torch.testing.assert_close(inputs.mean(0), torch.tensor([5.8433, 3.0573, 3.7580, 1.1993]), atol=1e-4, rtol=0)
    assert torch.bincount(labels).tolist() == [50, 50, 50]
    assert torch.bincount(datamodule.splits()["test"][1]).tolist() == [10, 10, 10]


# Any damage


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """The content, truncated, with a flipped bit or with inserted bytes, at a random position."""
    place = int(generator.integers(len(content)))
    return {
        0: content[:place],
        1: content[:place] + bytes([content[place] ^ (1 << int(generator.integers(8)))]) + content[place + 1 :],
        2: content[:place] + generator.bytes(int(generator.integers(1, 9))) + content[place:],
    }[int(generator.integers(3))]


@pytest.mark.faults(
    "data files cut, flipped, with bytes in between, at random", "one line that names the file, or no harm"
)
@pytest.mark.parametrize("name", ["MNIST/raw/train-images-idx3-ubyte.gz", "MNIST/raw/t10k-labels-idx1-ubyte.gz",
                                  "cifar-10-batches-bin/data_batch_1.bin",
                                  pytest.param("text/train.tsv", marks=pytest.mark.needs("text"))])  # fmt: skip
def test_any_damage_is_one_line_or_harmless(name, small_data):
    path, generator, refused = small_data / name, np.random.default_rng(0), []
    content = path.read_bytes()
    for _ in range(25):
        path.write_bytes(damaged(content, generator))
        datamodule = {
            "MNIST": lambda: MNIST(root=str(small_data)),
            "cifar-10-batches-bin": lambda: CIFAR(root=str(small_data)),
            "text": lambda: importlib.import_module("datamodules.text").Text(
                str(path), text_column="text", test=None, dataset=None, cache=str(small_data / "cache")
            ),
        }[name.split("/")[0]]()
        try:
            datamodule.prepare_data()
            datamodule.setup()
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert not any("\n" in message for message in refused)
    assert all(path.name in message or "class" in message for message in refused)
