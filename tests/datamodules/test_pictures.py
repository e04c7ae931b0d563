"""Pictures of the user: formats, orientation, shape, folders, the cache, data in mapped files, and mistakes in one line."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from datamodules.classification import DataError
from datamodules.parts import picture_files
from datamodules.parts.augment import random_resized_crop
from datamodules.parts.picture_files import Format, decode
from datamodules.pictures import Pictures
from engine.contracts import UserError
from tests import files
from tests.runs import WITHOUT_PICTURES, figures, run

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_halves(width: int = 8, height: int = 8) -> Image.Image:
    """A picture that is red on the left and blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


@pytest.fixture
def make(tmp_path):
    """Make a datamodule from the pictures in `tmp_path / "pictures"`, which are written unless they exist."""

    def make_pictures(**options) -> Pictures:
        root = tmp_path / "pictures"
        if not root.exists():
            files.write_pictures(root, 60)
        defaults = {"train": str(root), "image_size": 16, "cache": str(tmp_path / "cache")}
        datamodule = Pictures(**(defaults | options))
        datamodule.setup()
        return datamodule

    return make_pictures


def grey_16_bit() -> Image.Image:
    values = np.full((8, 8), 255 * 257, np.uint16)
    values[:, 4:] = 100 * 257
    return Image.fromarray(values)


def transparent(mode: str) -> Image.Image:
    image = two_halves().convert("RGBA")
    image.putalpha(Image.new("L", (8, 8), 255))
    image.paste((0, 255, 0, 0), (4, 0, 8, 8))
    return image if mode == "RGBA" else image.quantize(8) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("name", "image", "left", "right"),
    [
        ("a.png", two_halves(), RED, BLUE),
        ("a.PNG", two_halves().quantize(4), RED, BLUE),
        ("a.png", two_halves().convert("L"), (76, 76, 76), (29, 29, 29)),
        ("a.png", grey_16_bit(), WHITE, (100, 100, 100)),
        ("a.tif", grey_16_bit(), WHITE, (100, 100, 100)),
        ("a.png", two_halves().convert("L").point(lambda v: 255 * (v > 50)).convert("1"), WHITE, (0, 0, 0)),
        ("a.png", transparent("RGBA"), RED, (0, 128, 0)),
        ("a.png", transparent("P"), RED, (0, 128, 0)),
        ("a.webp", transparent("RGBA"), RED, (0, 128, 0)),
        ("a.png", transparent("LA"), (76, 76, 76), (0, 128, 0)),
        ("a.jpg", two_halves(64, 64), RED, BLUE),
        ("a.JPEG", two_halves(64, 64).convert("CMYK"), RED, BLUE),
        ("a.webp", two_halves(), RED, BLUE),
        ("a.gif", two_halves(), RED, BLUE),
        ("a.bmp", two_halves(), RED, BLUE),
        ("a.tiff", two_halves(), RED, BLUE),
        ("a.ppm", two_halves(), RED, BLUE),
    ],
)
def test_every_format_and_mode_is_read(name, image, left, right, tmp_path):
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 95}, ".jpeg": {"quality": 95}}
    image.save(tmp_path / name, **options.get(Path(name).suffix.lower(), {}))
    pixels = decode(str(tmp_path / name), Format(8, "crop", "green")).astype(int)
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels[:, :3] - left).max() <= (5 if "j" in name.lower() else 1)
    assert np.abs(pixels[:, 5:] - right).max() <= (5 if "j" in name.lower() else 1)


