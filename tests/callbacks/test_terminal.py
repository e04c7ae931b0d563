"""What a run prints in a terminal, and into a log file."""

import fcntl
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from callbacks import progress_line
from callbacks.progress_line import ProgressLine, complete_fraction
from engine.terminal import duration
from engine.training.clock import Clock
from tests.runs import IRIS, run

COLUMNS = 72
AT_EVERY_STEP = """
import sys
from callbacks import progress_line
progress_line.LIVE_SECONDS = 0.0  # redraw the line in every step, whatever the speed of the machine
import train
sys.exit(train.main(sys.argv[1:]))
"""


def run_in_terminal(root: Path, *argv: str) -> tuple[str, str]:
    """The output of train.py in a terminal of 72 columns, and its standard error."""
    screen, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-c", AT_EVERY_STEP, *argv, f"run.root={root}"]
    with subprocess.Popen(command, stdout=end, stderr=subprocess.PIPE, env=environ | {"TERM": "xterm"}) as process:
        os.close(end)
        output = b""
        while True:
            try:
                piece = os.read(screen, 65536)
            except OSError:  # the process has closed the terminal
                break
            if not piece:
                break
            output += piece
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    os.close(screen)
    assert process.returncode == 0, errors
    return output.decode().replace("\r\n", "\n"), errors


@pytest.fixture(scope="module")
def terminal(tmp_path_factory) -> tuple[str, str]:
    short = ["data.batch_size=1", "trainer.max_epochs=2", "callbacks.gallery=null"]
    return run_in_terminal(tmp_path_factory.mktemp("terminal"), "--config", IRIS, *short)


@pytest.mark.slow
def test_line_is_redrawn_and_fits_into_the_terminal(terminal):
    lines = [line.split("\r")[1:] for line in terminal[0].split("\n")]
    states = [state for line in lines for state in line if state.startswith("epoch")]
    assert len(states) > 1
    assert all(re.match(r"epoch \d+/2  ", state) for state in states)
    assert all(len(state) < COLUMNS for state in states)
    pairs = [pair for line in lines for pair in pairwise(line)]
    assert all(len(after) >= len(before.rstrip()) for before, after in pairs)  # nothing of the state before is left


@pytest.mark.slow
def test_output_has_neither_colours_nor_warnings(terminal):
    """So the variable NO_COLOR needs no support."""
    assert "\x1b" not in terminal[0]
    assert terminal[1] == ""


@pytest.mark.slow
def test_run_prints_a_summary_at_its_start_and_at_its_end(terminal):
    titles = [line[:13].strip() for line in terminal[0].split("\n") if line and "\r" not in line]
    assert [title for title in titles if title != "expected"] == [
        "run folder: /", "data", "model", "device", "steps",
        "test", "validation", "calibration", "checkpoint", "trained", "speed", "time", "run folder", "TensorBoard",
    ]  # fmt: skip
    data = "iris: 4 features, 3 classes, 96 for training, 24 for validation, 30 for the test"
    assert f"data         {data}\n" in terminal[0]
    assert "model        mlp: 4,675 parameters\n" in terminal[0]
    assert re.search(r"^device       cpu: .*\d threads?, 32-true$", terminal[0], re.M)
    assert "steps        2 epochs, 96 steps per epoch, 1 sample per step\n" in terminal[0]


def test_log_file_gets_complete_lines(tmp_path, capsys):
    run(tmp_path, "--config", IRIS, "trainer.max_epochs=3")
    output = capsys.readouterr().out
    assert "\r" not in output
    assert re.search(r"^epoch 1/3  [\d.]+ s  train/loss 0\.\d+  train/accuracy 0\.\d+  val/loss", output, re.M)
    assert re.search(r"^epoch 3/3  ", output, re.M)


@pytest.mark.needs("bert")
def test_frozen_parameters_are_counted_separately(tmp_path, capsys):
    run(tmp_path, "--config", "configs/iris_bert.yaml", "model.freeze_layers=1", "trainer.max_epochs=1")
    assert re.search(r"^model        bert: [\d,]+ parameters, [\d,]+ of them trained$", capsys.readouterr().out, re.M)


def make_trainer(batches: int, *, max_epochs: int = 4, max_steps: int = -1) -> SimpleNamespace:
    """A trainer after a number of batches; an epoch has 100."""
    loop = SimpleNamespace(total_batch_idx=batches)
    return SimpleNamespace(
        max_steps=max_steps, max_epochs=max_epochs, num_training_batches=100, global_step=batches, fit_loop=loop,
        is_global_zero=True, current_epoch=batches // 100, callback_metrics={}, callbacks=[],
    )  # fmt: skip


def test_complete_fraction_is_that_of_the_limit_that_is_reached_first():
    assert complete_fraction(make_trainer(100)) == 0.25
    assert complete_fraction(make_trainer(100, max_steps=200)) == 0.5
    assert complete_fraction(make_trainer(100, max_epochs=-1)) is None


