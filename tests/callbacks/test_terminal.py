"""What a person at a terminal sees of a run, and what a log file gets."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from callbacks import progress_line
from callbacks.progress_line import ProgressLine, done_share
from engine.terminal import duration
from tests.runs import IRIS, run

COLUMNS = 72


def in_a_terminal(root: Path, *argv: str) -> tuple[str, str]:
    """The command in a terminal of 72 columns: what it shows, and what it writes to standard error."""
    screen, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "train.py", *argv, f"run.root={root}"]
    with subprocess.Popen(command, stdout=end, stderr=subprocess.PIPE, env=environ | {"TERM": "xterm"}) as process:
        os.close(end)
        shown = b""
        while True:
            try:
                piece = os.read(screen, 65536)
            except OSError:  # nobody writes to it any more
                break
            if not piece:
                break
            shown += piece
        assert process.stderr is not None
        said = process.stderr.read().decode()
    os.close(screen)
    assert process.returncode == 0, said
    return shown.decode().replace("\r\n", "\n"), said


@pytest.fixture(scope="module")
def terminal(tmp_path_factory) -> tuple[str, str]:
    slow = [
        "data.batch_size=1",
        "trainer.max_epochs=16",
        "callbacks.gallery=null",
    ]  # enough for two lines
    return in_a_terminal(tmp_path_factory.mktemp("terminal"), "--config", IRIS, *slow)


def test_a_line_is_redrawn_and_never_longer_than_the_terminal(terminal):
    states = [state for line in terminal[0].split("\n") for state in line.split("\r")[1:] if state.startswith("epoch")]
    assert len(states) > 1
    assert all(re.match(r"epoch \d+/16  ", state) for state in states)
    assert all(len(state) < COLUMNS for state in states)
    assert all(len(after) >= len(before.rstrip()) for before, after in pairwise(states))  # written over


def test_there_are_no_colours_and_no_warnings(terminal):
    """So NO_COLOR has nothing to switch off."""
    assert "\x1b" not in terminal[0]
    assert terminal[1] == ""


def test_a_run_opens_with_what_it_will_do_and_ends_with_what_came_of_it(terminal):
    titles = [line[:13].strip() for line in terminal[0].split("\n") if line and "\r" not in line]
    assert [title for title in titles if title != "expected"] == [
        "run folder: /", "data", "model", "device", "steps",
        "test", "validation", "checkpoint", "trained", "speed", "time", "run folder", "TensorBoard",
    ]  # fmt: skip
    assert (
        "data         iris: 4 features, 3 classes, 96 to train on, 24 for validation, 30 for the test\n" in terminal[0]
    )
    assert "model        mlp: 4,675 parameters\n" in terminal[0]
    assert re.search(r"^device       cpu: .*\d threads?, 32-true$", terminal[0], re.M)
    assert "steps        16 epochs, 96 an epoch, steps of 1\n" in terminal[0]


def test_a_log_gets_whole_lines(tmp_path, capsys):
    run(tmp_path, "--config", IRIS, "trainer.max_epochs=3")
    said = capsys.readouterr().out
    assert "\r" not in said
    assert re.search(r"^epoch 1/3  [\d.]+ s  train/loss 0\.\d+  train/accuracy 0\.\d+  val/loss", said, re.M)
    assert re.search(r"^epoch 3/3  ", said, re.M)


def test_frozen_parameters_are_told_apart(tmp_path, capsys):
    run(tmp_path, "--config", "configs/iris_bert.yaml", "model.freeze_layers=1", "trainer.max_epochs=1")
    assert re.search(r"^model        bert: [\d,]+ parameters, [\d,]+ of them trained$", capsys.readouterr().out, re.M)


def trainer(done: int, *, max_epochs: int = 4, max_steps: int = -1) -> SimpleNamespace:
    loop = SimpleNamespace(total_batch_idx=done)
    return SimpleNamespace(
        max_steps=max_steps, max_epochs=max_epochs, num_training_batches=100, global_step=done, fit_loop=loop,
        is_global_zero=True, current_epoch=done // 100, callback_metrics={},
    )  # fmt: skip


def test_the_share_that_is_done_is_that_of_what_ends_first():
    assert done_share(trainer(100)) == 0.25
    assert done_share(trainer(100, max_steps=200)) == 0.5
    assert done_share(trainer(100, max_epochs=-1)) is None


def test_the_time_that_is_left_is_told_once_it_can_be_known(capsys, monkeypatch):
    """A run that goes on at a quarter has a quarter done that took it no time."""
    now = 1000.0
    monkeypatch.setattr(progress_line, "time", SimpleNamespace(monotonic=lambda: now))
    line = ProgressLine(live=False)
    line.on_train_start(trainer(100), None)  # type: ignore[arg-type]
    now += 10
    line.on_train_batch_end(trainer(200), None, None, None, 99)  # type: ignore[arg-type]
    line.on_train_batch_end(trainer(201), None, None, None, 100)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "expected     about 30 s of training\n"
    assert time.monotonic() != now


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.044, "0.044 s"),
        (0, "0 s"),
        (3.14, "3.1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3599.7, "1 h"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations_are_for_people(seconds, said):
    assert duration(seconds) == said


def test_figures_are_shown_whole_or_not_at_all(monkeypatch, capsys):
    monkeypatch.setattr(progress_line.shutil, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    line = ProgressLine()
    line.live = True
    line._say("epoch 1/4  3.8 s  train/loss 0.1605  val/loss 0.2226", end="")
    assert capsys.readouterr().out.strip() == "epoch 1/4  3.8 s  train/loss 0.1605"
