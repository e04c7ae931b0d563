"""Two processes on the CPU, which add up their gradients over gloo: `train.py` beside a bare DistributedDataParallel loop.

Each of the two processes has one thread. The bare loop is this file, which torchrun starts twice:

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

from benchmarks.measure import Row, in_turn, process
from benchmarks.sides import Experiment, autocast_type, bare
from benchmarks.step import MLP

WORKS = {
    "2 epochs of the 68k MLP, batch 2 x 64": ["configs/mnist_mlp.yaml", *MLP, "data.batch_size=64", "trainer.max_epochs=2"],
    "60 steps of mnist_cnn, batch 2 x 128": [
        "configs/mnist_cnn.yaml", "data.batch_size=128", "trainer.max_epochs=1", "trainer.limit_train_batches=60",
        "trainer.limit_val_batches=0",
    ],
}  # fmt: skip


def run(options: Namespace) -> list[Row]:
    rows = []
    for title, overrides in WORKS.items():
        config, *keys = [*overrides, f"data.root={options.data}", "trainer.accelerator=cpu"]
        sides = {"ours": lambda c=config, k=keys: by_us(c, k), "bare": lambda c=config, k=keys: by_a_loop(c, k)}
        times = in_turn(sides, options.pairs)
        rows.append(Row(title, "bare DDP loop", times["ours"], times["bare"], at_most=1.15))
    return rows


def by_us(config: str, keys: list[str]) -> float:
    """Seconds of the training."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--config", config, *keys, "trainer.devices=2", f"run.root={folder}"]
        process("train.py", *arguments, OMP_NUM_THREADS="1")
        (path,) = Path(folder).glob("*/*/metrics.json")
        seconds: float = json.loads(path.read_text(encoding="utf-8"))["train_seconds"]
        return seconds


def by_a_loop(config: str, keys: list[str]) -> float:
    """Likewise."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return float(process(*launcher, "-m", "benchmarks.ddp", config, *keys, OMP_NUM_THREADS="1").split()[-1])


def one_of_two(config: str, keys: list[str]) -> None:
    """One process of the bare loop; the first prints its seconds."""
    torch.distributed.init_process_group("gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    experiment = Experiment(config, keys)
    experiment.share = (rank, world_size)

    def distributed(network: nn.Module) -> nn.Module:
        return DistributedDataParallel(network)

    limit = experiment.config["trainer.limit_train_batches"]
    ticks = bare(
        experiment, experiment.config["trainer.max_epochs"], max_steps=limit, change=distributed,
        precision=autocast_type(experiment),
    )  # fmt: skip
    torch.distributed.barrier()
    if rank == 0:
        print(ticks.steps[-1] - ticks.begun if limit else ticks.epochs[-1] - ticks.begun)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    one_of_two(sys.argv[1], sys.argv[2:])
