"""What is made once and kept: a folder named by the SHA-256 of all that it was made from."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from datamodules.parts.download import reason
from engine.contracts import DataError

_FORMAT = "1"  # of what is kept; with another one all is made anew


def kept(cache: Path, kind: str, key: Iterable[object], make: Callable[[Path], None]) -> Path:
    """The folder of what `make` puts into it, made now or found; the caller holds the lock of `cache`."""
    digest = hashlib.sha256()
    for one in (_FORMAT, *key):
        text = str(one).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    folder = cache / f"{kind}-{digest.hexdigest()[:32]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            make(made)
            os.replace(made, folder)
    return folder


def damaged(folder: Path, error: Exception) -> DataError:
    """What to say of a folder that cannot be read any more."""
    return DataError(f"data.cache: {folder} is damaged ({reason(error)}); delete it, and it is made anew")