def test_the_first_frame_of_an_animation_is_used(tmp_path):
    two_halves().save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), WHITE)])
    assert tuple(decode(str(tmp_path / "a.gif"), Format(8, "crop", "white"))[0, 0]) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_the_exif_orientation_is_applied(orientation, suffix, tmp_path):
    image = two_halves(16, 16)
    image.paste(WHITE, (0, 0, 8, 8))  # the corner distinguishes all eight orientations
    transposes = [None, 0, 3, 1, 5, 4, 6, 2]  # inverse of each orientation, as `Image.Transpose`
    stored = image if transposes[orientation - 1] is None else image.transpose(transposes[orientation - 1])
    if orientation in (6, 8):
        stored = image.transpose(Image.Transpose.ROTATE_90 if orientation == 6 else Image.Transpose.ROTATE_270)
    exif = Image.Exif()
    exif[0x112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    pixels = decode(str(tmp_path / f"a.{suffix}"), Format(16, "crop", "white")).astype(int)
    assert np.abs(pixels[2, 2] - WHITE).max() < 60
    assert np.abs(pixels[13, 2] - RED).max() < 60
    assert np.abs(pixels[2, 13] - BLUE).max() < 60


@pytest.mark.parametrize(
    ("fit", "column", "expected"),
    [("crop", 0, RED), ("pad", 8, (255, 255, 0)), ("stretch", 0, RED)],
)
def test_other_proportions_are_cropped_padded_or_stretched(fit, column, expected, tmp_path):
    image = Image.new("RGB", (64, 32), (0, 255, 0))
    image.paste(RED, (0, 0, 32, 32))
    image.save(tmp_path / "a.png")
    pixels = decode(str(tmp_path / "a.png"), Format(16, fit, "#ffff00"))
    assert pixels.shape == (16, 16, 3)
    assert tuple(pixels[0, column]) == expected
    assert tuple(pixels[8, 15]) == (0, 255, 0)


def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for fit in ("crop", "pad", "stretch"):
        assert (decode(str(tmp_path / "a.png"), Format(16, fit, "white")) == pixels).all()


def test_folders_are_classes_and_the_fractions_are_held_out(make, tmp_path):
    datamodule = make()
    assert datamodule.spec.class_names == ("bird", "cat", "dog")
    assert datamodule.spec.input_shape == (3, 16, 16)
    assert {split: len(labels) for split, (_, labels) in datamodule.splits().items()} == {
        "train": 42, "val": 6, "test": 12
    }  # fmt: skip
    places = [datamodule.place(split, row) for split in ("train", "val", "test") for row in range(6)]
    assert len(set(places)) == 18
    for split in ("train", "val", "test"):
        inputs, labels = datamodule.splits()[split]
        for row in range(6):
            path = datamodule.place(split, row)
            assert Path(path).parent.name == datamodule.class_names[int(labels[row])]
            assert (inputs[row : row + 1][0].permute(1, 2, 0).numpy() == decode(path, datamodule.format)).all()


def test_the_order_does_not_depend_on_the_names_of_the_classes(make):
    _, labels = make(val_fraction=0.1, test_fraction=0.1).splits()["train"]
    assert labels[:12].unique().tolist() == [0, 1, 2]


def test_folders_train_val_and_test_are_the_splits(make, tmp_path):
    for split, count in (("train", 30), ("valid", 9), ("test", 6)):
        files.write_pictures(tmp_path / "pictures" / split, count)
    sizes = {split: len(labels) for split, (_, labels) in make().splits().items()}
    assert sizes == {"train": 30, "val": 9, "test": 6}


def test_a_class_may_have_the_name_of_a_split(make, tmp_path):
    files.write_pictures(tmp_path / "pictures", 30)
    (tmp_path / "pictures/cat").rename(tmp_path / "pictures/train")
    assert make().class_names == ("bird", "dog", "train")


def test_nested_folders_links_and_hidden_files(make, tmp_path):
    root = tmp_path / "pictures"
    files.write_pictures(root, 30)
    (root / "cat/deep/er").mkdir(parents=True)
    two_halves().save(root / "cat/deep/er/x.PNG")
    (root / "dog/linked").symlink_to(root / "cat/deep")
    for hidden in (root / ".git", root / "cat/.thumbnails"):
        hidden.mkdir()
        (hidden / "x.png").write_text("no picture")
    (root / "cat/._x.png").write_text("no picture")
    assert sum(len(labels) for _, labels in make().splits().values()) == 32


def test_a_table_of_paths_and_labels(make, tmp_path):
    files.write_pictures(tmp_path / "pictures", 60)
    names = [path.relative_to(tmp_path) for path in sorted((tmp_path / "pictures").rglob("*.png"))]
    lines = [f"{name};{name.parent.name}" for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["file;animal", *lines]))
    listed = make(train=str(tmp_path / "list.csv"), path_column="file", target="animal")
    assert listed.class_names == ("bird", "cat", "dog")
    assert sum(len(labels) for _, labels in listed.splits().values()) == 60
    path = Path(listed.place("test", 0))
    assert path.parent.name == listed.class_names[int(listed.splits()["test"][1][0])]


def test_the_second_start_decodes_nothing_and_a_changed_file_is_decoded_again(make, tmp_path, monkeypatch):
    first = make()
    decoded = []
    monkeypatch.setattr(
        picture_files, "decode", lambda path, how: decoded.append(path) or np.zeros((how.size,) * 2 + (3,), np.uint8)
    )
    assert make().fingerprint == first.fingerprint
    assert not decoded
    changed = tmp_path / "pictures/cat/0001.png"
    os.utime(changed, ns=(1, 1))
    make()
    assert len(decoded) == 60
    decoded.clear()
    make(image_size=8, padding=1)
    assert len(decoded) == 60


