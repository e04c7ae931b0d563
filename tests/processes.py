"""Runs of several processes, in processes of their own."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from engine.config.signatures import PROJECT
from tests.runs import IRIS

TWO = ["trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=16"]
EXACT = ["--config", IRIS, *TWO, "trainer.max_epochs=60", "model.dropout=0.1", "run.checkpoint_every_steps=10"]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def run(
    *argv: str, launcher: tuple[str, ...] = (sys.executable,), command: str = "train.py", **more: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*launcher, command, *argv],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**more),
    )


def started_run(*command: str, **more: str) -> subprocess.Popen:
    """A run of two processes that has finished its first epoch."""
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more)
    )
    for line in process.stdout:
        if line.startswith(("epoch", "resuming in")):
            return process
    return pytest.fail(process.communicate()[1])


def results_of(module: str, *argv: str, timeout: float) -> list[dict[str, Any]]:
    """Run ``python -m MODULE``, and return the lines of JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *argv], cwd=PROJECT, stdout=subprocess.PIPE, text=True, timeout=timeout
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
