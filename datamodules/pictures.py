"""Pictures of the user: a folder for each class, or a table of paths and labels.

Pictures are decoded once, into a cache that is memory-mapped.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from datamodules.classification import ClassificationDataModule, DataError, DataSpec, Labelled, Split
from datamodules.parts.augment import alternating_flip, random_crop, random_flip, random_resized_crop
from datamodules.parts.batches import AugmentContext
from datamodules.parts.cache import describe_files, load_or_create
from datamodules.parts.labels import check_case, check_missing, class_names_of, class_numbers
from datamodules.parts.mapped import MappedRows
from datamodules.parts.new_inputs import list_pictures, picture_inputs, read_array
from datamodules.parts.picture_files import Format, decode_pictures, decoding_processes, read_folder, report_ignored
from datamodules.parts.table_files import PARQUET, TEXT, get_column, read_table
from engine.contracts import NewInputs, OptionError
from engine.terminal import count_of, print_line

rank_zero_print = rank_zero_only(print_line)
SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


class Pictures(ClassificationDataModule):
    """Pictures of any size in PNG, JPEG, WebP, GIF, BMP, TIFF or PNM files.

    Each split is a folder with a folder for each class, or a table with paths and labels. If the folder `train` contains
    only folders with the names train, val and test, these folders are the splits.

    Args:
        train: Folder or table (.csv, .tsv, .parquet) with the training set.
        val: Folder or table with the validation set; null to use a fraction of the training set.
        test: Folder or table with the test set; null to use a fraction of the training set.
        path_column: Column of a table with the path of a picture, relative to the folder of the table.
        target: Column of a table with the label.
        image_size: Width and height in pixels to which pictures are scaled.
        fit: For pictures that are not square: crop the longer side, pad the shorter side, or stretch.
        background: Colour of the padding and behind transparent pixels, by name or as '#rrggbb'.
        skip_broken: Leave out files that cannot be decoded, instead of stopping.
        augment_images: Augment training images.
        crop: Shift an image by at most `padding` pixels, or cut out a random part and scale it up (resized).
        padding: Maximum shift in pixels.
        min_crop_area: Smallest part that `crop=resized` cuts out, as a fraction of the area.
        flip: Mirror each image with probability 0.5 (random) or in every second epoch (alternating), or never (none).
        eval_batch_size: Samples per validation or test batch. Results depend on it only with callbacks.quantization.
        val_fraction: Fraction of the training set that is used for validation if `val` is null.
        test_fraction: Fraction of the training set that is used for the test if `test` is null.
        cache: Folder for decoded pictures. It can be deleted at any time.
        memory_gigabytes: Maximum main memory for the decoded pictures; null for half of the free memory. Pictures that do
            not fit are read from the cache in every epoch.
        options: Options of `ClassificationDataModule`.
    """

    modality = "image"

    def __init__(
        self,
        train: str,
        val: str | None = None,
        test: str | None = None,
        path_column: str = "path",
        target: str = "label",
        image_size: Annotated[int, ">= 8, <= 1024"] = 64,
        fit: Literal["crop", "pad", "stretch"] = "crop",
        background: str = "white",
        skip_broken: bool = False,
        augment_images: bool = True,
        crop: Literal["shift", "resized"] = "shift",
        padding: Annotated[int, ">= 0"] = 4,
        min_crop_area: Annotated[float, "> 0, <= 1"] = 0.35,
        flip: Literal["none", "random", "alternating"] = "random",
        eval_batch_size: Annotated[int, ">= 1"] = 200,
        val_fraction: Annotated[float, "> 0, < 1"] = 0.1,
        test_fraction: Annotated[float, "> 0, < 1"] = 0.2,
        cache: str = "data/cache",
        memory_gigabytes: Annotated[float, ">= 0"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(eval_batch_size=eval_batch_size, val_fraction=val_fraction, **options)
        given: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.sources = {split: Path(source).expanduser() for split, source in given.items() if source is not None}
        self.path_column, self.target, self.test_fraction = path_column, target, test_fraction
        self.format: Format = Format(image_size, fit, background)
        self.skip_broken, self.cache, self.memory_gigabytes = skip_broken, Path(cache).expanduser(), memory_gigabytes
        self.augment_images, self.crop, self.padding, self.min_crop_area = augment_images, crop, padding, min_crop_area
        self.flip = flip
        if padding >= image_size:
            raise OptionError(f"data.padding: {padding} is not smaller than data.image_size={image_size}")
        self.sources = _find_splits(self.sources)
        if len({source.resolve() for source in self.sources.values()}) < len(self.sources):
            hint = "use different pictures for training and evaluation"
            raise OptionError(f"data.train: another split uses the same source; {hint}")
        self.class_names: tuple[str, ...] = ()
        self._prepared: dict[Split, Labelled] = {}
        self._places: dict[Split, tuple[list[str], Tensor]] = {}  # for each split: files of its source, and its rows

    @property
    def spec(self) -> DataSpec:
        """The description of the data. The names of the files are read first, because they contain the classes."""
        self.prepare_data()
        return DataSpec(self.modality, (3, self.format.size, self.format.size), self.class_names)

    def prepare_data(self) -> None:
        """List, decode and split the pictures, once."""
        if self._prepared:
            return
        import pyarrow as pa

        files = {split: self._list(f"data.{split}", source) for split, source in self.sources.items()}
        self.class_names = class_names_of(pa.array(files["train"][1], pa.string()))
        paths, images, labels = {}, {}, {}
        for split, (found, names) in files.items():
            labels[split] = class_numbers(pa.array(names, pa.string()), self.class_names, found.__getitem__)
        with decoding_processes() as start:
            for split, (found, _) in files.items():
                images[split], good = self._decode(split, found, start)
                paths[split], labels[split] = [found[row] for row in good.tolist()], labels[split][good]
        for split, (source, rows) in self.choose_rows(labels, self.class_names).items():
            self._prepared[split] = images[source].select(rows), labels[source][rows]
            self._places[split] = paths[source], rows

    def read_inputs(self, source: Path, spec: DataSpec, folder: Path, with_labels: bool = False) -> NewInputs:
        """Read a picture, a folder or a list of pictures, or a table with a column of paths."""
        if source.suffix.lower() == ".npy":
            return read_array(source, spec)
        if not source.exists():
            raise DataError(f"INPUT: {source} does not exist; give pictures, a folder, or a table of paths")
        labels: list[str] | None = None
        if with_labels and source.is_dir():
            paths, labels = self._list("INPUT", source)
        elif source.is_dir() or source.suffix.lower() not in (*TEXT[:2], *PARQUET):
            paths = list_pictures(source)
        else:
            paths, labels = self._read_table("INPUT", source, with_labels)
        return picture_inputs(paths, self.format, spec.input_shape[0], labels)

    def picture_format(self, spec: DataSpec) -> Format:
        """Return the format of the training set."""
        return self.format

    def splits(self) -> dict[Split, Labelled]:
        """Return the three splits."""
        self.prepare_data()
        return self._prepared

    def place(self, split: Split, row: int) -> str:
        """Return the file of a sample."""
        paths, rows = self._places[split]
        return paths[int(rows[row])]

    def augment(self, inputs: Tensor, context: AugmentContext) -> Tensor:
        if not self.augment_images:
            return inputs
        if self.crop == "shift":
            inputs = random_crop(inputs, self.padding, context.generator)
        else:
            inputs = random_resized_crop(inputs, self.min_crop_area, context.generator)
        if self.flip == "alternating":
            return alternating_flip(inputs, context)
        return random_flip(inputs, context.generator) if self.flip == "random" else inputs

    @property
    def is_augmented(self) -> bool:
        return self.augment_images or type(self).augment is not Pictures.augment

    def _list(self, key: str, source: Path) -> tuple[list[str], list[str]]:
        """Return the files of a source, and the label of each."""
        if not source.exists():
            hint = "give a folder with a folder for each class, or a CSV file of paths and labels"
            raise DataError(f"{key}: {source} does not exist; {hint}")
        if not source.is_dir():
            paths, labels = self._read_table(key, source, with_labels=True)
            assert labels is not None
            return paths, labels
        found = read_folder(key, source)
        classes = sorted(set(found.labels))
        check_case(classes, f"{key}: the folders")
        if key == "data.train" and len(classes) < 2:
            hint = "make a folder for each class, at least two"
            raise DataError(f"{key}: {source} has only one folder, {classes[0]!r}; {hint}")
        if found.ignored:
            rank_zero_print(f"{key}: {report_ignored(found.ignored)}")
        return found.paths, found.labels

    def _read_table(self, key: str, source: Path, with_labels: bool) -> tuple[list[str], list[str] | None]:
        """Return the paths in a table, and the label of each."""
        table = read_table(key, source)
        columns = []
        for name, column in (("path_column", self.path_column), ("target", self.target))[: 1 + with_labels]:
            texts = get_column(f"data.{name}", source, table, column)
            check_missing(texts, column, lambda row: f"{key}: {source}, row {row + 1}")
            columns.append(texts.to_pylist())
        folder = os.path.dirname(source)
        paths = [os.path.join(folder, os.path.expanduser(path)) for path in columns[0]]
        return paths, columns[1] if with_labels else None

    def _decode(
        self, split: Split, paths: list[str], start: Callable[[], ProcessPoolExecutor]
    ) -> tuple[MappedRows, Tensor]:
        """Return the decoded pictures of a source that are not broken, and their numbers in `paths`."""

        def load(folder: Path) -> tuple[np.ndarray, list[tuple[int, str]]]:
            broken = json.loads((folder / "broken.json").read_text(encoding="utf-8"))
            return np.load(folder / "images.npy", mmap_mode="r"), broken

        key = (*vars(self.format).values(), *describe_files(paths))
        images, broken = load_or_create(
            self.cache,
            "pictures",
            key,
            lambda folder: decode_pictures(f"data.{split}", paths, self.format, folder, start),
            load,
        )
        if broken:
            (row, reason), others = broken[0], f" and {len(broken) - 1:,} more" if len(broken) > 1 else ""
            problem = f"data.{split}: {paths[row]}{others} cannot be decoded ({reason})"
            if not self.skip_broken:
                raise DataError(f"{problem}; repair or delete the file, or set data.skip_broken=true")
            rank_zero_print(f"{problem}; left out {count_of(len(broken), 'picture')} of {len(paths):,}")
        is_good = torch.ones(len(paths), dtype=torch.bool)
        is_good[[row for row, _ in broken]] = False
        good = torch.nonzero(is_good).flatten()
        if not len(good):
            raise DataError(f"data.{split}: no picture can be decoded")
        return MappedRows(images, good), good


def _find_splits(sources: dict[Split, Path]) -> dict[Split, Path]:
    """Return the folders of the splits if the training folder contains nothing but them."""
    root = sources["train"]
    try:
        folders = {path.name: path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    except OSError:  # not a folder, or not readable: reported when it is listed
        return sources
    known = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    if "train" not in folders or not folders.keys() <= known.keys():
        return sources
    found = {known[name]: path for name, path in folders.items()}
    if len(found) < len(folders) or len(sources) > 1:
        hint = "give data.train, data.val and data.test"
        raise OptionError(f"data.train: {root} has the folders {', '.join(sorted(folders))}; {hint}")
    return found
