"""Download the files of a dataset: from several mirrors, with a checksum, never half-written, by one process at a time.

A file that the user put into the folder is not checked here. The reader of its format checks it.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from filelock import FileLock
from tqdm import tqdm

from engine.contracts import DataError, one_line

TIMEOUT_SECONDS = 30  # for a server that sends nothing
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file to download: its name, size in bytes and SHA-256 in hex."""

    name: str
    size: int
    sha256: str


def fetch(files: Sequence[RemoteFile], folder: Path, mirrors: Sequence[str]) -> None:
    """Download those of `files` that are not in `folder` yet.

    Args:
        files: The files that are needed.
        folder: Where they belong. It is created if it does not exist.
        mirrors: Base URLs, tried in this order for every file.

    Raises:
        DataError: if no mirror has a file with the right content. The message names the files, the folder and the URLs.
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
                    f" {', nor from '.join(failures)}; put {names} into {folder}, or set data.root to their folder"
                )


@contextmanager
def lock_folder(folder: Path, key: str = "data.root") -> Iterator[None]:
    """Create `folder` and lock it, so that other processes wait. `key` is the config key that names it, for errors."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except OSError as error:
        raise DataError(f"{key}: cannot write to {folder} ({error.strerror or error})") from None


def extract(archive: Path, sizes: Mapping[str, int], folder: Path) -> None:
    """Unpack regular files of a tar archive into `folder`, without the archive's own folders.

    Args:
        archive: A .tar.gz file.
        sizes: Size in bytes of each file that is needed, by its name. Other members of the archive are ignored.
        folder: Where the files belong. Nothing is written there if the archive is broken.

    Raises:
        DataError: if the archive is broken, or a member is missing, is not a regular file, or has another size.
    """
    with TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as temporary:
        found = set()
        try:
            with tarfile.open(archive, "r|gz") as tar:
                for member in tar:
                    name = Path(member.name).name
                    if name not in sizes or name in found:
                        continue
                    source = tar.extractfile(member) if member.isreg() and member.size == sizes[name] else None
                    if source is None:
                        problem = f"{name} is not a file of {sizes[name]:,} bytes"
                        raise DataError(f"{archive}: {problem}; delete the archive")
                    with open(Path(temporary) / name, "wb") as target:
                        shutil.copyfileobj(source, target)
                    found.add(name)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{archive}: broken archive ({error}); delete it to download it again") from None
        if missing := sorted(set(sizes) - found):
            raise DataError(f"{archive}: lacks {', '.join(missing)}; delete it to download it again")
        folder.mkdir(exist_ok=True)
        for name in sizes:
            os.replace(Path(temporary) / name, folder / name)


def _download(url: str, file: RemoteFile, folder: Path) -> None:
    """Put the content of `url` into `folder`.

    Raises:
        ValueError: if it is not the content of `file`.
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
            more = "more than " if received > file.size else ""
            raise ValueError(f"{more}{min(received, file.size):,} of {file.size:,} bytes")
        if digest.hexdigest() != file.sha256:
            raise ValueError(f"SHA-256 is {digest.hexdigest()[:12]}..., not {file.sha256[:12]}...")
        os.replace(path, folder / file.name)
