"""A cache of slow computations. Each result is a folder that is named by the SHA-256 of its key."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from engine.contracts import DataError, one_line

FORMAT = "1"  # format of the stored files; results in other formats are ignored

T = TypeVar("T")


def load_or_create(
    cache: Path, kind: str, key: Iterable[object], create: Callable[[Path], None], load: Callable[[Path], T]
) -> T:
    """Load a result from the cache. A missing result is created first. The caller must hold the lock of `cache`.

    Args:
        cache: Folder of all results.
        kind: Prefix of the folder's name.
        key: All values that the result depends on.
        create: Function that writes the result to an empty folder.
        load: Function that reads the result from the folder.

    Raises:
        DataError: if the files cannot be read.
    """
    digest = hashlib.sha256()
    for value in (FORMAT, *key):
        text = str(value).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    folder = cache / f"{kind}-{digest.hexdigest()[:32]}"
    if not folder.is_dir():
        with TemporaryDirectory(dir=cache, prefix=".creating-") as temporary:
            created = Path(temporary) / "created"
            created.mkdir()
            create(created)
            os.replace(created, folder)
    try:
        return load(folder)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"data.cache: {folder} is damaged ({one_line(error)}); delete it to create it again") from None
