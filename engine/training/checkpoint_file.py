"""The file of a checkpoint: written completely or not at all, and loaded only if its checksum matches.

It is the zip file that `torch.save` writes, with its SHA-256 as the comment of the archive. So `torch.load` can read it, and
after a crash the checksum cannot be older or newer than the checkpoint. `torch.load` itself checks nothing: it loads flipped
bytes without an error (https://github.com/pytorch/pytorch/issues/126952).

Torch is imported only where it is needed, because `train.py` verifies a checkpoint before it imports torch.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

from engine.contracts import BrokenCheckpointError
from engine.terminal import print_line, shell_word

_MARK = b"sha256:"
_COMMENT_SIZE = len(_MARK) + 64  # bytes at the end of the file: the mark and the hexadecimal digest
_CHUNK_SIZE = 2**20  # bytes
_SEAL = "content_sha256"  # key in the checkpoint of a run for the digest of everything except the values of tensors


def write(checkpoint: dict[str, Any], path: Path, keep_as: Path | None = None) -> None:
    """Write `checkpoint` so that `path` is always either the complete old file or the complete new file.

    The file is written under another name in the same folder, synced to the disk and then renamed.

    Args:
        checkpoint: Tensors and plain values.
        path: The new file.
        keep_as: New name of the old file. If the process is killed, `path` may be missing, but then `keep_as` exists.

    Raises:
        OSError: if it cannot be written; the old file is kept.
    """
    import torch

    hashing = None
    try:
        with _replacing(path, keep_as) as file:
            hashing = _HashingFile(file)
            torch.save(checkpoint, hashing)  # type: ignore[arg-type]
            comment = _MARK + hashing.digest.hexdigest().encode()
            file.seek(-2, os.SEEK_END)  # a zip file ends with the length of its comment
            file.write(len(comment).to_bytes(2, "little") + comment)
    except RuntimeError as error:  # torch raises it in place of an error of the file
        raise (hashing and hashing.error) or error from None


def copy(source: Path, path: Path) -> None:
    """Replace `path` with a copy of `source`. `path` is complete at every moment."""
    with source.open("rb") as original, _replacing(path) as file:
        shutil.copyfileobj(original, file)


@contextmanager
def _replacing(path: Path, keep_as: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file that gets the name `path` when it is complete."""
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(exist_ok=True)  # without its parents: the folder of the run may have been deleted
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            os.replace(path, keep_as)
        os.replace(part, path)
        _sync_folder(path.parent)
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise BrokenCheckpointError(
            f"{error.filename2 or error.filename}: {error.strerror}; move it elsewhere"
        ) from None
    finally:
        with suppress(OSError):  # it may be the name of a folder
            part.unlink()


