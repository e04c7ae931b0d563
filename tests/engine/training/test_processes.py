"""Several processes, started by three launchers: the results are those of one process, and all processes end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.training import checkpoint_file
from lit_models.mlp import LitMLP
from tests.exactness import differences
from tests.processes import EXACT, TWO, environment, run, started_run
from tests.runs import IRIS, figures

LONG = ["--config", IRIS, *TWO, "trainer.max_epochs=100000", "run.name=x"]
HALVES = ["--config", IRIS, "trainer.max_epochs=3", "run.name=x"]
SRUN = """#!/usr/bin/env bash
# starts the tasks of a job on this machine, as srun does
while [[ $1 == --* ]]; do shift; done
pids=()
for ((i = 0; i < SLURM_NTASKS_PER_NODE; i++)); do
    SLURM_NTASKS=$SLURM_NTASKS_PER_NODE SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NODEID=0 "$@" & pids+=($!)
done
trap 'kill -USR1 "${pids[@]}"' USR1
code=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2> /dev/null; do wait "$pid"; last=$?; done
    [ "$last" -eq 0 ] || code=$last
done
exit $code
"""


def child_of(process: subprocess.Popen) -> int:
    """The process of rank 1."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in listed if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes())


def has_ended(pid: int, seconds: float) -> bool:
    """Whether a process ends within `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.faults(
    "two processes instead of one", "every sample counts once: the metrics are those of one process with these weights"
)
@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_two_processes_share_the_work(normalization, tmp_path):
    """15 validation samples cannot be divided by two. Running means are those of the first process."""
    keys = [
        "trainer.max_epochs=2",
        "data.val_fraction=0.13",
        f"model.normalization={normalization}",
        f"run.root={tmp_path}",
    ]
    done = run("--config", IRIS, *TWO, *keys)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("run folder:") == 1
    assert "32 samples per step (2 devices, batch size 16 per device)" in done.stdout
    (folder,) = tmp_path.glob("*/*")
    from datamodules.iris import Iris

    datamodule = Iris(**load_config(folder / "config.yaml").options("data"))
    datamodule.setup()
    model = LitMLP.load_from_checkpoint(folder / "checkpoints/best.ckpt", map_location="cpu").eval()
    assert datamodule.num_samples("val") == 15
    for part, loader in (("test", datamodule.test_dataloader()), ("val", datamodule.val_dataloader())):
        inputs, labels = next(iter(loader))
        temperature = 1 if part == "test" else model.temperature  # the training does not use it
        loss = torch.nn.functional.cross_entropy(temperature * model(inputs), labels).item()
        assert figures(folder)[f"{part}/loss"] == pytest.approx(loss, rel=1e-5)
        accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
        assert figures(folder)[f"{part}/accuracy"] == pytest.approx(accuracy)


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """A run of one process."""
    root = tmp_path_factory.mktemp("single")
    assert run(*HALVES, f"run.root={root}").returncode == 0
    return root / "iris_mlp/x"


@pytest.mark.slow
@pytest.mark.faults(
    "two processes with half the batch each", "their weights follow those of one process with the whole batch"
)
@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "srun"])
def test_two_halves_follow_the_whole(launcher, tmp_path, single):
    more, start = {}, (sys.executable,)
    if launcher == "torchrun":
        start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    if launcher == "srun":
        more, start = job(tmp_path), (str(tmp_path / "bin/srun"), sys.executable)
    two = run(*HALVES, *TWO, f"run.root={tmp_path / 'two'}", launcher=start, **more)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("run folder:") == 1
    folders = single, tmp_path / "two/iris_mlp/x"
    states = [checkpoint_file.read(folder / "checkpoints/last.ckpt")["state_dict"] for folder in folders]
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], rtol=1e-4, atol=1e-5), name
    found = sorted(path.name.split(".")[0] for path in (tmp_path / "two/iris_mlp/x").glob("[!.]*"))
    assert found == [
        "checkpoints",
        "config",
        "environment",
        "events",
        "metrics",
        "test",
        "val",
    ]  # only one process writes


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of two processes that was not stopped."""
    root = tmp_path_factory.mktemp("whole")
    assert run(*EXACT, f"run.root={root}", "run.name=x").returncode == 0
    return root / "iris_mlp/x"


