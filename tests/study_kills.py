"""Kills studies at random moments: ``python -m tests.study_kills COUNT SEED FOLDER [WHAT]`` prints a line of JSON per study.

WHAT is ``search`` (the default) or ``workers``. A search with pruning is killed with SIGKILL at a random moment and resumed.
Every third search is killed twice. It is compared with a search that was not killed: values, states and reports of all
trials, and all files of their runs.

With ``workers``, two runs are trained at the same time. In every second study, a command trains both, and one of the runs is
killed. In the other studies, two commands train one run each, and one of the commands is killed. Each run must exist exactly
once, and equal the run of a study that was not killed.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

from engine.config.signatures import PROJECT
from engine.studies.search import JOURNAL
from tests.exactness import differences
from tests.processes import environment
from tests.runs import IRIS, WITHOUT_PICTURES

SEARCH = [
    "--config", IRIS, *WITHOUT_PICTURES, "trainer.max_epochs=9", "model.dropout=0.1", "run.checkpoint_every_steps=4",
    "--vary", "optimizer.lr=log(1e-4, 1e-1)", "model.hidden_sizes=[8],[16]", "--trials", "6", "--seeds", "2", "--name", "x",
]  # fmt: skip
SEEDS = [
    "--config", IRIS, *WITHOUT_PICTURES, "trainer.max_epochs=40", "model.dropout=0.1", "run.checkpoint_every_steps=5",
    "--seeds", "6", "--name", "x",
]  # fmt: skip


def main(count: int, seed: int, root: Path, what: str = "search") -> None:
    options = SEARCH if what == "search" else SEEDS
    started = time.monotonic()
    assert start(options, root / "whole").wait() == 0
    seconds, draw = time.monotonic() - started, random.Random(seed)
    for i in range(count):
        folder = root / f"study{i}"
        if what == "search":
            moments = [draw.uniform(0.3, 1.0) * seconds for _ in range(2 if i % 3 == 0 else 1)]
            codes = kill_search(folder, moments)
        else:
            moments, codes = [draw.uniform(0.1, 0.9) * seconds / 2], [0]
            while codes[0] != -signal.SIGKILL:  # otherwise, the study ended before
                shutil.rmtree(folder, ignore_errors=True)
                codes = (kill_command if i % 2 else kill_run)(folder, moments)
                moments[0] *= 1.0 if codes[0] == -signal.SIGKILL else 0.7
        found = compare(root / "whole/x", folder / "x", has_trials=what == "search")
        print(json.dumps({"study": i, "killed": moments, "codes": codes, "different": found}), flush=True)
        shutil.rmtree(folder)


def kill_search(folder: Path, moments: list[float]) -> list[int]:
    """Kill the command of a search after some seconds, and resume it. If it ends before, start again and kill it earlier.

    Returns:
        The exit codes of the killed command, and of the commands that resumed it.
    """
    codes: list[int] = []
    while codes[:1] != [-signal.SIGKILL]:
        shutil.rmtree(folder, ignore_errors=True)
        codes = [wait(start(SEARCH, folder), moments[0])]
        moments[0] *= 1.0 if codes == [-signal.SIGKILL] else 0.8
    for moment in [*moments[1:], None]:
        is_there = (folder / "x/study.yaml").exists()
        codes.append(wait(start(["--resume", str(folder / "x")] if is_there else SEARCH, folder), moment))
    return codes


def kill_run(folder: Path, moments: Sequence[float]) -> list[int]:
    """Kill one of the two runs of a command, a number of seconds after the study began."""
    command = start([*SEEDS, "--workers", "2"], folder)
    wait_for_run(folder, command)
    time.sleep(moments[0])
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text(encoding="utf-8").split()
    for child in children[:1]:
        os.kill(int(child), signal.SIGKILL)
    return [-signal.SIGKILL * bool(children), command.wait(), resume(folder)]


def kill_command(folder: Path, moments: Sequence[float]) -> list[int]:
    """Kill one of two commands of a study, a number of seconds after the study began."""
    first = start([*SEEDS, "--workers", "1"], folder)
    wait_for_run(folder, first)
    second = start(["--resume", str(folder / "x"), "--workers", "1"], folder)
    time.sleep(moments[0])
    first.kill()
    return [first.wait(), second.wait(), resume(folder)]


def resume(folder: Path) -> int:
    """Train what is left, because the second command may have ended before the first was killed. Returns the exit code."""
    return start(["--resume", str(folder / "x"), "--workers", "1"], folder).wait()


def wait_for_run(folder: Path, command: "subprocess.Popen[bytes]") -> None:
    while not list(folder.glob("x/*/*/config.yaml")):
        assert command.poll() is None
        time.sleep(0.05)


def start(argv: Sequence[str], root: Path) -> "subprocess.Popen[bytes]":
    """Start the command below a root of runs."""
    options = [] if argv[0] == "--resume" else [f"run.root={root}"]
    command = [sys.executable, "study.py", argv[0], argv[1], *options, *argv[2:]]
    return subprocess.Popen(command, cwd=PROJECT, env=environment(), stdout=subprocess.DEVNULL, stderr=sys.stderr)


def wait(process: "subprocess.Popen[bytes]", kill: float | None = None) -> int:
    """Return the exit code of a command; -9 if it was killed after `kill` seconds."""
    try:
        return process.wait(kill)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def compare(whole: Path, killed: Path, has_trials: bool = True) -> list[str]:
    """Return the differences between two studies."""
    found = ["the trials differ"] if has_trials and trials(whole) != trials(killed) else []
    names = [sorted(path.parent.name for path in folder.glob("*/*/config.yaml")) for folder in (whole, killed)]
    if names[0] != names[1]:
        return [*found, f"runs {names}"]
    runs = {path.parent for path in whole.glob("*/*/metrics.json")}
    for run in sorted(runs):
        found += [f"{run.name}: {place}" for place in differences(run, killed / run.parent.name / run.name)]
    return found


def trials(folder: Path) -> list[Any]:
    """Return parameters, state, values and intermediate values of all trials, without times."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.load_study(study_name="study", storage=storage)
    return [(trial.params, trial.state, trial.values, trial.intermediate_values) for trial in study.get_trials()]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