def seal(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the checkpoint with a digest of its structure and plain values, so that `read_sealed` notices a change."""
    return {**checkpoint, _SEAL: _content_digest(checkpoint)}


def read_sealed(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Like `read`, but accepts only a checkpoint that a run wrote and that no other program changed.

    Raises:
        BrokenCheckpointError: if the file is missing, damaged or changed, or is not a checkpoint of a run.
    """
    checkpoint = read(path, map_location)
    if not isinstance(checkpoint, dict) or _SEAL not in checkpoint:
        raise BrokenCheckpointError(f"{path} is not a checkpoint of a run of this project")
    if checkpoint.pop(_SEAL) != _content_digest(checkpoint):
        raise BrokenCheckpointError(f"{path} was changed after its run wrote it")
    return checkpoint


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Verify and load the checkpoint in `path`. Only tensors and plain values are loaded.

    Raises:
        BrokenCheckpointError: if the file is missing or damaged, or not a checkpoint.
    """
    import torch

    verify(path)
    try:
        with plain_values_only(path):
            checkpoint: dict[str, Any] = torch.load(path, map_location, weights_only=True)
    except (RuntimeError, EOFError, LookupError, TypeError, AttributeError):
        raise BrokenCheckpointError(f"{path} is not a checkpoint") from None
    return checkpoint


@contextmanager
def plain_values_only(path: Path) -> Iterator[None]:
    """Replace torch's long error about pickled objects, which advises to load them, by one line.

    Raises:
        BrokenCheckpointError: if the file holds pickled objects.
    """
    try:
        yield
    except UnpicklingError:
        raise BrokenCheckpointError(f"{path} holds pickled objects, which are never loaded") from None


def verify(path: Path, ours: bool = False) -> None:
    """Check that a checkpoint is undamaged, without loading it.

    Args:
        path: File of the checkpoint.
        ours: Whether to refuse checkpoints that this project did not write. They have no checksum of the whole file, so the
            checksum of each archive member is checked.

    Raises:
        BrokenCheckpointError: if the file is missing, damaged or refused.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _COMMENT_SIZE:
                raise BrokenCheckpointError(f"{path} is {'empty' if size == 0 else 'cut off'}")
            if file.read(4) != b"PK\x03\x04":
                raise BrokenCheckpointError(f"{path} is not a checkpoint")
            file.seek(size - _COMMENT_SIZE)
            comment = file.read()
            if comment.startswith(_MARK):
                file.seek(0)
                _verify_digest(path, file, size, comment)
            elif ours:
                raise BrokenCheckpointError(f"{path} is cut off, or not a checkpoint of a run (it has no checksum)")
            else:
                _verify_members(path)
    except OSError as error:
        raise BrokenCheckpointError(f"{path} cannot be read ({error.strerror})") from None


def _verify_digest(path: Path, file: BinaryIO, size: int, comment: bytes) -> None:
    """Compare the digest of the file with the comment at its end."""
    digest, left = hashlib.sha256(), size - _COMMENT_SIZE - 2
    while left:
        chunk = file.read(min(left, _CHUNK_SIZE))
        digest.update(chunk)
        left -= len(chunk)
    digest.update(b"\0\0")  # the length of the comment when the digest was computed
    if file.read(2) != _COMMENT_SIZE.to_bytes(2, "little") or comment != _MARK + digest.hexdigest().encode():
        raise BrokenCheckpointError(f"{path} is damaged: its content does not match its checksum")


def _verify_members(path: Path) -> None:
    """Check the checksum that a zip file has of each member."""
    try:
        with ZipFile(path) as archive:
            broken = "its comment" if archive.comment else archive.testzip()  # a comment is a damaged checksum of ours
    except (BadZipFile, OSError, ValueError, NotImplementedError):
        raise BrokenCheckpointError(f"{path} is cut off, or not a checkpoint") from None
    if broken is not None:
        raise BrokenCheckpointError(f"{path} is damaged in {broken}")


def newest(folder: Path, fall_back: bool) -> Path | None:
    """The checkpoint to resume the run in `folder` from; None to start from the beginning.

    Args:
        folder: Folder of the run.
        fall_back: Whether to use an earlier checkpoint if ``last.ckpt`` is broken.

    Raises:
        BrokenCheckpointError: if a checkpoint is broken and `fall_back` is False, or if the run cannot be resumed from any
            of its checkpoints.
    """
    last, *others = (folder / f"checkpoints/{name}.ckpt" for name in ("last", "previous", "best"))
    problems: list[BrokenCheckpointError] = []
    if os.path.lexists(last):
        try:
            verify(last, ours=True)
            return last
        except BrokenCheckpointError as error:
            problems.append(error)
    steps: dict[Path, int] = {}
    unusable: list[Path] = []
    for path in filter(os.path.lexists, others):
        try:
            verify(path, ours=True)
            checkpoint = read_sealed(path)
        except BrokenCheckpointError as error:
            problems.append(error)
            continue
        if checkpoint["position"]["exact"] and _has_logs(folder, checkpoint["position"]["log_sizes"]):
            steps[path] = checkpoint["global_step"]
        else:
            unusable.append(path)
    found = max(steps, key=lambda path: steps[path], default=None)
    if problems and not fall_back:
        hint = f"; {found} is undamaged: resume from it with --resume {shell_word(found)}" if found else ""
        raise BrokenCheckpointError(f"{problems[0]}{hint}")
    if found is None and unusable:
        problem = problems[0] if problems else "there is no last.ckpt"
        raise BrokenCheckpointError(f"{problem}, and the run cannot be resumed from {unusable[0]}")
    if found is None and len(problems) > 1:
        raise problems[0]
    if problems:
        print_line(f"{problems[0]}, so it is not used" + (f"; resuming from {found}" if found else ""))
    return found


def _has_logs(folder: Path, sizes: dict[str, int]) -> bool:
    """Return whether the log files still contain all points that were logged before a checkpoint."""
    return all((path := folder / name).is_file() and path.stat().st_size >= size for name, size in sizes.items())


def _content_digest(checkpoint: dict[str, Any]) -> str:
    return hashlib.sha256(repr(_outline(checkpoint)).encode()).hexdigest()


def _outline(value: Any) -> Any:
    """Nested data in which each tensor is replaced by its type and shape."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape)
    if isinstance(value, dict):
        return {key: _outline(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):  # the order may differ in another process
        return type(value), sorted(map(repr, value))
    return type(value)(map(_outline, value)) if type(value) in (list, tuple) else value


class _HashingFile:
    """The file that `torch.save` writes to. It keeps the digest of all data, and the first error."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.error: BaseException | None = None
        self._file, self.flush = file, file.flush

    def write(self, data: bytes) -> int:
        try:
            self.digest.update(data)
            return self._file.write(data)
        except BaseException as error:
            self.error = self.error or error
            raise


def _sync_folder(folder: Path) -> None:
    """Make a renaming permanent, except on Windows, which cannot sync a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
