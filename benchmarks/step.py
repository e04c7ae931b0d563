"""Overhead of a step: an epoch of an MLP with 68k parameters on MNIST, with its validation.

784-64-128-64-10 with batch normalization and Adam is the default network of the most used Lightning template. Unlike the
bare loop, this project sums up loss and accuracy, checks loss and gradient of every step, handles signals, and logs curves.
"""

import statistics
from argparse import Namespace
from collections.abc import Callable

from benchmarks.baselines import train_bare, train_documented
from benchmarks.experiment import Experiment, TrainingTimes, compare_accuracies, describe_rate, train_ours
from benchmarks.measure import Comparison, run_in_turn

EPOCHS = 3  # measured epochs; the epoch before them is not counted
DOCUMENTED_EPOCHS = 2  # epochs of the slowest side, of which the first is not counted
MLP = [
    "model.hidden_sizes=[64, 128, 64]", "model.normalization=batch", "optimizer.lr=0.001", "schedule={name: constant}",
    f"trainer.max_epochs={EPOCHS + 1}",
]  # fmt: skip


def run(options: Namespace) -> list[Comparison]:
    return [*_compare(options, 128, 1.5), *_compare(options, 1024, 1.3 if options.gpu else 1.15)]


def _compare(options: Namespace, batch_size: int, at_most: float) -> list[Comparison]:
    overrides = [*MLP, f"data.batch_size={batch_size}", f"data.root={options.data}"]
    experiment = Experiment("configs/mnist_mlp.yaml", overrides)
    accuracies: dict[str, list[float]] = {}

    def epoch_seconds(name: str, train: Callable[[], TrainingTimes]) -> float:
        times = train()
        accuracies[name] = times.accuracies
        return statistics.median(times.epoch_seconds[1:])

    sides = {
        "ours": lambda: epoch_seconds("ours", lambda: train_ours(experiment)),
        "bare": lambda: epoch_seconds("bare", lambda: train_bare(experiment, EPOCHS + 1)),
        "documented": lambda: epoch_seconds("documented", lambda: train_documented(experiment, DOCUMENTED_EPOCHS)),
    }
    times = run_in_turn(sides, options.pairs)
    rate = describe_rate(experiment, experiment.datamodule.num_samples("train"), statistics.median(times["ours"]))
    bare_note = f"{compare_accuracies(accuracies['ours'][-1], accuracies['bare'][-1])}; {rate}"
    documented_note = compare_accuracies(accuracies["ours"][DOCUMENTED_EPOCHS - 1], accuracies["documented"][-1])
    speedup = (10.0 if options.gpu else 5.0) if batch_size == 128 else 1.0
    work, documented = f"epoch of the 68k MLP, batch {batch_size}", "Lightning as documented"
    return [
        Comparison(work, "bare loop", times["ours"], times["bare"], at_most=at_most, note=bare_note),
        Comparison(work, documented, times["ours"], times["documented"], at_least=speedup, note=documented_note),
    ]
