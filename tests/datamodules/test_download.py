"""Downloads from a server on this machine: with a checksum, by one process at a time, never half-written."""

import hashlib
import io
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules import cifar, mnist
from datamodules.cifar import CIFAR
from datamodules.mnist import MNIST
from datamodules.parts.download import RemoteFile, fetch, unpack
from engine.contracts import DataError
from tests import files


class Server:
    """Serves a folder on loopback and records the requests."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        requests = self.requests

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                requests.append(self.path)

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
NOWHERE = "http://127.0.0.1:9/"  # the port of "discard", where no server listens


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_a_download_is_verified_and_readable_by_all(tmp_path, served):
    (tmp_path / "served/file.bin").write_bytes(CONTENT)
    fetch([FILE], tmp_path / "data", [NOWHERE, served.address + "absent", served.address])
    assert (tmp_path / "data/file.bin").read_bytes() == CONTENT
    assert (tmp_path / "data/file.bin").stat().st_mode & 0o444 == 0o444
    assert left_in(tmp_path / "data") == {"file.bin"}
    fetch([FILE], tmp_path / "data", [NOWHERE])  # the file exists


@pytest.mark.faults(
    "a download is cut off, too long or another file", "refused with its name; nothing is left under the name"
)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (CONTENT[:-1], "received 1,279,999 of 1,280,000 bytes"),
        (CONTENT + b"x", "received more than 1,280,000 bytes"),
        (CONTENT[:-1] + b"x", "SHA-256 is "),
        (b"", "received 0 of 1,280,000 bytes"),
    ],
)
def test_wrong_content_is_refused_and_leaves_nothing(tmp_path, served, content, expected):
    (tmp_path / "served/file.bin").write_bytes(content)
    with pytest.raises(DataError) as caught:
        fetch([FILE], tmp_path / "data", [served.address])
    assert expected in str(caught.value)
    assert left_in(tmp_path / "data") == set()


def test_without_a_network_the_error_names_file_folder_and_urls(tmp_path):
    with pytest.raises(DataError) as caught:
        MNIST(root=str(tmp_path)).prepare_data()
    message = str(caught.value)
    assert "\n" not in message
    folder = tmp_path / "MNIST/raw"
    names = [file.name for file in mnist.VARIANTS["mnist"].files]
    for part in (f"put {', '.join(names)} into {folder}", str(folder), *mnist.VARIANTS["mnist"].mirrors, "data.root"):
        assert part in message
    assert left_in(folder) == set()


def test_two_processes_fetch_each_file_once(tmp_path, served):
    (tmp_path / "served/file.bin").write_bytes(CONTENT)
    both = [threading.Thread(target=fetch, args=([FILE], tmp_path / "data", [served.address])) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert served.requests == ["/file.bin"]
    assert (tmp_path / "data/file.bin").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data.root: cannot write to .*/file/MNIST/raw \(Not a directory\)"):
        MNIST(root=str(tmp_path / "file")).prepare_data()


def test_mnist_from_a_mirror(small_data, tmp_path, monkeypatch):
    source = small_data / "MNIST/raw"
    remote = tuple(_remote(path) for path in (source / file.name for file in mnist.VARIANTS["mnist"].files))
    monkeypatch.setitem(mnist.VARIANTS, "mnist", replace(mnist.VARIANTS["mnist"], files=remote))
    with Server(source) as server:
        datamodule = MNIST(root=str(tmp_path / "new"), mirrors=[server.address])
        datamodule.prepare_data()
        assert len(server.requests) == 4
        datamodule.prepare_data()
        assert len(server.requests) == 4
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
        assert len(server.requests) == 1
    datamodule.setup()
    assert datamodule.num_samples("test") == files.TEST
    assert left_in(tmp_path / "new") == {"cifar-10-batches-bin", "cifar-10-binary.tar.gz"}


def _link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.faults("an archive with links, devices, other names, too much in it", "refused; nothing leaves the folder")
@pytest.mark.parametrize(
    "members",
    [
        {"x/a.bin": b"12345", "x/b.bin": b"1234"},
        {"x/a.bin": b"12345", "x/b.bin": _link("x/b.bin")},
        {"../../a.bin": b"12345", "/etc/evil": b"x", "../evil": b"x"},
        {"x/a.bin": bytes(1 << 25)},
    ],
    ids=["other", "link", "outside", "huge"],
)
def test_an_archive_with_other_content_is_not_unpacked(tmp_path, members):
    original = _remote(archive(tmp_path / "a.tar.gz", {"x/a.bin": b"12345"}))
    archive(tmp_path / "a.tar.gz", members)
    with pytest.raises(
        DataError,
        match=r"a.tar.gz: the SHA-256 differs from the original archive; delete the file to download it again",
    ):
        unpack(original, tmp_path)
    assert left_in(tmp_path) == {"a.tar.gz"}


@pytest.mark.faults("an archive with links, devices, other names, too much in it", "refused; nothing leaves the folder")
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_not_unpacked(tmp_path, fraction):
    packed = archive(tmp_path / "a.tar.gz", {"x/a.bin": CONTENT})
    original = _remote(packed)
    packed.write_bytes(packed.read_bytes()[: int(fraction * packed.stat().st_size)])
    with pytest.raises(DataError, match="differs from the original archive"):
        unpack(original, tmp_path)
    assert left_in(tmp_path) == {"a.tar.gz"}


def test_a_huge_archive_is_not_read(tmp_path):
    original = _remote(archive(tmp_path / "a.tar.gz", {"x/a.bin": CONTENT}))
    with (tmp_path / "a.tar.gz").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="differs from the original archive"):
        unpack(original, tmp_path)


def test_unpacking_replaces_only_the_files_of_the_archive(tmp_path):
    original = _remote(archive(tmp_path / "a.tar.gz", {"x/a.bin": b"12345", "x/b.bin": CONTENT}))
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.bin").write_bytes(b"old")
    (tmp_path / "x/mine.txt").touch()
    unpack(original, tmp_path)
    assert (tmp_path / "x/a.bin").read_bytes() == b"12345"
    assert (tmp_path / "x/b.bin").read_bytes() == CONTENT
    assert left_in(tmp_path / "x") == {"a.bin", "b.bin", "mine.txt"}
    assert left_in(tmp_path) == {"a.tar.gz", "x"}
