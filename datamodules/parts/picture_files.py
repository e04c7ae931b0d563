"""Find and decode pictures of the user: PNG, JPEG, WebP, GIF, BMP, TIFF and PNM files of any size.

Each picture is decoded once, by all cores, into a memory-mapped array. This module does not import torch, because the
processes that decode import it.
"""

import errno
import json
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageColor, ImageOps
from tqdm import tqdm

from datamodules.parts.cache import create_array
from engine.contracts import DataError, OptionError, listed, one_line
from engine.terminal import count_of
from engine.threads import available_cores, interrupts_blocked

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".pbm", ".pgm", ".ppm",
)  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM")
Fit = Literal["crop", "pad", "stretch"]
FEW = 400  # fewer pictures are decoded in this process, because starting other processes takes 0.2 s
CHUNK = 250  # pictures that a process decodes at a time


@dataclass(frozen=True)
class Folder:
    """Pictures in folders that are named after their classes.

    Attributes:
        paths: The pictures, sorted by file name.
        labels: The name of the folder of each picture.
        ignored: Files without the suffix of a picture.
    """

    paths: list[str]
    labels: list[str]
    ignored: list[str]


@dataclass(frozen=True)
class Format:
    """How pictures are stored: as RGB images of `size` x `size` pixels, with 3 bytes per pixel.

    Attributes:
        size: Side of the squares.
        fit: How pictures that are not square become square: `crop` the longer side, `pad` the shorter side, or `stretch`.
        background: Colour of the padding and behind transparent pixels.
    """

    size: int
    fit: Fit
    background: str

    def __post_init__(self) -> None:
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            hint = "use a name such as white or a value such as '#ffffff'"
            raise OptionError(f"data.background: {self.background!r} is not a colour; {hint}") from None


def read_folder(key: str, root: Path) -> Folder:
    """List the pictures in a folder with a folder for each class. Hidden files and folders are skipped.

    Args:
        key: Config key of the folder, for errors.
        root: The folder.

    Raises:
        DataError: if a class has no pictures, or there are no classes.
    """
    try:
        with os.scandir(root) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        found = [(*file, name) for name in classes for file in _files(key, str(root / name), ())]
    except OSError as error:
        raise DataError(f"{key}: {error.filename} cannot be read ({error.strerror})") from None
    if not classes:
        raise DataError(
            f"{key}: {root} has no folders; make a folder for each class, or give a CSV file of paths and labels"
        )
    # by file name first, so that the order does not depend on the names of the classes
    pictures = sorted(file for file in found if file[0].lower().endswith(SUFFIXES))
    used = {name for *_, name in pictures}
    if empty := [name for name in classes if name not in used]:
        hint = f"add pictures ({', '.join(SUFFIXES)}) or remove the folder"
        raise DataError(f"{key}: {root / empty[0]} has no pictures; {hint}")
    ignored = [name for name, *_ in found if not name.lower().endswith(SUFFIXES)]
    return Folder([path for _, path, _ in pictures], [name for *_, name in pictures], ignored)


