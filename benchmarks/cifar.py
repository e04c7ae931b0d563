"""Images a second in the training of `configs/cifar10_cnn.yaml`."""

import statistics
from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Row, in_turn
from benchmarks.sides import Experiment, Ticks, autocast_type, bare, ours, rate
from lit_models.cnn import CNN

STEPS, WARM_UP = 15, 3


class DefaultLayout(nn.Module):
    """The network with its images as (B, C, H, W) in memory."""

    def __init__(self, network: CNN) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        if network.whitening is not None:
            images = F.gelu(network.whitening(images))
        return network.head(network.stages(images).amax((2, 3))) * network.logit_scale


def default_layout(network: nn.Module) -> nn.Module:
    assert isinstance(network, CNN)
    return DefaultLayout(network)


def run(options: Namespace) -> list[Row]:
    short = [
        f"trainer.limit_train_batches={STEPS}",
        "trainer.limit_val_batches=0",
        "trainer.enable_checkpointing=false",
        "trainer.max_epochs=1",
    ]
    experiment = Experiment("configs/cifar10_cnn.yaml", [*short, f"data.root={options.data}"])
    size, dtype = experiment.config["data.batch_size"], autocast_type(experiment)

    def a_step(ticks: Ticks) -> float:
        steps = ticks.steps
        return (steps[-1] - steps[WARM_UP - 1]) / (len(steps) - WARM_UP)

    waits = {WARM_UP, STEPS}
    sides = {
        "ours": lambda: a_step(ours(experiment, waits=waits)),
        "bare": lambda: a_step(bare(experiment, 1, max_steps=STEPS, precision=dtype, waits=waits)),
        "fp32": lambda: a_step(bare(experiment, 1, max_steps=STEPS, change=default_layout, waits=waits)),
    }
    times = in_turn(sides, options.pairs)
    note = rate(experiment, size, statistics.median(times["ours"]))
    work = f"step of {size} images"
    return [
        Row(work, "bare loop", times["ours"], times["bare"], at_most=1.15 if options.gpu else 1.05, note=note),
        Row(work, "bare loop in fp32, default layout", times["ours"], times["fp32"], at_least=2.5),
    ]
