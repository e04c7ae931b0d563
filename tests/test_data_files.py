"""Files on disk: every layout is found, what is broken is said in one line, downloads are checked and never half there."""

import gzip
import hashlib
import io
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from datamodules import cifar, mnist
from datamodules.cifar import CIFAR
from datamodules.classification import ClassificationDataModule, DataError, DataSpec
from datamodules.download import RemoteFile, extract, fetch
from datamodules.iris import Iris
from datamodules.mnist import MNIST
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


def test_files_that_are_all_there_need_no_writing(small_data, monkeypatch):
    monkeypatch.setattr(mnist, "fetch", lambda *_: pytest.fail("nothing is missing"))
    monkeypatch.setattr(cifar, "fetch", lambda *_: pytest.fail("nothing is missing"))
    MNIST(root=str(small_data)).prepare_data()
    CIFAR(root=str(small_data)).prepare_data()


def test_digits_are_turned_and_clothing_is_mirrored(small_data):
    for variant, mirrored in (("mnist", False), ("fashion", True)):
        datamodule = MNIST(root=str(small_data), variant=variant, augment_images=True)
        image = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
        image[:, :, 13:15, 14:26] = 255
        moved = datamodule.augment(image, torch.Generator().manual_seed(0)).float()
        left = moved[..., :12].sum((1, 2, 3)) > moved[..., 16:].sum((1, 2, 3))
        assert left.any() == mirrored


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content[:-1], "78,399 bytes of data; its header promises 78,400"),
        (lambda content: content + b"x", "78,401 bytes of data; its header promises 78,400"),
        (lambda content: b"\x00\x00\x08\x01" + content[4:], "magic number 00000801; an IDX file has 00000803"),
        (lambda content: b"", "magic number missing; an IDX file has 00000803"),
        (
            lambda content: content[:4] + (99).to_bytes(4, "big") + content[8:],
            "holds (99, 28, 28); expected (100, 28, 28)",
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
    assert problem(MNIST(root=str(small_data))) == "test set: label 10 in row 5; labels go from 0 to 9"


# CIFAR


def test_cifar_pixels_and_labels_are_where_the_format_says(small_data):
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


@pytest.mark.parametrize("size", [0, 3072, 3073 * 119, 3073 * 121])
def test_a_cifar_file_of_a_wrong_size(small_data, size):
    path = small_data / "cifar-10-batches-bin/data_batch_3.bin"
    path.write_bytes((path.read_bytes() * 2)[:size])
    assert problem(CIFAR(root=str(small_data))) == f"{path}: {size:,} bytes; expected 368,760, records of 3073"


def test_a_cifar_label_out_of_range(small_data):
    path = small_data / "cifar-10-batches-bin/test_batch.bin"
    content = bytearray(path.read_bytes())
    content[3073 * 2] = 77
    path.write_bytes(content)
    assert problem(CIFAR(root=str(small_data))) == "test set: label 77 in row 2; labels go from 0 to 9"


# What a user's own datamodule may get wrong


class Own(ClassificationDataModule):
    modality = "features"

    def __init__(self, train, test, **options):
        super().__init__(**options)
        self.sets = train, test

    @property
    def spec(self):
        return DataSpec("features", (2,), ("a", "b"))

    def load(self):
        return self.sets


def own(count: int, shape: tuple[int, ...] = (2,), labels: int = 2):
    return torch.randn(count, *shape), torch.arange(count) % labels


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (own(20, (3,)), own(4), "training set: inputs of shape (3,); the spec says (2,)"),
        (own(20), own(4, (2, 1)), "test set: inputs of shape (2, 1); the spec says (2,)"),
        (own(20), own(4, labels=3), "test set: label 2 in row 2; labels go from 0 to 1"),
        ((own(20)[0], own(19)[1]), own(4), "training set: 20 inputs and 19 labels; there must be one label each"),
        (own(20), own(0), "test set: 0 inputs and 0 labels; there must be one label each"),
        (own(2), own(4), "data.val_fraction: 0.1 leaves 2 training and 0 validation samples of 2; choose another"),
    ],
)
def test_own_data_that_does_not_fit_its_spec(train, test, expected):
    assert problem(Own(train, test)) == expected


def test_a_constant_feature_and_an_absent_class_do_no_harm():
    inputs, labels = own(20)
    inputs[:, 1] = 3.0
    datamodule = Own((inputs, torch.zeros_like(labels)), own(4))
    datamodule.setup()
    assert torch.isfinite(next(iter(datamodule.train_dataloader()))[0]).all()
    assert next(iter(datamodule.train_dataloader()))[0][:, 1].abs().max() == 0


