"""Time of a training step with `configs/cifar10_cnn.yaml`."""

import statistics
from argparse import Namespace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines import train_bare
from benchmarks.experiment import Experiment, TrainingTimes, autocast_dtype, describe_rate, train_ours
from benchmarks.measure import Comparison, run_in_turn
from lit_models.cnn import CNN

STEPS = 15
WARM_UP = 3  # steps that are not counted


class ContiguousCNN(nn.Module):
    """The network with images and weights in the default memory layout (B, C, H, W)."""

    def __init__(self, network: CNN) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        if network.whitening is not None:
            images = F.gelu(network.whitening(images))
        return network.head(network.stages(images).amax((2, 3))) * network.logit_scale


def use_default_layout(network: nn.Module) -> nn.Module:
    assert isinstance(network, CNN)
    return ContiguousCNN(network)


def run(options: Namespace) -> list[Comparison]:
    overrides = [
        f"trainer.limit_train_batches={STEPS}",
        "trainer.limit_val_batches=0",
        "trainer.enable_checkpointing=false",
        "trainer.max_epochs=1",
    ]
    experiment = Experiment("configs/cifar10_cnn.yaml", [*overrides, f"data.root={options.data}"])
    batch_size, dtype, sync = experiment.config["data.batch_size"], autocast_dtype(experiment), {WARM_UP, STEPS}

    def step_seconds(times: TrainingTimes) -> float:
        steps = times.steps
        return (steps[-1] - steps[WARM_UP - 1]) / (len(steps) - WARM_UP)

    train_loop = partial(train_bare, experiment, 1, max_steps=STEPS, sync_steps=sync)
    sides = {
        "ours": lambda: step_seconds(train_ours(experiment, sync_steps=sync)),
        "bare": lambda: step_seconds(train_loop(autocast_dtype=dtype)),
        "fp32": lambda: step_seconds(train_loop(change=use_default_layout)),
    }
    times = run_in_turn(sides, options.pairs)
    work, note = f"step of {batch_size} images", describe_rate(experiment, batch_size, statistics.median(times["ours"]))
    at_most = 1.15 if options.gpu else 1.05
    return [
        Comparison(work, "bare loop", times["ours"], times["bare"], at_most=at_most, note=note),
        Comparison(work, "bare loop in fp32, default layout", times["ours"], times["fp32"], at_least=2.5),
    ]
