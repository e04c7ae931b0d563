"""A cache of slow computations.

The name of the folder of a result contains the SHA-256 of its key and the SHA-256 of its content. The name therefore shows
whether a file was changed after it was written. Verifying 1 GB takes 0.7 s.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from datamodules.parts.download import lock_folder
from engine.terminal import print_line

FORMAT = "3"  # format of the stored files; results in other formats are ignored

UNFINISHED = ".creating-"  # prefix of folders that are not complete
LARGE_BYTES = 10**9  # a result that takes seconds to verify
CHUNK_BYTES = 1 << 20  # that are read at a time

T = TypeVar("T")


def load_or_create(
    cache: Path, kind: str, key: Iterable[object], create: Callable[[Path], None], load: Callable[[Path], T]
) -> T:
    """Load a result from the cache. If it is missing or was changed, it is created first.

    Every process verifies the result. If it is missing, one process creates it and the others wait.

    Args:
        cache: Folder of all results.
        kind: Prefix of the folder's name.
        key: All values that the result depends on.
        create: Function that writes the result to an empty folder.
        load: Function that reads the result from the folder.
    """
    digest = hashlib.sha256()
    for value in (FORMAT, *key):
        text = str(value).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    prefix = f"{kind}-{digest.hexdigest()[:32]}-"
    if (folder := _find(cache, prefix)) is None:
        with lock_folder(cache, "data.cache"):
            if (folder := _find(cache, prefix)) is None:  # another process may have created it meanwhile
                folder = _create(cache, prefix, create)
    return load(folder)


def _find(cache: Path, prefix: str) -> Path | None:
    """Return the folder of a result that was not changed."""
    found = (folder for folder in sorted(cache.glob(f"{prefix}*")) if _is_folder(folder))
    return next((folder for folder in found if folder.name == prefix + _digest(folder)), None)


def _create(cache: Path, prefix: str, create: Callable[[Path], None]) -> Path:
    for changed in cache.glob(f"{prefix}*"):
        print_line(f"data.cache: {changed} was changed after it was written; it is created again")
        shutil.rmtree(changed) if _is_folder(changed) else changed.unlink()
    for unfinished in cache.glob(f"{UNFINISHED}*"):  # of a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    with TemporaryDirectory(dir=cache, prefix=UNFINISHED) as temporary:
        created = Path(temporary) / "created"
        created.mkdir()
        create(created)
        folder = cache / (prefix + _digest(created))
        os.replace(created, folder)
    return folder


def create_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Create a .npy file, and memory-map it.

    The disk space is allocated now, because writing to a mapped file on a full disk would kill the process.

    Raises:
        OSError: if the disk is full.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def describe_files(paths: Sequence[str]) -> Iterator[str]:
    """Yield name, size and modification time of each file. They change if the file changes."""
    for path in map(os.path.abspath, paths):
        try:
            status = os.stat(path)
            yield f"{path}:{status.st_size}:{status.st_mtime_ns}"
        except OSError:
            yield f"{path}:missing"


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _digest(folder: Path) -> str:
    """Return a SHA-256 of the names and contents of all files.

    The result is "" if the folder contains anything other than readable files.
    """
    digest, files = hashlib.sha256(), sorted(folder.iterdir())
    if any(path.is_symlink() or not path.is_file() for path in files):  # reading a pipe or a device might never end
        return ""
    size = sum(path.stat().st_size for path in files)
    is_hidden = None if size > LARGE_BYTES else True  # with None, tqdm shows the bar only in a terminal
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "disable": is_hidden, "leave": False}
    with tqdm(total=size, desc=f"verifying {folder.parent.name}", **options) as progress:
        for path in files:
            content = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        content.update(chunk)
                        progress.update(len(chunk))
            except OSError:
                return ""
            digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
            digest.update(content.digest())
    return digest.hexdigest()[:32]
