"""The environment of a run: what is recorded, and what is said when it has changed."""

import json
import os
import shutil
from pathlib import Path

import pytest

import train
from engine.config.signatures import PROJECT
from engine.runs import run_record
from engine.runs.run_record import RunRecord, code_digests
from tests.exactness import signalled, start
from tests.runs import IRIS, WITHOUT_PICTURES


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    os.chdir(PROJECT)
    with pytest.MonkeyPatch.context() as patch, signalled(patch, lambda trainer: trainer.global_step == 4):
        return start(tmp_path_factory.mktemp("original"), "--config", IRIS, "trainer.max_epochs=2", *WITHOUT_PICTURES)[
            1
        ]


@pytest.fixture
def stopped(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "runs/iris_mlp/stopped")


def change(folder: Path, **facts: object) -> None:
    path = folder / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_the_code_of_a_run_is_recorded(stopped):
    code = json.loads((stopped / "environment.json").read_text())["code"]
    assert code == code_digests()
    assert {
        "train.py",
        "lit_models/mlp.py",
        "lit_models/parts/metrics.py",
        "engine/training/epoch_loop.py",
    } <= code.keys()
    assert not any(name.startswith(("tests", ".")) for name in code)


def test_a_model_that_has_got_an_option_is_resumed(stopped, monkeypatch):
    fixed_config = RunRecord._fixed_config
    monkeypatch.setattr(RunRecord, "_fixed_config", lambda self: fixed_config(self) | {"model.depth": 1})
    assert train.main(["--resume", str(stopped)]) == 0


def test_unchanged_code_is_not_mentioned(stopped, capsys):
    assert train.main(["--resume", str(stopped)]) == 0
    assert "may not be exact" not in capsys.readouterr().out
    assert "code" not in json.loads((stopped / "environment.json").read_text())["resumed"][0]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"lit_models/mlp.py": "0"}, "code (lit_models/mlp.py)"),
        ({"datamodules/iris.py": "0", "callbacks/gallery.py": "0"}, "code (callbacks/gallery.py, datamodules/iris.py)"),
        ({"lit_models/deleted.py": "0", "lit_models/mlp.py": None}, "code (lit_models/deleted.py, lit_models/mlp.py)"),
        ({f"lit_models/m{i}.py": "0" for i in range(7)}, "lit_models/m4.py and 2 more)"),
    ],
    ids=["changed", "two", "deleted and new", "many"],
)  # fmt: skip
def test_changed_code_is_one_line(changes, shown, stopped, capsys):
    code = {name: digest for name, digest in (code_digests() | changes).items() if digest is not None}
    change(stopped, code=code)
    assert train.main(["--resume", str(stopped)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "may not be exact" in line]
    assert line.startswith("resuming may not be exact: ")
    assert shown in line
    facts = json.loads((stopped / "environment.json").read_text())
    assert facts["resumed"][0]["code"] == code_digests()
    assert facts["code"] == code


def test_a_file_that_is_not_executed_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(run_record, "PROJECT", tmp_path)
    (tmp_path / "train.py").write_text("")
    (tmp_path / "lit_models/parts").mkdir(parents=True)
    (tmp_path / "lit_models/parts/some.py").write_text("")
    for name in (".ipynb_checkpoints", "tests", "__pycache__"):
        (tmp_path / "lit_models" / name).mkdir()
    (tmp_path / "lit_models/.ipynb_checkpoints/some-checkpoint.py").write_text("")
    (tmp_path / "lit_models/.#some.py").symlink_to("user@host")  # of an editor
    (tmp_path / "lit_models/folder.py").mkdir()
    assert list(code_digests()) == ["lit_models/parts/some.py", "train.py"]


@pytest.mark.parametrize(
    "content", ["{}", "[" * 10**5, None, {"code": "x"}, {"resumed": 3}], ids=lambda content: repr(content)[:20]
)
def test_a_broken_environment_is_one_line(content, stopped, capsys):
    path = stopped / "environment.json"
    if isinstance(content, dict):
        change(stopped, **content)
    elif content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_text(content)
    assert train.main(["--resume", str(stopped)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: --resume: {path} is missing or broken")
    assert printed.count("\n") == 1
