"""The files that README.md and CONTRIBUTING.md show, in a copy of the project: their commands run as they are written."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.config.signatures import PROJECT
from tests import files
from tests.runs import events
from tests.test_docs import FOLDERS, PAGES, SHOWN_FILES, TRAIN, blocks, is_shown

OWN_DATA = ("data.train=customers.csv", "data.train=photos", "data.train=reviews.tsv", "data.train=numbers.csv")
# commands of the README that need files of the user, and commands that need the files that the pages show
COMMANDS = {
    " ".join(words): words
    for page, words in TRAIN
    if is_shown(words) or (page == "README.md" and any(word in OWN_DATA for word in words))
}
EXPLAIN = ["--config", "configs/iris_maxout.yaml", "--explain", "model.num_pieces"]
OUT_OF_RANGE = ["--config", "configs/iris_maxout.yaml", "model.num_pieces=1"]
MISSING_FILE = ["--config", "configs/penguins_mlp.yaml", "data.file=nowhere.csv"]
# one process runs all commands, because importing torch takes longer than each of them
DRIVER = """
import json, sys, train
for words in json.loads(sys.argv[1]):
    epochs = 20 if "penguins" in words[1] or "maxout" in words[1] else 2
    options = [] if "callbacks.mistake_counts={}" in words else ["trainer.logger=false"]
    code = train.main([*words, f"trainer.max_epochs={epochs}", *options])
    print("exit", code, " ".join(words), flush=True)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project with the files that the pages show, and data for them."""
    folder = copy_project(tmp_path_factory.mktemp("copy") / "project")
    for text in PAGES.values():
        for block in [*blocks(text, "python"), *blocks(text, "yaml")]:
            first, _, rest = block.partition("\n")
            if path := re.fullmatch(r"# (\S+\.\w+)", first):
                (folder / path.group(1)).write_text(block, encoding="utf-8")
            elif path := re.fullmatch(r"# append to (\S+\.\w+)", first):
                with (folder / path.group(1)).open("a", encoding="utf-8") as file:
                    file.write(f"\n\n{rest}")
    write_data(folder / "data")
    return folder


def copy_project(folder: Path) -> Path:
    folder.mkdir()
    for path in PROJECT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
        elif path.name in FOLDERS:
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def write_data(folder: Path) -> None:
    """Two tables, NumPy arrays and pictures; all easy to learn."""
    folder.mkdir(exist_ok=True)
    generator, labels = np.random.default_rng(0), np.arange(120) % 3
    numbers = 5 * labels[:, None] + generator.normal(10, 1, (120, 4))
    for path, header, names in (
        (
            folder / "penguins.csv",
            "bill_length,bill_depth,flipper_length,body_mass,species",
            ["Adelie", "Chinstrap", "Gentoo"],
        ),
        (folder.parent / "customers.csv", "age,orders,visits,returns,churned", ["no", "yes", "yes"]),
        (folder.parent / "numbers.csv", "a,b,c,d,label", ["0", "1", "1"]),
    ):
        rows = [",".join([*(f"{number:.1f}" for number in row), names[i % 3]]) for i, row in enumerate(numbers)]
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    files.write_pictures(folder.parent / "photos", 60)
    rows = [f"{text}\t{label}" for text, label in files.texts(200)]
    (folder.parent / "reviews.tsv").write_text("\n".join(["review\trating", *rows, ""]))
    (folder / "shards").mkdir()
    (folder / "shards/classes.txt").write_text("dark\nlight\n")
    for split in ("train", "val", "test"):
        for number in range(2):
            with tarfile.open(folder / f"shards/{split}-{number}.tar", "w") as tar:
                for i in range(8):
                    low, high = ((20, 100), (150, 230))[i % 2]
                    pixels = generator.integers(low, high, (20, 24, 3)).astype(np.uint8)
                    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
                    for suffix, data in (("png", content.getvalue()), ("cls", str(i % 2).encode())):
                        member = tarfile.TarInfo(f"{i:04}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def output(copy) -> str:
    """What the commands of the pages print, and three more."""
    done = run(copy, "-c", DRIVER, json.dumps([*COMMANDS.values(), EXPLAIN, OUT_OF_RANGE, MISSING_FILE]))
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def run(copy: Path, *argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *argv], cwd=copy, capture_output=True, text=True)


def test_the_files_that_the_pages_show():
    assert {
        "lit_models/my_model.py", "datamodules/penguins.py", "configs/penguins_mlp.yaml", "datamodules/shards.py",
        "lit_models/maxout.py", "configs/iris_maxout.yaml", "callbacks/mistake_counts.py",
    } == SHOWN_FILES  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command, output):
    assert f"exit 0 {command}\n" in output, output


@pytest.mark.slow
@pytest.mark.parametrize("config", ["penguins_mlp", "iris_maxout"])
def test_it_learns(config, copy, output):
    (path,) = copy.glob(f"runs/{config}/*/metrics.json")
    assert json.loads(path.read_text(encoding="utf-8"))["test/accuracy"] > 0.8


@pytest.mark.slow
def test_the_number_of_mistakes_is_written(copy, output):
    for config in copy.glob("runs/iris_mlp/*/config.yaml"):
        if "mistake_counts" in config.read_text(encoding="utf-8"):
            for stage in ("val", "test"):
                steps = [point.step for point in events(config.parent, stage).Scalars("mistakes/count")]
                assert steps[-1] == 2 * 3  # epochs and batches
                assert steps == sorted(set(steps))
            return
    pytest.fail("no run with the callback")


@pytest.mark.slow
def test_keys_are_explained_and_checked(output):
    assert "means    Number of linear functions per unit.\n" in output
    assert "error: command line: model.num_pieces: 1 is out of range; accepts int, >= 2\n" in output
    assert f"exit 2 {' '.join(OUT_OF_RANGE)}\n" in output
    assert "error: command line: data.file: nowhere.csv does not exist\n" in output
    assert f"exit 2 {' '.join(MISSING_FILE)}\n" in output


@pytest.mark.slow
def test_the_contracts_cover_new_files(copy):
    names = "penguins or maxout or my_model"
    done = run(copy, "-m", "pytest", "-q", "tests/test_contracts.py", "-k", names)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout)
    assert "skipped" not in done.stdout
