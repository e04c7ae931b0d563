"""A checkpoint's file: written whole or not at all, and loaded only if it is what was written.

It is the zip file that `torch.save` makes, readable by `torch.load` as ever, with its SHA-256 as the archive's comment. A
file beside it could be from before or after a crash; a comment cannot. Torch itself checks nothing: sixteen flipped bytes
in a tensor load without a word (https://github.com/pytorch/pytorch/issues/126952). Looking at a file needs no torch.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64  # bytes at the end of the file: the mark and the hexadecimal digest
_CHUNK = 2**20


class BrokenCheckpointError(ValueError):
    """A file that is no whole checkpoint of this project's: the message names it and says what is wrong."""


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write `checkpoint` so that `path` is at any moment the old file or the new one, whole.

    It is written beside its target, synced to the disk and renamed; a temporary folder may be on another disk.

    Raises:
        OSError: if it cannot be written; what was there before is still there.
    """
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    hashed = None
    try:
        with part.open("w+b") as file:
            hashed = _Hashed(file)
            torch.save(checkpoint, hashed)  # type: ignore[arg-type]
            comment = _MARK + hashed.digest.hexdigest().encode()
            file.seek(-2, os.SEEK_END)  # a zip file ends with the length of its comment
            file.write(len(comment).to_bytes(2, "little") + comment)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except RuntimeError as error:  # torch's, in the place of what went wrong while it wrote
        raise (hashed and hashed.error) or error from None
    finally:
        part.unlink(missing_ok=True)


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint in `path`, verified; nothing but tensors and plain values can be in it.

    Raises:
        BrokenCheckpointError: if it is missing, damaged, or no checkpoint of this project's.
    """
    import torch

    verify(path)
    try:
        with plain_values_only(path):
            checkpoint: dict[str, Any] = torch.load(path, map_location, weights_only=True)
    except (RuntimeError, EOFError, LookupError, TypeError, AttributeError):
        raise BrokenCheckpointError(f"{path} is no checkpoint") from None
    return checkpoint


@contextmanager
def plain_values_only(path: Path) -> Iterator[None]:
    """Say in a line what torch says in twenty, and without its advice to load pickled code."""
    try:
        yield
    except UnpicklingError:
        raise BrokenCheckpointError(f"{path} holds pickled objects, which are never loaded") from None


def verify(path: Path, ours: bool = False) -> None:
    """See that `path` holds what was written to it; of a file that another trainer wrote, that its parts do.

    Args:
        path: Of a checkpoint.
        ours: Refuse those of other trainers.

    Raises:
        BrokenCheckpointError: if not.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _COMMENT:
                raise BrokenCheckpointError(f"{path} is {'empty' if size == 0 else 'cut off'}")
            if file.read(4) != b"PK\x03\x04":
                raise BrokenCheckpointError(f"{path} is no checkpoint")
            file.seek(size - _COMMENT)
            comment = file.read()
            if comment.startswith(_MARK):
                file.seek(0)
                _verify_whole(path, file, size, comment)
            elif ours:
                raise BrokenCheckpointError(f"{path} is cut off, or no checkpoint of a run (it has no checksum)")
            else:
                _verify_parts(path)
    except OSError as error:
        raise BrokenCheckpointError(f"{path} cannot be read ({error.strerror})") from None


def _verify_whole(path: Path, file: BinaryIO, size: int, comment: bytes) -> None:
    digest, left = hashlib.sha256(), size - _COMMENT - 2
    while left:
        chunk = file.read(min(left, _CHUNK))
        digest.update(chunk)
        left -= len(chunk)
    digest.update(b"\0\0")  # the comment's length, as it was when the digest was taken
    if file.read(2) != _COMMENT.to_bytes(2, "little") or comment != _MARK + digest.hexdigest().encode():
        raise BrokenCheckpointError(f"{path} is damaged: its content does not match its checksum")


def _verify_parts(path: Path) -> None:
    """A zip file has a checksum of each part, though none of the whole."""
    try:
        with ZipFile(path) as archive:
            broken = "its comment" if archive.comment else archive.testzip()  # a comment is our checksum, or was
    except (BadZipFile, OSError, ValueError, NotImplementedError):
        raise BrokenCheckpointError(f"{path} is cut off, or no checkpoint") from None
    if broken is not None:
        raise BrokenCheckpointError(f"{path} is damaged in {broken}")


def newest(folder: Path, fall_back: bool) -> Path | None:
    """The checkpoint that the run in `folder` goes on from; null if it has written none yet.

    Args:
        folder: Of a run.
        fall_back: Where the last is broken, take the best.

    Raises:
        BrokenCheckpointError: if the last, or with `fall_back` the best too, is broken.
    """
    found = [path for name in ("last", "best") if (path := folder / f"checkpoints/{name}.ckpt").is_file()]
    broken: BrokenCheckpointError | None = None
    for path in found:
        try:
            verify(path, ours=True)
        except BrokenCheckpointError as error:
            broken = broken or error
            continue
        if broken and not fall_back:
            raise BrokenCheckpointError(f"{broken}; {path} is whole: go on from it by --resume {path}")
        return path
    if broken:
        raise broken
    return None


class _Hashed:
    """A file as `torch.save` writes to it, with the digest of what went through, and the first thing that went wrong."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.error: BaseException | None = None
        self._file, self.flush = file, file.flush

    def write(self, data: bytes) -> int:
        try:
            return self._put(data)
        except BaseException as error:
            self.error = self.error or error
            raise

    def _put(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _sync_folder(folder: Path) -> None:
    """Make the renaming last; Windows cannot, and need not."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