def test_iris_is_fishers_corrected_data():
    datamodule = Iris()
    rows = (Path(__file__).parent.parent / "datamodules/iris.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(rows) == 150
    assert rows[34] == "4.9,3.1,1.5,0.2,setosa"  # UCI's copy has 0.1
    assert rows[37] == "4.9,3.6,1.4,0.1,setosa"  # UCI's copy has 3.1,1.5
    (inputs, _), (test_inputs, test_labels) = datamodule.load()
    everything = torch.cat([inputs, test_inputs])
    torch.testing.assert_close(everything.mean(0), torch.tensor([5.8433, 3.0573, 3.7580, 1.1993]), atol=1e-4, rtol=0)
    assert torch.bincount(test_labels).tolist() == [10, 10, 10]


# Downloads, from a server on this machine


class Server:
    """Serves a folder on loopback and counts what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> "Server":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def served(tmp_path: Path):
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as server:
        yield server


CONTENT = bytes(range(256)) * 5000
FILE = RemoteFile("file.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
NOWHERE = "http://127.0.0.1:9/"  # the port of "discard": nobody listens


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_a_download_is_verified_and_readable_by_all(tmp_path, served):
    (tmp_path / "served/file.bin").write_bytes(CONTENT)
    fetch([FILE], tmp_path / "data", [NOWHERE, served.address + "absent", served.address])
    assert (tmp_path / "data/file.bin").read_bytes() == CONTENT
    assert (tmp_path / "data/file.bin").stat().st_mode & 0o444 == 0o444
    assert left_in(tmp_path / "data") == {"file.bin"}
    fetch([FILE], tmp_path / "data", [NOWHERE])  # there already


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (CONTENT[:-1], "1,279,999 of 1,280,000 bytes"),
        (CONTENT + b"x", "more than 1,280,000 of 1,280,000 bytes"),
        (CONTENT[:-1] + b"x", "SHA-256 is "),
        (b"", "0 of 1,280,000 bytes"),
    ],
)
def test_wrong_content_is_refused_and_leaves_nothing(tmp_path, served, content, expected):
    (tmp_path / "served/file.bin").write_bytes(content)
    with pytest.raises(DataError) as caught:
        fetch([FILE], tmp_path / "data", [served.address])
    assert expected in str(caught.value)
    assert left_in(tmp_path / "data") == set()


def test_without_a_network_the_error_names_file_folder_and_addresses(tmp_path):
    with pytest.raises(DataError) as caught:
        MNIST(root=str(tmp_path)).prepare_data()
    said = str(caught.value)
    assert "\n" not in said
    folder = tmp_path / "MNIST/raw"
    names = [one.name for one in mnist.VARIANTS["mnist"].files]
    for part in (f"put {', '.join(names)} into {folder}", str(folder), *mnist.VARIANTS["mnist"].mirrors, "data.root"):
        assert part in said
    assert left_in(folder) == set()


def test_two_at_once_fetch_each_file_once(tmp_path, served):
    (tmp_path / "served/file.bin").write_bytes(CONTENT)
    both = [threading.Thread(target=fetch, args=([FILE], tmp_path / "data", [served.address])) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert served.asked == ["/file.bin"]
    assert (tmp_path / "data/file.bin").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data.root: cannot write to .*/file/MNIST/raw \(Not a directory\)"):
        MNIST(root=str(tmp_path / "file")).prepare_data()


def test_mnist_from_a_mirror(small_data, tmp_path, monkeypatch):
    source = small_data / "MNIST/raw"
    remote = tuple(_remote(path) for path in (source / one.name for one in mnist.VARIANTS["mnist"].files))
    monkeypatch.setitem(mnist.VARIANTS, "mnist", replace(mnist.VARIANTS["mnist"], files=remote))
    with Server(source) as server:
        datamodule = MNIST(root=str(tmp_path / "new"), mirrors=[server.address])
        datamodule.prepare_data()
        assert len(server.asked) == 4
        datamodule.prepare_data()
        assert len(server.asked) == 4
    datamodule.setup()
    assert datamodule.num_samples("test") == files.TEST


def _remote(path: Path) -> RemoteFile:
    content = path.read_bytes()
    return RemoteFile(path.name, len(content), hashlib.sha256(content).hexdigest())


def archive(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_cifar_from_a_mirror(small_data, tmp_path, monkeypatch):
    folder = small_data / "cifar-10-batches-bin"
    served = tmp_path / "served"
    served.mkdir()
    members = {f"cifar-10-batches-bin/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    packed = archive(served / "cifar-10-binary.tar.gz", members)
    monkeypatch.setitem(cifar.VARIANTS, "cifar10", replace(cifar.VARIANTS["cifar10"], archive=_remote(packed)))
    with Server(served) as server:
        datamodule = CIFAR(root=str(tmp_path / "new"), mirrors=[server.address])
        datamodule.prepare_data()
        datamodule.prepare_data()
        assert len(server.asked) == 1
    datamodule.setup()
    assert datamodule.num_samples("test") == files.TEST
    assert left_in(tmp_path / "new") == {"cifar-10-batches-bin", "cifar-10-binary.tar.gz"}


def _link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"x/a.bin": b"12345"}, "lacks b.bin"),
        ({"x/a.bin": b"12345", "x/b.bin": b"1234"}, "b.bin is not a file of 5 bytes"),
        ({"x/a.bin": b"12345", "x/b.bin": _link("x/b.bin")}, "b.bin is not a file of 5 bytes"),
    ],
)
def test_an_archive_with_wrong_members(tmp_path, members, expected):
    with pytest.raises(DataError, match=expected):
        extract(archive(tmp_path / "a.tar.gz", members), {"a.bin": 5, "b.bin": 5}, tmp_path / "out")
    assert left_in(tmp_path) == {"a.tar.gz"}


def test_members_cannot_leave_the_folder(tmp_path):
    members = {"../../a.bin": b"12345", "/etc/evil": b"x", "../evil": b"x"}
    extract(archive(tmp_path / "a.tar.gz", members), {"a.bin": 5}, tmp_path / "out")
    assert left_in(tmp_path) == {"a.tar.gz", "out"}
    assert left_in(tmp_path / "out") == {"a.bin"}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive(tmp_path, share):
    packed = archive(tmp_path / "a.tar.gz", {"x/a.bin": CONTENT})
    packed.write_bytes(packed.read_bytes()[: int(share * packed.stat().st_size)])
    with pytest.raises(DataError, match=r"broken archive|lacks a.bin"):
        extract(packed, {"a.bin": len(CONTENT)}, tmp_path / "out")
    assert left_in(tmp_path) == {"a.tar.gz"}
