"""Time to a validation accuracy on CIFAR-10 with `configs/cifar10_cnn_fast.yaml`, for a GPU."""

from argparse import Namespace

from benchmarks.experiment import Experiment
from benchmarks.measure import Comparison
from benchmarks.mnist import compare

EPOCHS = 24


def run(options: Namespace) -> list[Comparison]:
    overrides = [f"trainer.max_epochs={EPOCHS}", f"data.root={options.data}"]
    experiment = Experiment("configs/cifar10_cnn_fast.yaml", overrides)
    return [compare("CIFAR-10", experiment, options.target, options.pairs)]