def test_duration_is_estimated_once(capsys, monkeypatch):
    """A run that is resumed after a quarter does the second quarter in 10 s, and needs 20 s for the other half."""
    now = 1000.0
    monkeypatch.setattr(progress_line, "time", SimpleNamespace(monotonic=lambda: now))
    line = ProgressLine(live=False)
    line.on_train_start(make_trainer(100), None)  # type: ignore[arg-type]
    line.on_train_batch_end(make_trainer(100), None, None, None, 0)  # type: ignore[arg-type]
    now += 10
    line.on_train_batch_end(make_trainer(200), None, None, None, 99)  # type: ignore[arg-type]
    line.on_train_batch_end(make_trainer(201), None, None, None, 100)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "expected     about 30 s of training\n"


def simulate(monkeypatch, seconds: Iterable[float], *, live: bool = False, clock: Clock | None = None) -> None:
    """Train with these seconds per step. An epoch has 100 steps, and there are 4 epochs unless there are more steps."""
    steps = list(seconds)
    now = [1000.0]
    monkeypatch.setattr(progress_line, "time", SimpleNamespace(monotonic=lambda: now[0]))
    epochs = max(4, len(steps) // 100)
    line = ProgressLine(live)
    line.on_train_start(make_trainer(0, max_epochs=epochs), None)  # type: ignore[arg-type]
    line._clock = clock or line._clock
    for i, step in enumerate(steps, 1):
        now[0] += step
        line.on_train_batch_end(make_trainer(i, max_epochs=epochs), None, None, None, i)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([0.1] * 400, ["about 40 s"]),
        ([0.007] * 400, []),  # shorter than the time before the first estimate
        ([10.0, *[0.1] * 399], ["about 50 s"]),  # such as a compilation in the first step
        ([2.0, 0.5, *[0.1] * 398], ["about 1 min 9 s", "now about 45 s"]),
        # other programs end, and start
        ([*[2.0] * 5, *[0.1] * 395], ["about 13 min 20 s", "now about 1 min 20 s", "now about 51 s"]),
        (
            [*[0.1] * 100, *[2.0] * 300],
            ["about 40 s", "now about 1 min 9 s", "now about 3 min 43 s", "now about 10 min 10 s"],
        ),
        ([*[0.1] * 200, *[0.13] * 200], ["about 40 s"]),  # not wrong enough
        ([*[0.1, 0.5] * 200], ["about 2 min"]),
        ([400.0, *[0.1] * 399], ["about 7 min 20 s"]),
        ([0.0] * 400, []),
    ],
)
def test_expected_duration_is_that_of_recent_steps(seconds, expected, monkeypatch, capsys):
    simulate(monkeypatch, seconds)
    lines = capsys.readouterr().out.splitlines()
    assert [line.removeprefix("expected").removesuffix("of training").strip() for line in lines] == expected


def test_a_speed_that_changes_all_the_time_is_not_reported_all_the_time(monkeypatch, capsys):
    simulate(monkeypatch, [0.05 if i // 50 % 2 else 5.0 for i in range(2000)])
    assert 1 < capsys.readouterr().out.count("expected") < 15


def test_corrected_duration_replaces_the_line_in_a_terminal(monkeypatch, capsys):
    simulate(monkeypatch, [*[2.0] * 5, *[0.1] * 395], live=True)
    lines = capsys.readouterr().out.split("\n")
    corrected = [line.rpartition("\r")[2].rstrip() for line in lines if "now about" in line]
    assert corrected[0] == "expected     now about 1 min 20 s of training"


def test_a_run_that_waits_for_a_core_says_so_once(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(clock, "waiting_advice", iter([None, "stop the other", *[None] * 100]).__next__)
    simulate(monkeypatch, [0.5] * 20, clock=clock)
    assert capsys.readouterr().out.splitlines() == [
        "slow         stop the other",
        "expected     about 3 min 20 s of training",
    ]


def test_advice_is_complete_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    clock, advice = Clock(), "stop the other programs, " * 4
    monkeypatch.setattr(clock, "waiting_advice", iter([None, advice, *[None] * 100]).__next__)
    simulate(monkeypatch, [0.5] * 20, live=True, clock=clock)
    assert f"slow         {advice}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
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
def test_duration_is_formatted_for_people(seconds, text):
    assert duration(seconds) == text


def test_line_is_cut_between_two_metrics(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    line = ProgressLine(live=True)
    line._print("epoch 1/4  3.8 s  train/loss 0.1605  val/loss 0.2226", end="")
    assert capsys.readouterr().out.strip() == "epoch 1/4  3.8 s  train/loss 0.1605"


def test_metrics_of_each_epoch_are_read_even_if_no_line_is_due():
    line = ProgressLine(live=True)
    line._last_shown = math.inf
    for epoch, loss in ((1, 0.5), (2, 0.25)):
        trainer = SimpleNamespace(
            current_epoch=epoch, callback_metrics={"train/loss": torch.tensor(loss)}, is_global_zero=False
        )
        line.on_train_epoch_start(trainer, None)
        assert line._metrics == f"train/loss {loss:.4f}"
