"""Find a dataset's files, or fetch them: mirrors, checksum, progress, one process at a time, nothing half-written.

What is downloaded must match its SHA-256. What the user put in place is the user's: its reader checks size and format.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.request import urlopen

from filelock import FileLock
from tqdm import tqdm

from engine.contracts import DataError

TIMEOUT_SECONDS = 30  # without a byte; a slow mirror is given time, a dead one is not waited for
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of known content: name, size in bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


def fetch(files: Sequence[RemoteFile], folder: Path, mirrors: Sequence[str]) -> None:
    """Put each of `files` that is not there yet into `folder`, from the first mirror that has it.

    Args:
        files: What to fetch.
        folder: Where to; it is made if need be.
        mirrors: Addresses to which a name is appended, tried in this order.

    Raises:
        DataError: if no mirror gave the right content; it names files, folder and addresses.
    """
    with locked(folder):
        missing = [file for file in files if not (folder / file.name).exists()]
        for file in missing:
            failures = _fetch_one(file, folder, mirrors)
            if failures:
                names = ", ".join(one.name for one in missing if not (folder / one.name).exists())
                raise DataError(
                    f"data.root: {file.name} is not in {folder} and could not be downloaded from"
                    f" {', nor from '.join(failures)}; put {names} into {folder}, or point data.root to where they are"
                )


@contextmanager
def locked(folder: Path, key: str = "data.root") -> Iterator[None]:
    """Hold `folder`, which `key` of the config names, for one process; others wait, and then find the files there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except OSError as error:
        raise DataError(f"{key}: cannot write to {folder} ({error.strerror or error})") from None


def reason(error: BaseException) -> str:
    """Why something failed, in one line of bearable length."""
    inner = getattr(error, "reason", None) or error
    return " ".join(str(inner).split())[:200] or type(error).__name__


def extract(archive: Path, members: Mapping[str, int], folder: Path) -> None:
    """Unpack the named regular files of a tar archive into `folder`, flat.

    Args:
        archive: a .tar.gz.
        members: base name -> size in bytes; anything else in the archive is passed over.
        folder: Nothing is put there unless all of it could be read.

    Raises:
        DataError: if the archive is broken, or a member is missing, no regular file, or of another size.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as temporary:
        found = set()
        try:
            with tarfile.open(archive, "r|gz") as tar:
                for member in tar:
                    name = Path(member.name).name
                    if name not in members or name in found:
                        continue
                    source = tar.extractfile(member) if member.isreg() and member.size == members[name] else None
                    if source is None:
                        raise DataError(
                            f"{archive}: {name} is not a file of {members[name]:,} bytes; delete the archive"
                        )
                    with open(Path(temporary) / name, "wb") as target:
                        shutil.copyfileobj(source, target)
                    found.add(name)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{archive}: broken archive ({error}); delete it, and it is downloaded again") from None
        if missing := sorted(set(members) - found):
            raise DataError(f"{archive}: lacks {', '.join(missing)}; delete it, and it is downloaded again")
        os.chmod(temporary, 0o755)
        folder.mkdir(exist_ok=True)
        for name in members:
            os.replace(Path(temporary) / name, folder / name)


def _fetch_one(file: RemoteFile, folder: Path, mirrors: Sequence[str]) -> list[str]:
    """Nothing, or why each of the mirrors failed."""
    failures = []
    for mirror in mirrors:
        address = mirror.rstrip("/") + "/" + file.name
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{file.name}-", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as target:
                _download(address, file, target)
            os.chmod(temporary, 0o644)
            os.replace(temporary, folder / file.name)
            return []
        except (OSError, HTTPException, ValueError) as error:
            failures.append(f"{address} ({reason(error)})")
        finally:
            Path(temporary).unlink(missing_ok=True)
    return failures


def _download(address: str, file: RemoteFile, target: BinaryIO) -> None:
    """Write the content of `address` to `target`; ValueError if it is not that of `file`."""
    digest, received = hashlib.sha256(), 0
    bar = tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, disable=None, leave=False)
    with urlopen(address, timeout=TIMEOUT_SECONDS) as response, bar as progress:
        while received <= file.size and (block := response.read(_CHUNK_BYTES)):
            received += len(block)
            digest.update(block)
            target.write(block)
            progress.update(len(block))
    if received != file.size:
        raise ValueError(
            f"{'more than ' if received > file.size else ''}{min(received, file.size):,} of {file.size:,} bytes"
        )
    if digest.hexdigest() != file.sha256:
        raise ValueError(f"SHA-256 is {digest.hexdigest()[:12]}..., not {file.sha256[:12]}...")
    target.flush()
    os.fsync(target.fileno())
