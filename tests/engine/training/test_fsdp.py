"""Sharded models on a CPU.

torch refuses the first version of FSDP on a CPU ("FSDP needs a non-CPU accelerator device"). So `trainer.strategy=fsdp` is
tested on a GPU only. The second version, `fully_shard`, works on a CPU. Lightning offers it as `ModelParallelStrategy`.
A config cannot select this strategy, so the tests pass it to the trainer.
"""

import signal
import sys

import pytest

from engine.config.signatures import PROJECT
from tests.exactness import differences
from tests.processes import TWO, run, started_run
from tests.runs import IRIS, figures

FSDP2 = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule, fully_shard
import train
from lit_models.classifier import LitClassifier

def shard(self):
    if not isinstance(self.network, FSDPModule):
        fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

def make_trainer(**options):
    sizes = dict(data_parallel_size=2, tensor_parallel_size=1)
    options["strategy"] = ModelParallelStrategy(**sizes, save_distributed_checkpoint=False)
    return make(**options)

LitClassifier.configure_model, make, pl.Trainer = shard, pl.Trainer, make_trainer
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "sharded.py"
    path.write_text(FSDP2, encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_a_sharded_model_trains_like_an_unsharded_model(script, tmp_path):
    # checkpoints are disabled: torch increments Adam's step counter if it reads the optimizer state before the first step
    argv = ["--config", IRIS, *TWO, "trainer.max_epochs=3", "trainer.enable_checkpointing=false", "model.dropout=0"]
    found = []
    for command in ("train.py", script):
        root = tmp_path / str(len(found))
        done = run(*argv, f"run.root={root}", "run.name=x", command=command)
        assert done.returncode == 0, done.stderr
        found.append({name: value for name, value in figures(root / "iris_mlp/x").items() if "/" in name})
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.faults("SIGTERM to two processes with a sharded model (FSDP2)", "the resumed run is bitwise identical")
def test_a_sharded_run_resumes(script, tmp_path):
    argv = ["--config", IRIS, *TWO, "trainer.max_epochs=60", "run.checkpoint_every_steps=10", "run.name=x"]
    done = run(*argv, f"run.root={tmp_path}/whole", command=script)
    assert done.returncode == 0, done.stderr
    process = started_run(sys.executable, script, *argv, f"run.root={tmp_path}/stopped")
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, printed
    stopped = tmp_path / "stopped/iris_mlp/x"
    done = run("--resume", str(stopped), command=script)
    assert done.returncode == 0, done.stderr
    assert differences(tmp_path / "whole/iris_mlp/x", stopped) == []
