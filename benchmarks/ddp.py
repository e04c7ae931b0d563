"""Two CPU processes that average their gradients over gloo: `train.py` and a bare DistributedDataParallel loop.

Each process has one thread. The bare loop is this file, which torchrun starts twice:

    torchrun --nproc-per-node=2 -m benchmarks.ddp CONFIG KEY=VALUE ...
"""

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.baselines import train_bare
from benchmarks.experiment import Experiment, autocast_dtype
from benchmarks.measure import Comparison, run_in_turn, run_python
from benchmarks.step import MLP

WORKS = {
    "2 epochs of the 68k MLP, batch 2 x 64": ["configs/mnist_mlp.yaml", *MLP, "data.batch_size=64", "trainer.max_epochs=2"],
    "60 steps of mnist_cnn, batch 2 x 128": [
        "configs/mnist_cnn.yaml", "data.batch_size=128", "trainer.max_epochs=1", "trainer.limit_train_batches=60",
        "trainer.limit_val_batches=0",
    ],
}  # fmt: skip


def run(options: Namespace) -> list[Comparison]:
    comparisons = []
    for work, arguments in WORKS.items():
        config, *overrides = [*arguments, f"data.root={options.data}", "trainer.accelerator=cpu"]
        sides = {
            "ours": lambda c=config, o=overrides: time_ours(c, o),
            "bare": lambda c=config, o=overrides: time_bare(c, o),
        }
        times = run_in_turn(sides, options.pairs)
        comparisons.append(Comparison(work, "bare DDP loop", times["ours"], times["bare"], at_most=1.15))
    return comparisons


def time_ours(config: str, overrides: list[str]) -> float:
    """Seconds of the training by `train.py`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--config", config, *overrides, "trainer.devices=2", f"run.root={folder}"]
        run_python("train.py", *arguments, OMP_NUM_THREADS="1")
        (path,) = Path(folder).glob("*/*/metrics.json")
        seconds: float = json.loads(path.read_text(encoding="utf-8"))["train_seconds"]
        return seconds


def time_bare(config: str, overrides: list[str]) -> float:
    """Seconds of the training by the bare loop."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return float(run_python(*launcher, "-m", "benchmarks.ddp", config, *overrides, OMP_NUM_THREADS="1").split()[-1])


def run_bare_process(config: str, overrides: list[str]) -> None:
    """Run one process of the bare loop. The first process prints its seconds."""
    torch.distributed.init_process_group("gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    experiment = Experiment(config, overrides)

    def distribute(network: nn.Module) -> nn.Module:
        return DistributedDataParallel(network)

    times = train_bare(
        experiment,
        experiment.config["trainer.max_epochs"],
        max_steps=experiment.config["trainer.limit_train_batches"],
        change=distribute,
        autocast_dtype=autocast_dtype(experiment),
        rank=rank,
        world_size=world_size,
    )
    torch.distributed.barrier()
    if rank == 0:
        print(times.total_seconds)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_bare_process(sys.argv[1], sys.argv[2:])