def test_a_damaged_cache_is_created_again(make, tmp_path, capsys):
    first = make()
    (stored,) = (tmp_path / "cache").glob("pictures-*/images.npy")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    assert make().fingerprint == first.fingerprint
    assert "was changed after it was written; it is created again" in capsys.readouterr().out


def test_processes_decode_as_one_process_does(make, tmp_path, monkeypatch):
    files.write_pictures(tmp_path / "pictures", 60)
    (tmp_path / "pictures/cat/0001.png").write_bytes(b"no picture")
    alone = make(skip_broken=True).fingerprint
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(picture_files, "FEW", 0)
    monkeypatch.setattr(picture_files, "CHUNK", 7)
    assert make(skip_broken=True).fingerprint == alone


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


BROKEN = {
    "truncated": (truncated, "image file is truncated"),
    "no picture": (lambda path: path.write_text("hello"), "cannot identify image file"),
    "empty": (lambda path: path.write_bytes(b""), "cannot identify image file"),
    "bomb": (bomb, "could be decompression bomb DOS attack"),
    "folder link": (lambda path: (path.unlink(), path.symlink_to(path.parent / "gone.png")), "it does not exist"),
    "floats": (
        lambda path: Image.fromarray(np.zeros((8, 8), np.float32)).save(path, "TIFF"),
        "its pixels are floating-point numbers; convert it to 8 or 16 bits",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_or_left_out(name, make, tmp_path, capsys):
    files.write_pictures(tmp_path / "pictures", 60)
    damage, reason = BROKEN[name]
    path = tmp_path / "pictures/cat/0001.png"
    damage(path)
    with pytest.raises(DataError) as raised:
        make()
    assert str(raised.value).startswith(f"data.train: {path} cannot be decoded (")
    assert reason in str(raised.value)
    assert str(raised.value).endswith("repair or delete the file, or set data.skip_broken=true")
    assert "\n" not in str(raised.value)
    datamodule = make(skip_broken=True)
    assert sum(len(labels) for _, labels in datamodule.splits().values()) == 59
    assert "left out 1 picture of 60" in capsys.readouterr().out
    for split, (_, labels) in datamodule.splits().items():
        places = [Path(datamodule.place(split, row)) for row in range(len(labels))]
        assert path not in places
        assert [place.parent.name for place in places] == [datamodule.class_names[label] for label in labels.tolist()]


def test_an_error_of_the_system_is_not_stored(make, tmp_path, monkeypatch):
    files.write_pictures(tmp_path / "pictures", 60)
    path, original = tmp_path / "pictures/cat/0001.png", picture_files.decode

    def refuse(name: str, how: picture_files.Format) -> np.ndarray:
        if name == str(path):
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return original(name, how)

    with monkeypatch.context() as patch:
        patch.setattr(picture_files, "decode", refuse)
        with pytest.raises(DataError, match=r"^data.train: .*0001.png cannot be read \(Permission denied\)$"):
            make(skip_broken=True)
    assert sum(len(labels) for _, labels in make(skip_broken=True).splits().values()) == 60


def test_a_large_jpeg_keeps_its_details(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    large = Image.fromarray(pixels).resize((160, 160), Image.Resampling.NEAREST)
    large.save(tmp_path / "large.jpg", quality=95)
    found = picture_files.decode(str(tmp_path / "large.jpg"), picture_files.Format(40, "crop", "white"))
    assert np.abs(found.astype(int) - pixels).mean() < 12


def test_several_broken_files_are_counted(make, tmp_path):
    files.write_pictures(tmp_path / "pictures", 60)
    for number in (1, 4, 7):
        (tmp_path / f"pictures/cat/{number:04}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"0001\.png and 2 more cannot be decoded"):
        make()


def test_a_file_that_vanishes_while_it_is_decoded_is_one_line(make, tmp_path, monkeypatch):
    files.write_pictures(tmp_path / "pictures", 60)
    path, original = tmp_path / "pictures/cat/0001.png", picture_files.decode_pictures

    def vanish(*arguments) -> None:
        path.unlink()
        original(*arguments)

    monkeypatch.setattr("datamodules.pictures.decode_pictures", vanish)
    with pytest.raises(DataError, match=r"0001\.png cannot be decoded \(it does not exist\)"):
        make()


def empty_class(root: Path) -> None:
    (root / "fish").mkdir()
    (root / "fish/readme.txt").write_text("no pictures")


def circle(root: Path) -> None:
    (root / "cat/again").symlink_to(root / "cat")


def flat(root: Path) -> None:
    for path in list(root.rglob("*.png")):
        path.rename(root / path.name)
    for folder in root.iterdir():
        if folder.is_dir():
            folder.rmdir()


def unreadable(root: Path) -> None:
    (root / "cat").rename(root / "dog/cat")
    (root / "cat").symlink_to(root / "cat")


def other_case(root: Path) -> None:
    (root / "Cat").mkdir()
    two_halves().save(root / "Cat/a.png")


def one_class(root: Path) -> None:
    for name in ("bird", "dog"):
        shutil.rmtree(root / name)


def unknown_class(root: Path) -> None:
    move_to_splits(root)
    (root / "test/fish").mkdir()
    two_halves().save(root / "test/fish/a.png")


def move_to_splits(root: Path) -> None:
    shutil.copytree(root, root.parent / "copy")
    shutil.rmtree(root)
    for split in ("train", "test"):
        shutil.copytree(root.parent / "copy", root / split)


def two_validations(root: Path) -> None:
    move_to_splits(root)
    for name in ("val", "valid"):
        (root / name).mkdir()


MISTAKES = [
    (empty_class, {}, "data.train: ROOT/fish has no pictures; add pictures (.png, "),
    (circle, {}, "data.train: ROOT/cat/again is a link to a folder that contains it; remove the link"),
    (unreadable, {}, "data.train: ROOT/cat cannot be read (Too many levels of symbolic links)"),
    (flat, {}, "data.train: ROOT has no folders; make a folder for each class, or give a CSV file"),
    (other_case, {}, "data.train: the folders 'Cat' and 'cat' differ only in case"),
    (one_class, {}, "data.train: ROOT has only one folder, 'cat'; make a folder for each class, at least two"),
    (unknown_class, {}, "the label 'fish' does not occur in the training set, which has bird, cat, dog"),
    (two_validations, {}, "data.train: ROOT has the folders test, train, val, valid; give data.train, data.val"),
    (move_to_splits, {"val": "ROOT/test"}, "data.train: ROOT has the folders test, train; give data.train, data.val"),
    (None, {"train": "ROOT/nothing"}, "data.train: ROOT/nothing does not exist; give a folder with a folder for each"),
    (None, {"val": "ROOT"}, "data.train: another split uses the same source"),
    (None, {"background": "reddish"}, "data.background: 'reddish' is not a colour"),
    (None, {"padding": 16}, "data.padding: 16 is not smaller than data.image_size=16"),
    (None, {"train": "ROOT/cat/0001.png"}, "data.train: ROOT/cat/0001.png is not a text file"),
    (None, {"test_fraction": 0.001}, "data.test_fraction: 0.001 of 60 samples leaves sets of 60 and 0"),
]


@pytest.mark.parametrize(("damage", "options", "expected"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line(damage, options, expected, make, tmp_path):
    root = tmp_path / "pictures"
    files.write_pictures(root, 60)
    if damage is not None:
        damage(root)
    options = {
        key: value.replace("ROOT", str(root)) if isinstance(value, str) else value for key, value in options.items()
    }
    with pytest.raises(UserError) as raised:
        make(**options)
    assert expected.replace("ROOT", str(root)) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\ncat/0001.png,cat\nnothing.png,dog\n", "nothing.png cannot be decoded (it does not exist)"),
        ("file,label\ncat/0001.png,cat\n", "data.path_column: FILE has no column 'path'; it has file, label"),
        ("path,class\ncat/0001.png,cat\n", "data.target: FILE has no column 'label'; it has path, class"),
        ("path,label\ncat/0001.png,cat\n,dog\n", "FILE, row 2: no label in column 'path'"),
        ("path,label\ncat/0001.png,cat\na.png,\n", "FILE, row 2: no label in column 'label'"),
    ],
)
def test_a_mistake_in_a_table_of_paths(text, expected, make, tmp_path):
    files.write_pictures(tmp_path / "pictures", 60)
    file = tmp_path / "pictures/list.csv"
    file.write_text(text)
    with pytest.raises(DataError) as raised:
        make(train=str(file))
    assert expected.replace("FILE", str(file)) in str(raised.value)


def test_an_unknown_colour_ends_the_command_with_code_2(tmp_path, capsys):
    files.write_pictures(tmp_path / "pictures", 60)
    arguments = [f"data.train={tmp_path}/pictures", "data.background=reddish", f"run.root={tmp_path}/runs"]
    assert train.main(["--config", "configs/pictures_cnn.yaml", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


SHORT = [
    "--config",
    "configs/cifar10_cnn.yaml",
    "trainer.max_epochs=1",
    "trainer.precision=32-true",
    "model.widths=[8, 16]",
]


def test_data_in_files_gives_the_same_figures_as_data_in_memory(tmp_path):
    files.write_pictures(tmp_path / "pictures", 120)
    data = [
        "data.name=pictures",
        f"data.train={tmp_path}/pictures",
        "data.image_size=16",
        f"data.cache={tmp_path}/cache",
    ]
    found = []
    for number, limit in enumerate((0, 1)):
        options = [*data, "data.batch_size=16", f"data.memory_gigabytes={limit}", *WITHOUT_PICTURES]
        folder = run(tmp_path / f"runs{number}", *SHORT, *options)
        found.append({k: v for k, v in figures(folder).items() if k.startswith(("train/", "val/", "test/"))})
        found[-1]["data"] = figures(folder).get("data_sha256")
    assert found[0] == found[1]


def test_the_pixels_of_cifar_give_the_figures_of_cifar(small_data, tmp_path):
    from datamodules import cifar

    data = cifar.CIFAR(root=str(small_data), padding=2, flip="alternating")
    for split, (images, labels) in zip(("train", "test"), data.load(), strict=True):
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            folder = tmp_path / "pictures" / split / cifar.CIFAR10[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:05}.png")
    pictures = [f"data.train={tmp_path}/pictures", "data.image_size=32", f"data.cache={tmp_path}/cache"]
    same = [
        "data.batch_size=50",
        "data.padding=2",
        "data.flip=alternating",
        "data.eval_batch_size=100",
        *WITHOUT_PICTURES,
    ]
    expected = figures(run(tmp_path / "runs0", *SHORT, f"data.root={small_data}", *same))
    found = figures(run(tmp_path / "runs1", *SHORT, "data.name=pictures", *pictures, *same))
    for name in ("val/loss", "val/accuracy", "test/loss", "test/accuracy", "test/calibration_error"):
        assert found[name] == expected[name]


@pytest.mark.slow
def test_check_looks_at_augmented_pictures(tmp_path, capsys):
    files.write_pictures(tmp_path / "pictures", 120)
    data = [
        "data.name=pictures",
        f"data.train={tmp_path}/pictures",
        "data.image_size=16",
        f"data.cache={tmp_path}/cache",
    ]
    options = ["data.batch_size=16", "data.crop=resized", f"run.root={tmp_path}/runs"]
    assert train.main([*SHORT, *data, *options, "--check"]) == 0
    printed = capsys.readouterr().out
    assert "labels fit inputs" in printed
    assert "duplicate rows" in printed


def test_resized_crops_show_a_part_of_each_picture():
    ramp = torch.arange(32.0).expand(64, 1, 32, 32)
    cropped = random_resized_crop(ramp, 0.25, torch.Generator().manual_seed(0))
    widths = cropped[:, 0, 16, -1] - cropped[:, 0, 16, 0]
    assert cropped.shape == ramp.shape
    assert 0 <= cropped.min() < 1
    assert 30 < cropped.max() <= 31
    assert (widths > 0).all()
    assert widths.min() < 17
    assert widths.max() > 26
    again = random_resized_crop(ramp, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(again, cropped)
    whole = random_resized_crop(ramp[..., :32], 1.0, torch.Generator().manual_seed(0))
    assert (whole[:, 0, 16, -1] - whole[:, 0, 16, 0]).min() > 22  # the proportion still changes


def workers_of(pid: int) -> list[int]:
    """The processes that the process `pid` has started to decode pictures."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_command_that_is_stopped_while_it_decodes_leaves_no_processes(signum, code, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8))
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        image.save(tmp_path / f"pictures/{name}/0.jpg")
        for number in range(1, 1500):
            os.link(tmp_path / f"pictures/{name}/0.jpg", tmp_path / f"pictures/{name}/{number}.jpg")
    options = [f"data.train={tmp_path}/pictures", f"data.cache={tmp_path}/cache", f"run.root={tmp_path}/runs"]
    command = [sys.executable, "train.py", "--config", "configs/pictures_cnn.yaml", *options]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (workers := workers_of(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert workers
        time.sleep(0.5)
        os.killpg(process.pid, signum) if signum == signal.SIGINT else process.send_signal(signum)
        assert process.wait(60) == code
        assert b"Traceback" not in process.stderr.read()
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))