@pytest.mark.slow
@pytest.mark.faults(
    "SIGTERM to one of two processes",
    "both end with a checkpoint, exit code 143; the resumed run is bitwise identical",
)
@pytest.mark.parametrize("first", [True, False], ids=["rank 0", "rank 1"])
def test_sigterm_to_one(first, tmp_path, whole):
    process = started_run(sys.executable, "train.py", *EXACT, f"run.root={tmp_path}", "run.name=x")
    child = child_of(process)
    os.kill(process.pid if first else child, signal.SIGTERM)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 143
    assert printed.count("stopped by SIGTERM") == 1
    assert "Traceback" not in printed
    assert has_ended(child, 1)
    resumed = run("--resume", str(tmp_path / "iris_mlp/x"))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming in epoch" in resumed.stdout
    assert differences(whole, tmp_path / "iris_mlp/x") == []


@pytest.mark.slow
@pytest.mark.faults("one of two processes dies", "the other ends within 10 s, exit code not 0; no process is left")
@pytest.mark.parametrize("first", [True, False], ids=["rank 0", "rank 1"])
def test_one_dies(first, tmp_path, record_property):
    process = started_run(sys.executable, "train.py", *LONG, f"run.root={tmp_path}")
    child = child_of(process)
    os.kill(process.pid if first else child, signal.SIGKILL)
    started = time.monotonic()
    process.wait(30)
    printed = "" if first else process.stderr.read()  # its child may keep the pipe open
    assert process.returncode not in (0, None)
    assert has_ended(child, 10)
    record_property("happened", f"rank {0 if first else 1}: all gone after {time.monotonic() - started:.1f} s")
    assert "Traceback" not in printed
    if not first:
        assert process.returncode == 1
        assert "error: lost another process of this run" in printed
    checkpoint_file.verify(tmp_path / "iris_mlp/x/checkpoints/last.ckpt")
    process.stdout.close()
    process.stderr.close()


SPOILT = """
import os, sys
sys.path.insert(0, os.getcwd())
import train
from lit_models.classifier import LitClassifier
original = LitClassifier.training_step

def training_step(self, batch, batch_idx):
    loss = original(self, batch, batch_idx)
    return loss + float("inf") if os.environ.get("LOCAL_RANK") == "1" and self.global_step == 7 else loss

LitClassifier.training_step = training_step
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.faults("the loss of one of two processes is not finite", "both end before the step, exit code 3")
def test_one_diverges(tmp_path):
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT)
    done = subprocess.run(
        [sys.executable, script, *LONG, f"run.root={tmp_path}"],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, env=environment(),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("diverged: the gradient norm is nan at epoch 3, batch 2 (step 8)") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.faults("one of two processes hangs", "the other ends after run.timeout_minutes; no process is left")
def test_one_hangs(tmp_path, record_property):
    process = started_run(sys.executable, "train.py", *LONG, f"run.root={tmp_path}", "run.timeout_minutes=0.3")
    child = child_of(process)
    os.kill(child, signal.SIGSTOP)
    started = time.monotonic()
    process.wait(60)
    assert process.returncode == 1
    assert has_ended(child, 15)
    record_property("happened", f"a timeout of 18 s, all gone after {time.monotonic() - started:.1f} s")
    process.stdout.close()
    process.stderr.close()


@pytest.mark.slow
@pytest.mark.faults("SIGTERM while two processes start", "both end within 10 s, exit code not 0")
@pytest.mark.parametrize("seconds", [0.5, 4.0])
def test_sigterm_while_they_start(seconds, tmp_path, record_property):
    process = subprocess.Popen(
        [sys.executable, "train.py", *LONG, f"run.root={tmp_path}"],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    child = None
    while child is None:
        assert process.poll() is None, process.communicate()[1]
        child = next(iter(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()), None)
    time.sleep(seconds)  # the first process waits while the second one imports
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, printed = process.communicate(timeout=30)
    record_property("happened", f"{time.monotonic() - started:.1f} s")
    assert process.returncode == 143
    assert "Traceback" not in printed
    assert has_ended(int(child), 10)


def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a SLURM job of two tasks, with its commands on the path."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "srun").write_text(SRUN)
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    return {
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "SLURM_CPUS_PER_TASK": "1",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.faults(
    "SLURM's warning to slurm.sbatch, two tasks", "a checkpoint, requeued once; the requeued job is bitwise identical"
)
def test_the_sbatch_script(tmp_path, whole):
    """The script itself, with stand-ins for the commands of SLURM."""
    script = ["bash", "slurm.sbatch", *EXACT, f"run.root={tmp_path / 'runs'}"]
    process = started_run(*script, **job(tmp_path))
    process.send_signal(signal.SIGUSR1)  # the script has become srun, which forwards it
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 143, printed
    assert (tmp_path / "asked").read_text() == "update JobId=77 JobName=iris_mlp\nrequeue 77\n"
    process = started_run(*script, **job(tmp_path), SLURM_RESTART_COUNT="1")
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert differences(whole, tmp_path / "runs/iris_mlp/slurm-77") == []
