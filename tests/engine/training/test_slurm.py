"""slurm.sbatch under a real SLURM on this machine: the time limit, requeuing, cancelling, and the name in squeue."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config.signatures import PROJECT
from engine.training import checkpoint_file
from tests import slurm as real_slurm
from tests.exactness import differences
from tests.processes import TWO, run
from tests.runs import IRIS, WITHOUT_PICTURES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(real_slurm.missing()),
        reason=f"no SLURM ({', '.join(real_slurm.missing())}): install the packages slurm-wlm and munge",
    ),
]
# SLURM compares the time of a job with its limit every 30 s, and the job must still be running then
LONG = ["--config", IRIS, *TWO, "trainer.max_epochs=1000", "model.dropout=0.1", "run.checkpoint_every_steps=10"]
LONG += WITHOUT_PICTURES
OPTIONS = ("--parsable", "--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    with real_slurm.started(folder) as started:
        path = f"{Path(sys.executable).parent}:{started.variables['PATH']}"
        started.variables |= {"PATH": path, "PYTHONPATH": str(PROJECT)}
        started.variables.pop("OMP_NUM_THREADS", None)  # the run must find the cores of a task by itself
        started.variables.pop("MKL_NUM_THREADS", None)
        yield started


@pytest.fixture
def submit(slurm, tmp_path):
    """Submits slurm.sbatch. Returns the number of the job and the folder of its run."""
    jobs = []

    def submitted(*argv: str) -> tuple[str, Path]:
        output = f"--output={tmp_path}/%j.out"
        command = ("sbatch", *OPTIONS, output, "slurm.sbatch", *argv, f"run.root={tmp_path}/runs")
        jobs.append(slurm.run(*command, cwd=PROJECT).strip())
        return jobs[-1], tmp_path / f"runs/iris_mlp/slurm-{jobs[-1]}"

    yield submitted
    for job in jobs:
        slurm.run("scancel", "--quiet", job)
        wait(lambda job=job: slurm.job(job)["JobState"] not in ("RUNNING", "COMPLETING", "PENDING"), tmp_path)


def wait(is_ready: Callable[[], bool], folder: Path, seconds: float = 400) -> None:
    until = time.monotonic() + seconds
    while not is_ready():
        assert time.monotonic() < until, printed(folder)
        time.sleep(0.3)


def printed(folder: Path) -> str:
    """What the jobs have printed."""
    return "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.out"))


def has_trained(folder: Path) -> Callable[[], bool]:
    """Whether a run has written a checkpoint after its first one."""
    return (folder / "checkpoints/previous.ckpt").exists


@pytest.mark.faults(
    "the time limit of a real SLURM, two tasks",
    "saved and requeued; the result of the requeued job is bitwise identical",
)
def test_the_time_limit_saves_and_requeues(slurm, submit, tmp_path):
    job, folder = submit(*LONG)
    wait(has_trained(folder), tmp_path)
    assert slurm.run("squeue", "-h", "-o", "%j %T %C").split() == ["iris_mlp", "RUNNING", "2"]
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")  # SIGUSR1 comes 120 s before, that is, now
    wait(lambda: slurm.job(job)["JobState"] == "PENDING", tmp_path)
    assert slurm.job(job)["Restarts"] == "1"
    text = printed(tmp_path)
    assert text.count("stopped by SIGUSR1") == 1, text
    assert f"SLURM job {job} is requeued" in text
    saved = checkpoint_file.read(folder / "checkpoints/last.ckpt")["global_step"]
    assert 0 < saved < 3000
    slurm.run(
        "scontrol", "update", f"JobId={job}", "TimeLimit=60", "StartTime=now"
    )  # otherwise it starts in two minutes
    wait(lambda: slurm.job(job)["JobState"] == "COMPLETED", tmp_path)
    text = printed(tmp_path)
    assert text.count("resuming in epoch") == 1
    assert "Traceback" not in text
    threads = {"OMP_NUM_THREADS": "1"}
    done = run(*LONG, f"run.root={tmp_path}/whole", "run.name=x", **threads)
    assert done.returncode == 0, done.stderr
    assert differences(tmp_path / "whole/iris_mlp/x", folder) == []


@pytest.mark.faults(
    "scancel of a real SLURM, two tasks", "both tasks end with a checkpoint, from which the run resumes"
)
def test_scancel_saves(slurm, submit, tmp_path):
    job, folder = submit(*LONG)
    wait(has_trained(folder), tmp_path)
    slurm.run("scancel", job)
    wait(lambda: slurm.job(job)["JobState"] == "CANCELLED", tmp_path)
    wait(lambda: "stopped by SIGTERM" in printed(tmp_path), tmp_path, 30)
    assert not (folder / "metrics.json").exists()
    checkpoint_file.verify(folder / "checkpoints/last.ckpt", ours=True)
    step = checkpoint_file.read(folder / "checkpoints/last.ckpt")["global_step"]
    assert printed(tmp_path).count(f"resume with: python train.py --resume {folder}") == 1
    assert step > 0
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["threads"] == 1  # the cores of a task


def test_jobs_share_a_study(slurm, tmp_path):
    argv = ["--config", IRIS, *WITHOUT_PICTURES, "trainer.max_epochs=5", f"run.root={tmp_path}", "--name", "x"]
    options = ["--seeds", "4", "--slurm", "--array=1-2 --cpus-per-task=1"]
    submitted = slurm.run(sys.executable, "study.py", *argv, *options, cwd=PROJECT)
    job = submitted.split()[-1]
    wait(lambda: slurm.run("squeue", "-h", "-j", job) == "" and (tmp_path / "x/study.md").exists(), tmp_path / "x")
    outputs = [path.read_text(encoding="utf-8") for path in (tmp_path / "x").glob("slurm-*.out")]
    assert len(outputs) == 2
    assert sum(output.count(" seed-") for output in outputs) == 4  # each run in one of the jobs
    assert len(list((tmp_path / "x/iris_mlp").glob("*/metrics.json"))) == 4
