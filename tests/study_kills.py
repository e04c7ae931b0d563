"""Kills studies at random moments: ``python -m tests.study_kills COUNT SEED FOLDER`` prints one line of JSON per study.

Each study is a search with pruning. It is killed with SIGKILL after a random time, resumed, and compared with a study that
was not killed: values, states and reports of all trials, and all files of their runs. Every third study is killed twice.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
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


def main(count: int, seed: int, root: Path) -> None:
    started = time.monotonic()
    assert study(*SEARCH, root=root / "whole") == 0
    seconds, draw = time.monotonic() - started, random.Random(seed)
    for i in range(count):
        folder = root / f"study{i}"
        moments = [draw.uniform(0.3, 1.0) * seconds for _ in range(2 if i % 3 == 0 else 1)]
        codes = []
        for moment in [*moments, None]:
            argv = ["--resume", str(folder / "x")] if (folder / "x/study.yaml").exists() else SEARCH
            codes.append(study(*argv, root=folder, kill=moment))
        found = compare(root / "whole/x", folder / "x")
        print(json.dumps({"study": i, "killed": moments, "codes": codes, "different": found}), flush=True)
        shutil.rmtree(folder)


def study(*argv: str, root: Path, kill: float | None = None) -> int:
    """Run the command and return its exit code; -9 if it was killed after `kill` seconds."""
    options = [] if argv[0] == "--resume" else [f"run.root={root}"]
    command = [sys.executable, "study.py", argv[0], argv[1], *options, *argv[2:]]
    process = subprocess.Popen(command, cwd=PROJECT, env=environment(), stdout=subprocess.DEVNULL, stderr=sys.stderr)
    try:
        return process.wait(kill)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return process.wait()


def compare(whole: Path, killed: Path) -> list[str]:
    """Return the differences between two studies."""
    found = [] if trials(whole) == trials(killed) else ["the trials differ"]
    names = [sorted(path.parent.name for path in folder.glob("*/*/metrics.json")) for folder in (whole, killed)]
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
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
