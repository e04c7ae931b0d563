"""``--resume`` finds the run, also if its name has special characters. Printed commands can be pasted into a shell."""

import os
import shlex
import signal
from pathlib import Path

import pytest

import train
from engine.config.config import load_config
from engine.contracts import BrokenCheckpointError, ConfigError
from engine.runs.resume import find_restarted, find_run
from engine.runs.run_folder import TORCHRUN_FILE, run_folder, torchrun_id
from engine.training.checkpoint_file import newest
from engine.training.exits import Stopped, report_exit
from tests.runs import IRIS

PATTERNS = ["lr[0.1]", "[!a]", "*", "a?", "**", "{a,b}"]
WORDS = ["two words", "it's", '"$HOME"', "-x", "a;b", "a\\b"]
CONFIG = load_config(Path(IRIS)).to_yaml(name=None)


def make_run(root: Path, name: str, changed: float = 0.0) -> Path:
    """A run that has not started to train; `changed` is its age."""
    folder = root / "iris_mlp" / name
    folder.mkdir(parents=True)
    config = folder / "config.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    os.utime(config, (10**9 + changed, 10**9 + changed))
    return folder


def auto(root: Path, name: str | None = None) -> Path | None:
    given = [] if name is None else ["run.name=" + "'" + name.replace("'", "''") + "'"]
    return find_run("auto", Path(IRIS), [f"run.root={root}", *given]).resumed_folder


@pytest.mark.parametrize("name", PATTERNS)
def test_auto_finds_a_name_with_special_characters(name, tmp_path):
    folder = make_run(tmp_path, name)
    make_run(tmp_path, "other", changed=10)
    assert auto(tmp_path, name) == folder


@pytest.mark.parametrize("name", ["*", "?ther", "[o]ther", "**", "other*", "OTHER", ".", "..", "", "../iris_mlp/other"])
def test_auto_does_not_take_a_name_for_a_pattern_or_a_path(name, tmp_path):
    make_run(tmp_path, "other")
    if name == "":
        assert auto(tmp_path, name) == tmp_path / "iris_mlp/other"
    else:
        with pytest.raises(ConfigError, match="has no unfinished run"):
            auto(tmp_path, name)


@pytest.mark.parametrize("root", ["[runs]", "a*", "two words"])
def test_auto_finds_runs_in_a_root_with_special_characters(root, tmp_path):
    make_run(tmp_path / root, "older")
    newer = make_run(tmp_path / root, "lr[0.1]", changed=10)
    assert auto(tmp_path / root) == newer


def test_files_that_vanish_or_lead_nowhere(tmp_path):
    folder = make_run(tmp_path, "x")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").symlink_to(tmp_path / "gone")
    (folder.parent / "broken").symlink_to(tmp_path / "gone")
    (folder.parent / "folder/config.yaml").mkdir(parents=True)
    assert auto(tmp_path) == folder


def test_a_checkpoint_in_the_current_folder(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "x")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/best.ckpt").touch()
    for place, given in ((folder / "checkpoints", "best.ckpt"), (folder, "checkpoints/best.ckpt")):
        monkeypatch.chdir(place)
        found = find_run(given, None, [])
        assert found.resumed_folder.resolve() == folder
        assert found.checkpoint.resolve() == folder / "checkpoints/best.ckpt"


def commands(text: str) -> list[str]:
    """The folder after each ``--resume`` in a message, as a shell reads it."""
    return [shlex.split(part.partition("\n")[0])[0].rstrip(",") for part in text.split("--resume ")[1:]]


@pytest.mark.parametrize("name", WORDS)
def test_every_printed_command_can_be_pasted(name, tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path, name)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "last.ckpt").write_bytes(b"")
    report_exit(Stopped(signal.SIGINT, "epoch 1"), folder, 0)
    printed = capsys.readouterr().err
    with pytest.raises(ConfigError) as changed:
        find_run("auto", Path(IRIS), [f"run.root={tmp_path}", "optimizer.lr=0.5"])
    with (
        pytest.raises(ConfigError) as exists,
        run_folder(
            load_config(Path(IRIS), [f"run.root={tmp_path}", f"run.name='{name.replace(chr(39), 2 * chr(39))}'"])
        ),
    ):
        pass
    for text in (printed, str(changed.value), str(exists.value)):
        assert commands(text) == [str(folder)], text
    monkeypatch.setattr(
        "engine.training.checkpoint_file.read_sealed",
        lambda path: {"position": {"exact": True, "log_sizes": {}}, "global_step": 3},
    )
    monkeypatch.setattr("engine.training.checkpoint_file.verify", lambda path, ours: _refuse(path))
    (checkpoints / "best.ckpt").write_bytes(b"")
    with pytest.raises(BrokenCheckpointError) as broken:
        newest(folder, fall_back=False)
    assert commands(str(broken.value)) == [str(checkpoints / "best.ckpt")]
    monkeypatch.chdir(folder.parent)
    report_exit(Stopped(signal.SIGINT, "epoch 1"), Path(name), 0)
    (relative,) = commands(capsys.readouterr().err)
    assert Path(relative).resolve() == folder
    assert not relative.startswith("-")


def _refuse(path: Path) -> None:
    if path.name == "last.ckpt":
        raise BrokenCheckpointError(f"{path.name} is empty")


def test_the_example_of_a_folder_is_quoted(tmp_path, capsys):
    folder = make_run(tmp_path, "two words")
    assert train.main(["--resume", str(tmp_path)]) == 2
    assert f"such as '{folder}'" in capsys.readouterr().err


@pytest.fixture
def torchrun(monkeypatch):
    """The variables of a process that torchrun has started again."""
    variables = {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def restarted(root: Path, *overrides: str) -> Path | None:
    return find_restarted(load_config(Path(IRIS), [f"run.root={root}", *overrides])).resumed_folder


def test_a_command_that_torchrun_has_restarted_resumes_its_own_run(tmp_path, torchrun, monkeypatch):
    assert restarted(tmp_path) is None  # it died before it had a folder
    with run_folder(load_config(Path(IRIS), [f"run.root={tmp_path}", "run.name=ours"])) as ours:
        (ours / "environment.json").touch()
    other = make_run(tmp_path, "other", changed=1e9)
    (other / TORCHRUN_FILE).write_text("another command", encoding="utf-8")
    assert restarted(tmp_path) == restarted(tmp_path, "run.name=ours") == ours
    assert restarted(tmp_path, "run.name=new") is None
    assert restarted(tmp_path, "optimizer.lr=0.5") is None
    with monkeypatch.context() as first:
        first.setenv("TORCHELASTIC_RESTART_COUNT", "0")
        assert restarted(tmp_path) is None
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert restarted(tmp_path) is None


def test_a_run_that_ended_before_the_restart_is_not_repeated(tmp_path, torchrun, capsys):
    folder = make_run(tmp_path, "x")
    (folder / TORCHRUN_FILE).write_text(torchrun_id(), encoding="utf-8")
    (folder / "metrics.json").touch()
    assert train.main(["--config", IRIS, f"run.root={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"{folder} is finished\n"
