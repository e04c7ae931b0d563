"""Results that take long to compute, stored in folders that are named by the SHA-256 of everything they depend on."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from engine.contracts import DataError, one_line

FORMAT = "1"  # of the stored files; folders of another format are not used

T = TypeVar("T")


def load_or_create(
    cache: Path, kind: str, key: Iterable[object], create: Callable[[Path], None], load: Callable[[Path], T]
) -> T:
    """Load a result from the cache, after creating it if it is not there. The caller holds the lock of `cache`.

    Args:
        cache: Folder of all results.
        kind: Beginning of the folder's name.
        key: Everything that the result depends on.
        create: Writes the files of the result into an empty folder.
        load: Reads these files.

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
