"""The command runs.py, and the states of a run that it reads: running, finished, failed, interrupted."""

import errno
import fcntl
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import runs
import train
from engine.config.signatures import PROJECT
from engine.runs import run_index
from tests.exactness import signalled, start
from tests.runs import IRIS, WITHOUT_PICTURES, run

SECONDS, COUNT = 2.0, 10_000


CONFIG = """\
seed: 0
data: {name: mnist}
model: {widths: [1, 2]}
optimizer:
  lr: 0.1
schedule: {}
trainer: {}
callbacks: {}
run: {}
"""


def made(root: Path, name: str, began: float = 1e9, end: dict | None = None, **metrics) -> Path:
    """A run's folder, with the files that the command reads."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / ".lock").touch()
    os.utime(folder / "config.yaml", (began, began))
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    if end is not None:
        (folder / "status.json").write_text(json.dumps(end), encoding="utf-8")
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    """Five runs, the newest first: cnn/d killed, cnn/c failed, mlp/b best, mlp/a, mlp/z not finite."""
    root = tmp_path / "runs"
    common = {"test/f1": 0.5, "train_seconds": 12.3, "test_class_accuracy/cat": 0.25}
    made(root, "mlp/z", 1.0e9, **common, **{"test/accuracy": 0.1, "val/accuracy": float("nan"), "test/loss": 3.0})
    made(root, "mlp/a", 1.1e9, **common, **{"test/accuracy": 0.9, "val/accuracy": 0.8, "test/loss": 0.2})
    made(root, "mlp/b", 1.2e9, **common, **{"test/accuracy": 0.8, "val/accuracy": 0.9, "test/loss": 0.1})
    made(root, "cnn/c", 1.3e9, {"status": "failed", "exit_code": 3, "reason": "diverged: the loss is nan; lower it"})
    made(root, "cnn/d", 1.4e9)
    (root / "cnn/no run").mkdir()
    (root / "a file").write_text("", encoding="utf-8")
    return root


def output(capsys, *argv: object) -> str:
    assert runs.main(list(map(str, argv))) == 0
    return capsys.readouterr().out


def error(capsys, *argv: object) -> str:
    assert runs.main(list(map(str, argv))) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    return printed.err


def test_runs_are_listed_the_newest_first(root, capsys):
    rows = [line.split() for line in output(capsys, "--root", root).splitlines()]
    assert rows[0][:4] == ["run", "status", "accuracy", "f1"]
    assert [row[0] for row in rows[1:]] == ["cnn/d", "cnn/c", "mlp/b", "mlp/a", "mlp/z"]
    assert [row[1] for row in rows[1:]] == ["interrupted", "failed", "finished", "finished", "finished"]
    assert rows[3][2:8] == ["0.8000", "0.5000", "0.1000", "0.9000", "12", "s"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["mlp"], ["mlp/b", "mlp/a", "mlp/z"]),
        (["mlp/a", "c*"], ["cnn/d", "cnn/c", "mlp/a"]),
        (["*/b"], ["mlp/b"]),
        (["--status", "failed"], ["cnn/c"]),
        (["--status", "failed", "cnn"], ["cnn/c"]),
        (["--status", "failed", "--status", "interrupted"], ["cnn/d", "cnn/c"]),
        (["mlp/"], ["mlp/b", "mlp/a", "mlp/z"]),
        (["list", "--last", "2"], ["cnn/d", "cnn/c"]),
    ],
)
def test_runs_are_selected_by_name_status_and_number(root, capsys, options, names):
    said = output(capsys, *options, "--root", root)
    assert [line.split()[0] for line in said.splitlines()[1:] if "/" in line.split()[0]] == names
    assert ("... and 3 earlier runs; --last 0 shows all" in said) == ("--last" in options)


@pytest.mark.parametrize("given", ["{root}/mlp/a", "runs/mlp/a/", "./runs/mlp/a", "runs/mlp/a*"])
@pytest.mark.parametrize("below", ["{root}", "runs", "./runs/", "../{name}/runs"])
def test_a_run_is_selected_by_its_folder(root, capsys, monkeypatch, given, below):
    monkeypatch.chdir(root.parent)
    given, below = (text.format(root=root, name=root.parent.name) for text in (given, below))
    lines = output(capsys, "list", given, "--root", below).splitlines()
    assert [line.split()[0] for line in lines] == ["run", "mlp/a"]


def test_a_name_that_matches_no_run(root, capsys):
    problem = f"matches none of the 5 runs below {root}; "
    for argv in (["list", "mpl"], ["mpl", "--json"], ["prune", "mpl", "--yes"], ["best", "val/accuracy", "mpl"]):
        assert error(capsys, *argv, "--root", root) == f"error: command line: mpl: {problem}did you mean mlp?\n"
    assert f"comapre: {problem}did you mean compare?" in error(capsys, "comapre", "--root", root)
    assert f"xyz: {problem}python runs.py --root {root} shows all" in error(capsys, "xyz", "--root", root)
    assert output(capsys, "--status", "running", "--root", root) == "no runs with status running\n"


def test_json_has_all_values(root, capsys):
    content = json.loads(output(capsys, "--json", "--root", root))
    assert len(content) == 5
    assert content[1] == {
        "run": "cnn/c", "folder": str(root / "cnn/c"), "status": "failed", "began": "2011-03-13T07:06:40+00:00",
        "reason": "diverged: the loss is nan; lower it", "metrics": {},
    }  # fmt: skip
    assert content[2]["metrics"]["test_class_accuracy/cat"] == 0.25


def test_a_run_that_finishes_while_it_is_read_is_finished(root, capsys, monkeypatch):
    def finish(folder: Path) -> bool:
        (folder / "metrics.json").write_text('{"test/accuracy": 0.5}', encoding="utf-8")
        return False

    monkeypatch.setattr(run_index, "is_running", finish)
    assert "cnn/d  finished" in output(capsys, "cnn/d", "--root", root)


def test_a_locked_run_is_running(root, capsys):
    with (root / "cnn/d/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "cnn/d  running" in output(capsys, "cnn/d", "--root", root)
        assert output(capsys, "prune", "--yes", "cnn/d", "--root", root) == "no runs to delete\n"
    assert "cnn/d  interrupted" in output(capsys, "cnn/d", "--root", root)


@pytest.mark.parametrize(
    "content",
    [
        b"{", b"[1, 2]", b"\xff\xfe", b'{"test/accuracy": "high"}', b'{"test/accuracy": null, "reason": null}', b"",
        b"[" * 100_000, b'{"test/accuracy": 1%s, "train_seconds": 1e999}' % (b"0" * 400),
    ],
    ids=["cut off", "list", "not UTF-8", "text", "null", "empty", "deep", "huge"],
)  # fmt: skip
def test_broken_files_are_ignored(root, capsys, content):
    (root / "mlp/a/metrics.json").write_bytes(content)
    (root / "cnn/c/status.json").write_bytes(content)
    assert len(output(capsys, "--root", root).splitlines()) == 6
    assert "None" not in output(capsys, "--root", root)
    assert "test/f1" in output(capsys, "compare", "mlp/a", "mlp/b", "--root", root)
    assert f"{root}/mlp/a" not in output(capsys, "best", "test/accuracy", "--root", root)


@pytest.mark.parametrize("content", [b"a: [1\n", b"- 1\n", b"a: \xff\n", b"2001-99-99: 1\n", b""])
def test_a_broken_config_is_not_compared(root, capsys, content):
    (root / "mlp/a/config.yaml").write_bytes(content)
    assert error(capsys, "compare", "mlp/a", "mlp/b", "--root", root) == (
        f"error: {root}/mlp/a/config.yaml: cannot be read; compare other runs\n"
    )


def test_names_and_reasons_do_not_move_the_cursor(root, capsys):
    made(root, "mlp/of two\nlines \x1b[31m", 1e9, {"status": "failed", "reason": "red \x1b[31m\nand more"})
    said = output(capsys, "--root", root)
    assert "mlp/of two\\nlines \\x1b[31m  failed" in said
    assert "red \\x1b[31m\\nand more" in said


def test_json_is_ascii_without_nan(root, capsys):
    def refused(name):
        raise AssertionError(name)

    made(root, "mlp/größer", 1e9, **{"test/loss": float("inf")})
    said = output(capsys, "--json", "--root", root)
    assert said.isascii()
    found = {run["run"]: run["metrics"] for run in json.loads(said, parse_constant=refused)}
    assert found["mlp/z"]["val/accuracy"] is None
    assert found["mlp/größer"]["test/loss"] is None


def test_a_metric_that_is_always_nan_has_no_best_run(root, capsys):
    assert "is nan in every run" in error(capsys, "best", "val/accuracy", "mlp/z", "--path", "--root", root)


def command(*argv: object, **options: Any) -> "subprocess.Popen[bytes]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "runs.py", *map(os.fspath, argv)], cwd=PROJECT, **pipes, **options)


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_is_not_utf_8(tmp_path, encoding):
    name = os.fsdecode(b"mlp/\xff \xc3\xa9")
    folder = made(tmp_path, name, **{"val/accuracy": 0.5})
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for argv, expected in (
        ((), b"\\udcff"),
        (("--json",), b"\\udcff \\u00e9"),
        (("best", "val/accuracy", "--path"), os.fsencode(folder) + b"\n"),
    ):
        printed, problems = command(*argv, "--root", tmp_path, env=environment).communicate()
        assert expected in printed
        assert problems == b""


def test_a_reader_that_closes_the_pipe(tmp_path):
    for i in range(400):
        made(tmp_path, f"mlp/{i}", **{"test/accuracy": 0.5})
    process = command("--json", "--root", tmp_path)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_ctrl_c(tmp_path):
    for i in range(400):
        made(tmp_path, f"mlp/{i}", **{"test/accuracy": 0.5})
    with command("--json", "--root", tmp_path) as process:
        process.stdout.read(1)  # it waits, because the pipe has no room for the rest
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == b""
    assert process.returncode == 130


def test_ctrl_c_while_it_starts(tmp_path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    shutil.copy(PROJECT / "runs.py", tmp_path)
    done = subprocess.run([sys.executable, "runs.py"], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")  # a shell says 130


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("argv", [("list",), ("compare", "a" * 90, "b" * 90)], ids=["list", "compare"])
def test_a_table_fits_the_terminal(root, capsys, monkeypatch, width, argv):
    for name, loss in (("a" * 90, 0.123456), ("b" * 90, 0.234567)):
        made(root, f"mlp/{name}", **{"test/loss": loss, "val/accuracy": 0.5})
    (root / f"mlp/{'a' * 90}/config.yaml").write_text(f"model: {'x' * 200}\n", encoding="utf-8")
    whole = set(output(capsys, *argv, "--root", root).split())
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    said = output(capsys, *argv, "--root", root)
    assert max(map(len, said.splitlines())) <= width
    assert {word for word in said.split() if word[0].isdigit()} <= whole  # numbers are never cut
    if width == 80 and argv[0] == "compare":
        assert "0.123456" in said
        assert "0.234567" in said


def test_common_terminal_widths_show_the_important_columns(tmp_path, capsys, monkeypatch):
    names = ["iris_mlp/20261123-053715-b3cbb7", "iris_mlp/20261123-053804-7ca139"]
    for name, error in zip(names, (0.0399267, 0.0183618), strict=True):
        figures = dict.fromkeys(("test/accuracy", "test/f1", "test/loss", "val/accuracy", "train_seconds"), 0.9)
        made(tmp_path, name, **figures, **{"test/calibration_error": error})
    made(tmp_path, "iris_mlp/20261123-053850-c71c36", 1e9, {"status": "interrupted", "reason": "stopped by SIGTERM"})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert "val acc" in output(capsys, "--root", tmp_path)
    assert "-0.02156" in output(capsys, "compare", *names, "--root", tmp_path)
    this_year = f"{datetime.now():%Y}1001-053850"
    made(tmp_path, f"iris_mlp/{this_year}-0c71c3")
    began = datetime.strptime(this_year, "%Y%m%d-%H%M%S").replace(tzinfo=UTC).astimezone()
    monkeypatch.setenv("COLUMNS", "120")
    assert f"{began:%b %d %H:%M}" in output(capsys, "--root", tmp_path)
    assert "stopped by SIG.." in output(capsys, "--root", tmp_path)


def test_a_folder_is_never_cut(root, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    assert f"{root}/mlp/b\n" in output(capsys, "best", "val/accuracy", "--root", root)


def test_the_loss_decides_between_runs_of_the_same_accuracy(tmp_path, capsys):
    losses = {"a": 0.3, "b": 0.1, "c": None, "d": float("nan"), "e": 0.2}
    for i, (name, loss) in enumerate(losses.items()):
        made(tmp_path, f"mlp/{name}", 1.0e9 + i, **{"val/accuracy": 1.0, "val/loss": loss, "test/loss": 0.5})
    rows = output(capsys, "best", "val/accuracy", "--root", tmp_path).splitlines()[1:]
    assert [row[-1] for row in rows] == ["b", "e", "a", "d", "c"]  # otherwise the newest first


def test_two_runs_are_compared(root, capsys):
    (root / "mlp/b/config.yaml").write_text("optimizer:\n  lr: 0.2\nmodel: {widths: [1, 2]}\nnew: true\n")
    for name, threads in (("a", 2), ("b", 4)):
        facts = {"threads": threads, "packages": {"torch": "2.13.0", "numpy": name}, "command": name}
        (root / f"mlp/{name}/environment.json").write_text(json.dumps(facts), encoding="utf-8")
    lines = [line.split() for line in output(capsys, "compare", "a", "b", "--root", root).splitlines()]
    assert ["optimizer.lr", "0.1", "0.2"] in lines
    assert ["new", "(not", "set)", "True"] in lines
    assert ["threads", "2", "4"] in lines
    assert ["packages.numpy", "a", "b"] in lines
    assert ["test/accuracy", "0.9", "0.8", "-0.1"] in lines
    assert not [line for line in lines if line and line[0] in ("model.widths", "command", "packages.torch")]
    content = json.loads(output(capsys, "compare", "a", "b", "--root", root, "--json"))
    assert content["config"]["optimizer.lr"] == [0.1, 0.2]


OUTPUTS = {
    "full": ("> /dev/full", 1, "error: cannot write the output: No space left on device\n"),
    "closed": (">&-", 0, ""),
    "closed, as well as errors": (">&- 2>&-", 0, ""),
    "head": ("| true", 0, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv", [[], ["--json"], ["best", "val/accuracy"], ["compare", "mlp/*"], ["compare", "mlp/a", "mlp/b"]]
)
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_written(name, argv, root):
    redirection, code, message = OUTPUTS[name]
    command = shlex.join([sys.executable, "runs.py", "--root", str(root), *argv])
    done = subprocess.run(f"{command} {redirection}", shell=True, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, message)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_terminal_does_not_know(encoding, root):
    made(root, "n\xe4me\u2603/a", **{"val/accuracy": 0.5})
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "runs.py", "--root", str(root)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, env=environment)
    assert done.returncode == 0
    assert b"me" in done.stdout
    assert done.stderr == b""


def test_many_runs_are_compared_in_one_row_each(tmp_path, capsys):
    for i in range(20):
        folder = made(
            tmp_path, f"mlp/{i:02}", 1e9 + i, **{"val/accuracy": i / 20, "test/f1": 0.5, "train_seconds": 1.0}
        )
        (folder / "config.yaml").write_text(CONFIG.replace("lr: 0.1", f"lr: {i + 1}"), encoding="utf-8")
    lines = output(capsys, "compare", "mlp/*", "--root", tmp_path).splitlines()
    assert lines[0].split() == ["run", "optimizer.lr", "val/accuracy", "test/f1"]
    assert [line.split()[:3] for line in lines[1:]] == [[f"{i:02}", str(i + 1), f"{i / 20:g}"] for i in range(20)]
    pair = output(capsys, "compare", "mlp/0*", "mlp/19", "--root", tmp_path).splitlines()
    assert [line.split()[0] for line in pair[1:]] == [*(f"{i:02}" for i in range(10)), "19"]
    assert "needs at least two runs" in error(capsys, "compare", "mlp/07*", "--root", tmp_path)


def repeated(root: Path, config: str, accuracies: list[float], data: str = "name: mnist", first_seed: int = 0) -> None:
    """Finished runs of a config with the seeds from `first_seed` on; `{seed}` in `data` is the seed."""
    for seed, accuracy in enumerate(accuracies, first_seed):
        figures = {"test/accuracy": accuracy, "test/loss": 1 - accuracy, "train_seconds": 10.0 + seed, "epochs": 5}
        folder = made(root, f"{config}/{seed}", 1e9 + seed, **figures)
        content = CONFIG.replace("seed: 0", f"seed: {seed}").replace("name: mnist", data.format(seed=seed))
        content = content.replace("run: {}", f"run: {{name: '{seed}'}}")
        (folder / "config.yaml").write_text(content, encoding="utf-8")


MLP = [0.910, 0.920, 0.930, 0.915, 0.900]
CNN = [0.912, 0.925, 0.933, 0.921, 0.908]
BETTER = "cnn is better by 0.18 to 0.78 points"


@pytest.mark.parametrize("names", [("mlp", "cnn"), ("mlp/*", "cnn/*"), ("{root}/mlp", "{root}/cnn/"), ("mlp/*", "cnn")])
def test_groups_of_runs_with_the_same_seeds_are_paired(tmp_path, capsys, names):
    repeated(tmp_path, "mlp", MLP)
    repeated(tmp_path, "cnn", CNN)
    names = [name.format(root=tmp_path) for name in names]
    table, notes = output(capsys, "compare", *names, "--root", tmp_path).split("\n\n")
    header, *lines = [re.split("  +", line) for line in table.splitlines()]
    assert [line[0] for line in lines] == ["test/accuracy", "test/loss", "train_seconds"]
    assert (header[0], *header[3:]) == ("metric", "interval of the difference", "verdict")
    assert lines[0][1:4] == ["0.915 ± 0.011 (5)", "0.920 ± 0.010 (5)", "+0.18 to +0.78 points"]
    assert lines[0][4].endswith("is better by 0.18 to 0.78 points")
    assert lines[1][4].endswith("is better by 0.0018 to 0.0078")
    assert lines[2][3:] == ["no difference: the values are equal"]
    assert notes == "paired: the groups have the same seeds and splits\n"
    assert output(capsys, "compare", "mlp", "cnn", "--root", tmp_path).splitlines()[1].endswith(BETTER)


def test_groups_of_runs_with_different_seeds_are_not_paired(tmp_path, capsys):
    repeated(tmp_path, "mlp", MLP)
    repeated(tmp_path, "cnn", CNN, first_seed=1)
    said = output(capsys, "compare", "mlp", "cnn", "--root", tmp_path)
    assert (
        "no significant difference with 5 and 5 runs; "
        "detecting a difference of 0.5 points needs about 72 runs in each group" in said
    )
    assert "not paired: the groups have different seeds or splits" in said


SPLITS = "the runs use several splits of the same data, so the intervals are corrected for overlapping training sets"


@pytest.mark.parametrize(
    ("data", "is_better"),
    [
        ("name: iris, test_fraction: 0.2, split_seed: {seed}", False),
        ("name: iris, test_fraction: 0.2, split_seed: 0", True),
        ("name: table, test: a.csv, test_fraction: 0.2, split_seed: {seed}", True),
        ("name: iris, num_folds: 5, fold: {seed}", False),
        ("name: iris, num_folds: null, fold: 0", True),
        ("name: iris, num_folds: 500, fold: {seed}", True),  # a small test set: almost no correction
    ],
)
def test_runs_with_several_splits_of_the_data_have_wider_intervals(tmp_path, capsys, data, is_better):
    repeated(tmp_path, "mlp", MLP, data)
    repeated(tmp_path, "cnn", [0.911, 0.925, 0.933, 0.923, 0.906], data)
    said = output(capsys, "compare", "mlp", "cnn", "--root", tmp_path)
    assert ("cnn is better" in said) == is_better
    varies = "{seed}" in data and "a.csv" not in data
    assert (SPLITS in said) == varies
    assert "with 5 splits; detecting a difference of 0.5 points needs about 11 splits" in said or is_better


def test_only_finished_runs_of_one_setting_count_once(tmp_path, capsys):
    repeated(tmp_path, "mlp", MLP)
    repeated(tmp_path, "cnn", CNN)
    for i in range(2):
        made(tmp_path, f"cnn/killed {i}")
    made(tmp_path, "cnn/older", 1e8, **{"test/accuracy": 0.1})  # seed 0, too
    config = tmp_path / "mlp/3/config.yaml"
    config.write_text(config.read_text().replace("lr: 0.1", "lr: 0.2"))
    lines = output(capsys, "compare", "mlp", "cnn", "--root", tmp_path).splitlines()
    assert lines[1].endswith(BETTER)
    assert lines[-4:] == [
        "mlp: the runs also differ in optimizer.lr, so they are not repetitions of the same setting",
        "cnn: 2 unfinished runs are left out",
        "cnn: 1 older run with the same seed and split is left out",
        "paired: the groups have the same seeds and splits",
    ]


def test_several_groups_are_compared_in_pairs(tmp_path, capsys):
    for name, values in (("mlp", MLP), ("cnn", CNN), ("best", [value + 0.05 for value in CNN])):
        repeated(tmp_path, name, values)
    means, pairs, notes = output(capsys, "compare", "mlp", "cnn", "best", "--root", tmp_path).split("\n\n")
    assert means.splitlines()[0].split() == ["metric", "mlp", "cnn", "best"]
    lines = [re.split("  +", line) for line in pairs.splitlines()[1:]]
    assert [line[1] for line in lines] == ["mlp, cnn", "mlp, best", "cnn, best"] * 2
    assert lines[0][3] == "cnn is better by 0.11 to 0.85 points"  # a level of 97.5 %
    assert lines[1][3] == "best is better by 5.06 to 5.90 points"  # a level of 98.3 %
    assert lines[2][2:] == ["best is better by 5 points in every pair, so there is no interval"]
    assert notes.splitlines()[1] == "the intervals are corrected for 3 pairs per metric (Holm)"


def test_groups_in_json(tmp_path, capsys):
    repeated(tmp_path, "mlp", MLP)
    repeated(tmp_path, "cnn", CNN)
    repeated(tmp_path, "cnn", [math.nan], first_seed=5)
    repeated(tmp_path, "mlp", [0.9], first_seed=5)
    content = json.loads(output(capsys, "compare", "mlp", "cnn", "--root", tmp_path, "--json"))
    assert content["groups"][0] == {
        "group": "mlp", "runs": [f"mlp/{i}" for i in range(5, -1, -1)], "unfinished": 0, "older": 0,
    }  # fmt: skip
    accuracy, _, seconds = content["metrics"]
    assert accuracy["groups"]["cnn"]["mean"] is None
    assert accuracy["differences"] == [
        {"first": "mlp", "second": "cnn", "verdict": "unknown, because a value is not finite"}
    ]
    assert seconds["differences"][0].items() >= {"mean": 0.0, "counts": [6], "interval": None, "level": 0.95}.items()


def test_configs_with_one_run_and_runs_with_a_star_in_their_name_are_single_runs(tmp_path, capsys):
    for name in ("mlp/a*", "cnn/b*"):
        made(tmp_path, name, **{"val/accuracy": 0.5})
    for names in (("mlp", "cnn"), ("mlp/a*", "cnn/b*")):
        said = output(capsys, "compare", *names, "--root", tmp_path)
        assert ["metrics", "a*", "b*", "difference"] in [line.split() for line in said.splitlines()]


def test_groups_that_cannot_be_compared(tmp_path, capsys):
    repeated(tmp_path, "mlp", MLP)
    repeated(tmp_path, "cnn", CNN[:1])
    made(tmp_path, "cnn/killed")
    repeated(tmp_path, "folds", CNN, "name: iris, num_folds: 5, fold: {seed}")
    for name in ("a", "b"):
        made(tmp_path, f"other/{name}", samples=1)
    (tmp_path / "other/b/config.yaml").write_text(CONFIG.replace("seed: 0", "seed: 1"))
    hint = "train with another seed, for example seed=1"
    names = ", ".join(f"mlp/{i}" for i in (4, 3, 2, 1, 0))
    problem = "needs at least 2 finished runs with different seeds or folds, but has 1"
    for argv, expected in (
        (("mlp", "cnn"), f"cnn: {problem}; {hint}"),
        (("mlp", "mlp/1*"), f"mlp/1*: {problem}; {hint}"),
        (("mlp", "mlp/*"), f"compare: mlp and mlp/* have common runs: {names}; choose groups without common runs"),
        (("mlp", "other"), "compare: the groups have no metric in common; python runs.py shows all"),
        (("mlp", "folds"), "compare: folds has several splits of the data, but mlp only one; "
         "compare runs with the same data.split_seed and data.fold"),
        (("mlp", "no*"), f"no*: matches none of the 14 runs below {tmp_path}; python runs.py --root {tmp_path} shows all"),
    ):  # fmt: skip
        assert error(capsys, "compare", *argv, "--root", tmp_path) == f"error: command line: {expected}\n"


def test_the_best_runs_are_shown_with_the_keys_that_differ(tmp_path, capsys):
    for i in range(3):
        folder = made(tmp_path, f"mlp/{i}", **{"val/accuracy": i / 10})
        (folder / "config.yaml").write_text(CONFIG.replace("lr: 0.1", f"lr: {i + 1}"), encoding="utf-8")
    lines = output(capsys, "best", "val/accuracy", "--root", tmp_path).splitlines()
    assert [line.split()[-1] for line in lines] == ["optimizer.lr", "3", "2", "1"]
    folder.joinpath("config.yaml").write_text("- 1\n", encoding="utf-8")
    assert "optimizer.lr" not in output(capsys, "best", "val/accuracy", "--root", tmp_path)


FOREIGN = [
    "", "a: 1\n", "# a project\n", "\xff", CONFIG.replace("seed: 0\n", ""), CONFIG.replace("run: {}\n", ""),
    CONFIG + "more: 1\n",
    CONFIG.replace("run:", "runs:"), "trainer:\n  max_epochs: 1\nmodel: resnet\ndata: cifar\n", "[seed, data, model]\n",
    '{"seed": 0, "data": 1}\n', "seed: 0\nrun: {}\n", CONFIG.replace("\n", "\n  "),
]  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN)
def test_a_folder_of_another_tool_is_not_deleted(content, tmp_path, capsys):
    folder = made(tmp_path, "other_project/experiment")
    (folder / "config.yaml").write_text(content, encoding="utf-8", errors="surrogateescape")
    (folder / "weights.bin").write_bytes(b"1" * 1000)
    printed = output(capsys, "prune", "--yes", "--root", tmp_path)
    assert printed.startswith(f"not deleted: {folder}, because its config.yaml or .lock is not from train.py\n")
    assert (folder / "weights.bin").exists()


def test_a_copied_config_does_not_make_a_folder_a_run(tmp_path, capsys):
    folder = made(tmp_path, "paper/table1")
    (folder / ".lock").unlink()
    (folder / "thesis.tex").touch()
    assert output(capsys, "prune", "--yes", "--root", tmp_path).startswith(f"not deleted: {folder}, because")
    assert (folder / "thesis.tex").exists()


def test_a_run_of_this_project_is_deleted(tmp_path, capsys):
    folder = run(tmp_path, "--config", "configs/iris_mlp.yaml", "trainer.max_epochs=1", *WITHOUT_PICTURES)
    assert "deleted 1 run" in output(capsys, "prune", "--yes", "--status", "finished", "--root", tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["metrics.json", "status.json", "environment.json", "config.yaml"])
@pytest.mark.parametrize("kind", ["pipe", "link to a device", "folder", "huge", "loop"])
def test_files_that_cannot_be_read_do_not_stop_the_list(name, kind, root, capsys):
    path = root / "mlp/a" / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(10**12)
    else:
        path.symlink_to("/dev/zero" if kind == "link to a device" else path)
    assert "mlp/b" in output(capsys, "--root", root)
    assert "mlp/b" in output(capsys, "best", "val/accuracy", "--root", root)
    if name != "config.yaml":
        assert "mlp" in output(capsys, "compare", "mlp/a", "mlp/b", "--json", "--root", root)


@pytest.mark.parametrize(
    "name", ["00010101-000000", "00010101-000000-abcdef", "99991231-235959", "20260230-000000", "19691231-235959"]
)
def test_a_name_like_a_strange_date_does_not_stop_the_list(name, tmp_path, capsys):
    made(tmp_path, f"mlp/{name}", **{"val/accuracy": 0.5})
    for argv in ([], ["--json"], ["best", "val/accuracy"], ["prune", "--status", "finished", "--json"]):
        assert name in output(capsys, *argv, "--root", tmp_path)


def test_runs_without_differences(root, capsys):
    said = output(capsys, "compare", "cnn/c", "cnn/d", "--root", root)
    assert said.split("\n\n") == [
        "config: no differences",
        "environment: no differences",
        "metrics: no run is finished",
        "",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["compare", "mlp", "a"], "mlp: matches 3 runs; mlp/a, mlp/b, mlp/z"),
        (["compare", "nothing", "a"], "nothing: matches no run below "),
        (["compare", "a"], "compare: needs at least two runs"),
        (["compare", "", "mlp/a"], "'': matches no run below "),
        (["compare", "mpl/a", "mlp/b"], "did you mean mlp/a or mlp/"),
        (["list", "--last", "-1"], "argument --last/--top: -1 is below 0; 0 shows all"),
        (["list", "--last", "few"], "argument --last/--top: invalid count value: 'few'"),
        (["best", "test/loss", "--smallest", "--largest"], "not allowed with argument"),
        (["best", "samples"], "samples: no finished run has this metric; metrics: test/accuracy"),
        (
            ["best", "val/acuracy"],
            "val/acuracy: no finished run has this metric; metrics: val/accuracy, test/accuracy",
        ),
        (["best", "loss"], "loss: no finished run has this metric; metrics: test/loss"),
        (["best", "test/loss", "cnn"], "no run is finished"),
        (["--status", "done"], "invalid choice: 'done'"),
        (["prune"], "prune: cannot ask without a terminal; add --yes"),
        (["prune", "--yes", "--json"], "prune: --json lists the runs and deletes nothing; leave out --yes"),
        (["prune", "--older-than", "nan"], "nan is not a number of days"),
        (["prune", "--older-than", "-1"], "-1 is not a number of days"),
        (["prune", "--older-than", "x"], "invalid days value: 'x'"),
        (["list", "--nonsense"], "unrecognized arguments: --nonsense; see python runs.py --help"),
    ],
)
def test_a_mistake_is_one_line(root, capsys, options, problem):
    assert problem in error(capsys, *options, "--root", root)


def test_runs_are_ranked_by_a_metric(root, capsys):
    assert [line.split()[0] for line in output(capsys, "best", "val/accuracy", "--root", root).splitlines()[1:]] == [
        "0.9", "0.8", "nan",
    ]  # fmt: skip
    assert output(capsys, "best", "test/loss", "--path", "--root", root) == f"{root}/mlp/b\n"
    assert output(capsys, "best", "test/accuracy", "--path", "--root", root) == f"{root}/mlp/a\n"
    assert output(capsys, "best", "test/loss", "--largest", "--path", "--root", root) == f"{root}/mlp/z\n"
    assert output(capsys, "best", "test/accuracy", "--smallest", "--path", "--root", root) == f"{root}/mlp/z\n"
    assert len(output(capsys, "best", "test/f1", "--top", "2", "--root", root).splitlines()) == 4
    assert "choose by a metric of the validation" in output(capsys, "best", "test/accuracy", "--root", root)
    assert json.loads(output(capsys, "best", "val/accuracy", "--json", "--root", root))[0]["run"] == "mlp/b"


def test_failed_and_interrupted_runs_are_deleted(root, capsys):
    assert output(capsys, "prune", "--yes", "--older-than", "100000", "--root", root) == "no runs to delete\n"
    os.utime(root / "cnn/d/config.yaml", None)
    assert "deleted 1 run" in output(capsys, "prune", "--yes", "--older-than", "1", "--root", root)
    assert not (root / "cnn/c").exists()
    assert (root / "cnn/d").exists()
    output(capsys, "prune", "--yes", "--root", root)
    assert not (root / "cnn/d").exists()
    assert (root / "cnn/no run").exists()  # what is no run is left alone
    assert sorted(path.name for path in (root / "mlp").iterdir()) == ["a", "b", "z"]


@pytest.mark.parametrize(("answer", "left"), [("y", False), ("n", True), ("", True)])
def test_it_asks_before_it_deletes(root, capsys, monkeypatch, answer, left):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: answer if "delete 2 runs (" in question else "?")
    output(capsys, "prune", "--root", root)
    assert (root / "cnn/c").exists() == left


def test_a_linked_folder_is_not_deleted(root, capsys, tmp_path):
    elsewhere = made(tmp_path / "elsewhere", "cnn/kept")
    (root / "cnn/link").symlink_to(elsewhere)
    output(capsys, "prune", "--yes", "--root", root)
    assert elsewhere.exists()
    assert "link" not in output(capsys, "--root", root)


def test_without_locks_a_run_that_may_be_running_is_not_deleted(root, capsys, monkeypatch):
    def refusing(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    for run_with_lock in ("cnn/c", "cnn/d"):
        (root / run_with_lock / ".lock").touch()
    monkeypatch.setattr(fcntl, "flock", refusing)
    assert "cnn/d  running" in output(capsys, "cnn/d", "--root", root)
    assert "cnn/c  failed" in output(capsys, "cnn/c", "--root", root)  # it has left a status.json
    assert "deleted 1 run" in output(capsys, "prune", "--yes", "--root", root)
    assert [path.name for path in (root / "cnn").iterdir() if (path / "config.yaml").exists()] == ["d"]


def test_a_run_that_changes_during_the_question_is_not_deleted(root, capsys, monkeypatch):
    monkeypatch.setattr("engine.runs.run_lock.PATIENCE_SECONDS", 0.1)
    held = (root / "cnn/c/.lock").open("w")
    made(root, "cnn/e", 1.5e9)

    def goes_on(_):
        fcntl.flock(held, fcntl.LOCK_EX)
        (root / "cnn/e/metrics.json").write_text("{}", encoding="utf-8")
        return "y"

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", goes_on)
    with held:
        assert output(capsys, "prune", "--root", root).endswith("deleted 1 run; kept 2 runs that changed meanwhile\n")
    assert (root / "cnn/c").exists()
    assert (root / "cnn/e").exists()


def test_a_folder_that_cannot_be_deleted(root, capsys, monkeypatch):
    def forbidden(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", forbidden)
    said = error(capsys, "prune", "--yes", "cnn/c", "--root", root)
    assert said == f"error: {root}/cnn/c: cannot be deleted completely (Permission denied)\n"


def test_ctrl_d_is_no(root, capsys, monkeypatch):
    def closed(_):
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", closed)
    assert output(capsys, "prune", "--root", root).endswith("no runs were deleted\n")
    assert (root / "cnn/c").exists()


def test_links_do_not_count_for_the_size(root, tmp_path):
    (tmp_path / "large").write_bytes(b"0" * 10_000)
    (root / "cnn/d/link").symlink_to(tmp_path / "large")
    (root / "cnn/d/gone").symlink_to(tmp_path / "missing")
    (run_d,) = run_index.find_runs(root, ["cnn/d"])
    assert run_index.folder_size(run_d) < 1_000


def test_root_and_json_stand_before_or_after_the_command(root, capsys):
    after = output(capsys, "compare", "a", "b", "--json", "--root", root)
    assert output(capsys, "--root", root, "--json", "compare", "a", "b") == after
    assert output(capsys, "--json", "compare", "a", "b", f"--root={root}") == after
    assert output(capsys, "--root", root) == output(capsys, "list", "--root", root)


def test_brackets_and_stars_in_names(tmp_path, capsys):
    for name in ("a[1]", "a1", "b*", "bc", "other"):
        made(tmp_path, f"cfg/{name}")
    output(capsys, "prune", "cfg/a[1]", "--yes", "--root", tmp_path)
    output(capsys, "prune", str(tmp_path / "cfg/b*"), "--yes", "--root", tmp_path)
    assert sorted(path.name for path in (tmp_path / "cfg").iterdir()) == ["a1", "bc", "other"]
    output(capsys, "prune", "cfg/*t*", "--yes", "--root", tmp_path)
    assert sorted(path.name for path in (tmp_path / "cfg").iterdir()) == ["a1", "bc"]


def test_a_folder_named_config_yaml_is_not_a_run(root, capsys):
    (root / "cnn/folder/config.yaml").mkdir(parents=True)
    assert "folder" not in output(capsys, "--root", root).replace(str(root), "")


def test_a_copied_run_has_the_time_of_its_name(tmp_path, capsys):
    made(tmp_path, "mlp/20261122-090000-1f3a5c", 9e8)
    assert '"began": "2026-11-22T09:00:00+00:00"' in output(capsys, "--json", "--root", tmp_path)


def test_a_root_without_runs(tmp_path, capsys):
    assert "python train.py --config configs/iris_mlp.yaml" in output(capsys, "--root", tmp_path / "none")


# the states of real runs


def status(folder: Path) -> tuple[str, str]:
    run = run_index.read_run(folder, "", 0.0)
    return run.status, run.reason


def test_a_finished_run(tmp_path):
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1")
    assert status(folder) == ("finished", "")
    assert not (folder / "status.json").exists()


def test_a_diverged_run(tmp_path):
    code, folder = start(tmp_path, "--config", IRIS, "optimizer={name: sgd, lr: 1.0e+30}")
    assert code == 3
    assert status(folder)[0] == "failed"
    assert status(folder)[1].startswith("diverged: ")
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["exit_code"] == 3


def test_after_a_bug_a_refused_resumption_keeps_the_status(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug\nof two lines")

    with monkeypatch.context() as patch:
        patch.setattr("lit_models.classifier.LitClassifier.validation_step", broken)
        assert train.main(["--config", IRIS, f"run.root={tmp_path}"]) == 1
    (folder,) = tmp_path.glob("*/*")
    assert status(folder) == ("failed", "a bug of two lines")
    before = (folder / "status.json").read_bytes()
    assert train.main(["--resume", str(folder), "optimizer.lr=7"]) == 2
    assert (folder / "status.json").read_bytes() == before


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> Path:
    """A run that SIGTERM ended."""
    with signalled(monkeypatch, lambda trainer: trainer.global_step == 20):
        return start(tmp_path, "--config", IRIS, "trainer.max_epochs=8", "run.checkpoint_every_steps=5")[1]


@pytest.mark.parametrize("broken", ["environment.json", "checkpoints/*.ckpt"])
def test_a_refused_resumption_keeps_the_status(stopped, broken):
    before = (stopped / "status.json").read_bytes()
    for path in stopped.glob(broken):
        path.write_text("broken", encoding="utf-8")
    assert train.main(["--resume", str(stopped)]) == 2
    assert (stopped / "status.json").read_bytes() == before


def test_a_resumed_run_removes_its_status(stopped, monkeypatch):
    def killed(*_):  # what SIGKILL would leave, but for the lock
        seen.append((stopped / "status.json").exists())

    seen: list[bool] = []
    monkeypatch.setattr("lit_models.classifier.LitClassifier.on_train_epoch_start", killed, raising=False)
    assert train.main(["--resume", str(stopped)]) == 0
    assert seen
    assert not any(seen)
    assert status(stopped) == ("finished", "")


def test_ctrl_c_after_the_end_keeps_the_run_finished(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.runs.run_record.end_summary", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, "--config", IRIS, "trainer.max_epochs=1")
    (folder,) = tmp_path.glob("*/*")
    assert status(folder) == ("finished", "")
    assert not (folder / "status.json").exists()


def test_an_interrupted_run(tmp_path, monkeypatch):
    """A lock that is held is seen from the same process, too: it is that of an open file."""
    seen = []

    def in_its_third_epoch(trainer):
        if trainer.current_epoch < 2:
            return False
        seen.extend(status(folder) for folder in tmp_path.glob("*/*"))
        return True

    with signalled(monkeypatch, in_its_third_epoch):
        code, folder = start(tmp_path, "--config", IRIS, "trainer.max_epochs=100000")
    assert seen == [("running", "")]
    assert code == 143
    assert status(folder)[0] == "interrupted"
    assert status(folder)[1].startswith("stopped by SIGTERM in epoch ")


@pytest.mark.slow
@pytest.mark.faults("10,000 runs are listed", "in under 2 s, as the command that a person runs")
def test_ten_thousand_runs(tmp_path, record_property):
    for i in range(COUNT):
        made(tmp_path, f"config{i % 20}/{i}", **{"test/accuracy": i / COUNT, "val/accuracy": 0.5, "train_seconds": 3.0})
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "runs.py", "--root", str(tmp_path)],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        taken.append(time.perf_counter() - begun)
    assert f"... and {COUNT - 30:,} earlier runs" in done.stdout
    record_property("happened", f"{min(taken):.1f} s")
    assert min(taken) < SECONDS


def test_studies_are_listed_and_named(tmp_path, capsys):
    study = tmp_path / "lr-search"
    study.mkdir()
    (study / "study.yaml").touch()
    report = {
        "metric": "test/accuracy",
        "states": {"failed": 2},
        "settings": [{"metrics": {"test/accuracy": {"mean": 0.5}}}],
    }
    (study / "study.json").write_text(json.dumps(report), encoding="utf-8")
    assert runs.main(["--root", str(tmp_path)]) == 0
    assert re.search(r"lr-search +0 +0 +2 +test/accuracy 0.5000", capsys.readouterr().out)
    for argv in (["list", "lr-search"], ["compare", "lr-search", "lr-search/x"]):
        assert runs.main(["--root", str(tmp_path), *argv]) == 2
        assert "lr-search is a study: add --study lr-search" in capsys.readouterr().err
    assert runs.main(["--root", str(tmp_path), "--study", "lr-serch"]) == 2
    assert "did you mean lr-search?" in capsys.readouterr().err
    assert runs.main(["--root", str(tmp_path), "--study", "lr-search"]) == 0


def test_the_folder_of_a_run_of_a_study_is_found(tmp_path):
    """The run lies below the root of all runs, but deeper than other runs."""
    folder = tmp_path / "runs/study/mlp/seed-0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    found = run_index.find_single_run(tmp_path / "runs", str(folder))
    assert (found.name, found.folder) == ("mlp/seed-0", folder)
