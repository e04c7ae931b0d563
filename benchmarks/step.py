"""What a step costs beside its arithmetic: an epoch of a 68k-parameter MLP on MNIST, with its validation.

784-64-128-64-10 with batch normalisation and Adam is the default network of the most used Lightning template. Ours also
accumulates loss and accuracy, looks at loss and gradient before every step, listens to signals, and writes
TensorBoard's curves.
"""

import statistics
from argparse import Namespace
from collections.abc import Callable

from benchmarks.documented import documented
from benchmarks.measure import Row, in_turn
from benchmarks.sides import Experiment, Ticks, bare, learns_as_much, ours, rate

EPOCHS = 3  # after one that is not counted
DOCUMENTED = 2  # epochs of the slowest side, of which the first is not counted
MLP = [
    "model.hidden_sizes=[64, 128, 64]", "model.normalization=batch", "optimizer.lr=0.001", "schedule={name: constant}",
    f"trainer.max_epochs={EPOCHS + 1}",
]  # fmt: skip


def run(options: Namespace) -> list[Row]:
    return [*_rows(options, 128, 1.5), *_rows(options, 1024, 1.3 if options.gpu else 1.15)]


def _rows(options: Namespace, size: int, at_most: float) -> list[Row]:
    experiment = Experiment("configs/mnist_mlp.yaml", [*MLP, f"data.batch_size={size}", f"data.root={options.data}"])
    accuracies: dict[str, list[float]] = {}

    def an_epoch(name: str, train: Callable[[], Ticks]) -> float:
        ticks = train()
        accuracies[name] = ticks.accuracies
        return statistics.median(ticks.seconds[1:])

    sides = {
        "ours": lambda: an_epoch("ours", lambda: ours(experiment)),
        "bare": lambda: an_epoch("bare", lambda: bare(experiment, EPOCHS + 1)),
        "documented": lambda: an_epoch("documented", lambda: documented(experiment, DOCUMENTED)),
    }
    times = in_turn(sides, options.pairs)
    samples = experiment.datamodule.num_samples("train")
    work = f"epoch of the 68k MLP, batch {size}"
    alike = learns_as_much(accuracies["ours"][-1], accuracies["bare"][-1])
    note = f"{alike}; {rate(experiment, samples, statistics.median(times['ours']))}"
    other = learns_as_much(accuracies["ours"][DOCUMENTED - 1], accuracies["documented"][-1])
    bar = (10.0 if options.gpu else 5.0) if size == 128 else 1.0
    return [
        Row(work, "bare loop", times["ours"], times["bare"], at_most=at_most, note=note),
        Row(work, "Lightning as documented", times["ours"], times["documented"], at_least=bar, note=other),
    ]