def _files(key: str, folder: str, parents: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str]]:
    """Yield name and path of all files below a folder. Links are followed."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        raise DataError(f"{key}: {folder} is a link to a folder that contains it; remove the link")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(key, entry.path, (*parents, identity))
            else:
                yield entry.name, entry.path


@contextmanager
def decoding_processes() -> Iterator[Callable[[], ProcessPoolExecutor]]:
    """Yield a function that starts one process per core. They end after the ``with`` block or with this process."""
    started: list[ProcessPoolExecutor] = []

    def start() -> ProcessPoolExecutor:
        if not started:
            context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
            started.append(ProcessPoolExecutor(max(1, available_cores()), context, _start_worker))
        return started[0]

    try:
        yield start
    finally:
        for executor in started:
            executor.shutdown(cancel_futures=True)


def decode_pictures(
    key: str, paths: Sequence[str], how: Format, folder: Path, start: Callable[[], ProcessPoolExecutor]
) -> None:
    """Decode pictures into ``images.npy`` (N, 3, size, size) of uint8. ``broken.json`` lists what cannot be decoded.

    Args:
        key: Config key of the pictures, for errors.
        paths: N files.
        how: How they are stored.
        folder: Folder for the two files.
        start: Function that starts the processes that decode, from `decoding_processes`.

    Raises:
        DataError: if the system cannot read a file that exists. Such an error may be temporary, so it is not stored.
    """
    file = folder / "images.npy"
    create_array(file, np.uint8, (len(paths), 3, how.size, how.size))
    chunks = [(first, paths[first : first + CHUNK]) for first in range(0, len(paths), CHUNK)]
    broken: list[tuple[int, str]] = []
    with tqdm(total=len(paths), desc="decoding", unit=" pictures", disable=None, leave=False) as progress:
        if len(paths) < FEW:
            broken = _decode_chunk(key, 0, paths, how, file)
        else:
            with interrupts_blocked():  # the processes start with the first job
                jobs = {start().submit(_decode_chunk, key, first, part, how, file): len(part) for first, part in chunks}
            try:
                for job in as_completed(jobs):
                    broken += job.result()
                    progress.update(jobs[job])
            except BrokenProcessPool:
                raise DataError(f"{key}: a process that decodes pictures was killed; is there enough memory?") from None
    (folder / "broken.json").write_text(json.dumps(sorted(broken)), encoding="utf-8")


def _start_worker() -> None:
    """Make this worker exit when the parent process exits, which handles Ctrl-C."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _decode_chunk(key: str, first: int, paths: Sequence[str], how: Format, file: Path) -> list[tuple[int, str]]:
    """Decode `paths` into the array in `file` from row `first` on.

    Returns:
        The row of each picture that cannot be decoded, and the reason.
    """
    images, broken = np.asarray(np.lib.format.open_memmap(file, "r+")), []
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Pillow warns of a very large picture before it raises an error for a larger one
        for row, path in enumerate(paths, first):
            try:
                images[row] = decode(path, how).transpose(2, 0, 1)
            except MemoryError:
                raise DataError(f"{key}: {path} cannot be decoded (not enough memory)") from None
            except Exception as error:  # a decoder raises errors of many types for a broken file
                is_of_system = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
                if is_of_system:  # which may be temporary, and is not one of the file
                    raise DataError(f"{key}: {path} cannot be read ({picture_problem(path, error)})") from None
                broken.append((row, picture_problem(path, error)))
    return broken


def picture_problem(file: str | BinaryIO, error: Exception) -> str:
    """Return why a picture cannot be decoded."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return getattr(error, "strerror", None) or one_line(error).replace(f" {file!r}", "")


def decode(file: str | BinaryIO, how: Format) -> np.ndarray:
    """Decode a picture to a square (size, size, 3) of uint8.

    The first frame of an animation is used, the EXIF orientation is applied, and transparent pixels get the background.
    Pictures that have the right size keep their pixels.
    """
    with Image.open(file, formats=FORMATS) as image:
        if how.fit == "crop":
            image.draft("RGB", (how.size, how.size))  # a JPEG is decoded at a smaller size that is still large enough
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_fit(_to_rgb(image, how.background), how))


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits per pixel
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(behind, image)
    return image.convert("RGB")


def _fit(image: Image.Image, how: Format) -> Image.Image:
    size = (how.size, how.size)
    if image.size == size:
        return image
    if how.fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    if how.fit == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BICUBIC, color=how.background)
    return image.resize(size, Image.Resampling.BICUBIC)


def report_ignored(ignored: Sequence[str]) -> str:
    """Return a line about files that are not pictures."""
    names = listed(list(ignored), 3)
    return f"ignored {count_of(len(ignored), 'file')} without the suffix of a picture: {names}"
