"""CONTRIBUTING's own dataset and own model, exactly as they stand there, in a copy of the project."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config.signatures import PROJECT
from tests.runs import events

BLOCKS = re.findall(
    r"```(?:python|yaml)\n(# (\S+)\n.*?)```", (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "project"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "data", "*_cache", "__pycache__")
    shutil.copytree(PROJECT, folder, ignore=ignored)
    for text, name in BLOCKS:
        (folder / name).write_text(text, encoding="utf-8")
    generator = random.Random(0)
    rows = ["bill_length,bill_depth,flipper_length,body_mass,species"]
    for i, species in enumerate(["Adelie", "Chinstrap", "Gentoo"] * 40):
        rows.append(",".join(f"{i % 3 * 5 + generator.gauss(10, 1):.1f}" for _ in range(4)) + f",{species}")
    (folder / "data").mkdir()
    (folder / "data/penguins.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def command(copy: Path, *argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *argv], cwd=copy, capture_output=True, text=True)


def test_there_are_five_files():
    assert [name for _, name in BLOCKS] == [
        "datamodules/penguins.py", "configs/penguins_mlp.yaml", "lit_models/maxout.py", "configs/iris_maxout.yaml",
        "callbacks/mistake_counts.py",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["penguins_mlp", "iris_maxout"])
def test_it_trains(copy, name):
    done = command(copy, "train.py", "--config", f"configs/{name}.yaml", "trainer.max_epochs=20")
    assert done.returncode == 0, done.stderr
    (path,) = copy.glob(f"runs/{name}/*/metrics.json")
    assert json.loads(path.read_text(encoding="utf-8"))["test/accuracy"] > 0.8


def test_its_picture_is_shown(copy):
    options = ["trainer.max_epochs=2", "callbacks.mistake_counts={every_seconds: 0}", "run.root=shown"]
    done = command(copy, "train.py", "--config", "configs/iris_maxout.yaml", *options)
    assert done.returncode == 0, done.stderr
    (folder,) = copy.glob("shown/iris_maxout/*")
    for stage, count in (("val", 2), ("test", 1)):
        shown = events(folder, stage).Scalars("mistakes/count")
        assert [one.step for one in shown] == sorted({one.step for one in shown})
        assert len(shown) == count


def test_its_keys_are_explained_and_checked(copy):
    done = command(copy, "train.py", "--config", "configs/iris_maxout.yaml", "--explain", "model.pieces")
    assert "Linear maps that each unit takes the maximum of." in done.stdout
    done = command(copy, "train.py", "--config", "configs/iris_maxout.yaml", "model.pieces=1")
    assert "model.pieces: 1 is out of range; accepts int, >= 2" in done.stderr
    done = command(copy, "train.py", "--config", "configs/penguins_mlp.yaml", "data.file=nowhere.csv")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "data.file: nowhere.csv does not exist" in done.stderr


@pytest.mark.slow
def test_the_contracts_cover_it_at_once(copy):
    done = command(copy, "-m", "pytest", "-q", "tests/test_contracts.py", "-k", "penguins or maxout")
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout)
    assert "skipped" not in done.stdout
