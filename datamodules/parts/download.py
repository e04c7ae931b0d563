"""Download the files of a dataset from mirrors, and verify their checksums. A lock lets one process download at a time.

Existing files are not verified here. They are checked when they are read.
"""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from filelock import FileLock
from tqdm import tqdm

from engine.contracts import DataError, one_line

TIMEOUT_SECONDS = 30  # maximum wait for the next bytes
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file to download: its name, size in bytes and SHA-256 in hex."""

    name: str
    size: int
    sha256: str


def fetch(files: Sequence[RemoteFile], folder: Path, mirrors: Sequence[str]) -> None:
    """Download the files that are missing in `folder`.

    Args:
        files: The files that are needed.
        folder: Folder of the files. It is created if it does not exist.
        mirrors: Base URLs, tried in this order for every file.

    Raises:
        DataError: if a file cannot be downloaded from any mirror.
    """
    with lock_folder(folder):
        missing = [file for file in files if not (folder / file.name).exists()]
        for i, file in enumerate(missing):
            failures = []
            for mirror in mirrors:
                url = mirror.rstrip("/") + "/" + file.name
                try:
                    _download(url, file, folder)
                    break
                except (OSError, HTTPException, ValueError) as error:
                    failures.append(f"{url} ({one_line(error)})")
            else:
                names = ", ".join(other.name for other in missing[i:])
                raise DataError(
                    f"data.root: {file.name} is not in {folder} and could not be downloaded from"
                    f" {', nor from '.join(failures)}; put {names} into {folder},"
                    " or set data.root to the folder that contains them"
                )


@contextmanager
def lock_folder(folder: Path, key: str = "data.root") -> Iterator[None]:
    """Create `folder` and lock it, so that other processes wait. `key` is the config key of the folder, for errors."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except OSError as error:
        raise DataError(f"{key}: cannot write to {folder} ({error.strerror or error})") from None


def unpack(archive: RemoteFile, folder: Path) -> None:
    """Verify the SHA-256 of an archive in `folder`, and unpack it.

    Args:
        archive: A .tar.gz file.
        folder: Folder of the archive and of its members.

    Raises:
        DataError: if the SHA-256 is wrong.
    """
    path = folder / archive.name
    with path.open("rb") as file:
        is_original = path.stat().st_size == archive.size
        if not is_original or hashlib.file_digest(file, "sha256").hexdigest() != archive.sha256:
            raise DataError(
                f"{path}: the SHA-256 differs from the original archive; delete the file to download it again"
            )
    with TemporaryDirectory(dir=folder, prefix=".unpacking-") as temporary, tarfile.open(path) as tar:
        for member in tar:
            if (source := tar.extractfile(member)) is not None:  # a regular file
                unpacked = Path(temporary) / Path(member.name).name
                with unpacked.open("wb") as target:
                    shutil.copyfileobj(source, target)
                (folder / member.name).parent.mkdir(exist_ok=True)
                os.replace(unpacked, folder / member.name)


def _download(url: str, file: RemoteFile, folder: Path) -> None:
    """Download `file` from `url` to `folder`.

    Raises:
        ValueError: if the size or the SHA-256 is wrong.
    """
    digest, received = hashlib.sha256(), 0
    with TemporaryDirectory(dir=folder, prefix=".downloading-") as temporary:
        path = Path(temporary) / file.name
        progress = tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, disable=None, leave=False)
        with urlopen(url, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as target, progress:
            while received <= file.size and (chunk := response.read(CHUNK_BYTES)):
                received += len(chunk)
                digest.update(chunk)
                target.write(chunk)
                progress.update(len(chunk))
            target.flush()
            os.fsync(target.fileno())
        if received != file.size:
            found = f"more than {file.size:,}" if received > file.size else f"{received:,} of {file.size:,}"
            raise ValueError(f"received {found} bytes")
        if digest.hexdigest() != file.sha256:
            raise ValueError(f"SHA-256 is {digest.hexdigest()[:12]}..., not {file.sha256[:12]}...")
        os.replace(path, folder / file.name)
