"""What a step costs beside its arithmetic: an epoch of a 68k-parameter MLP on MNIST, with its validation.

784-64-128-64-10 with batch normalisation and Adam is the default network of the most used Lightning template. Ours also
accumulates loss and accuracy, looks at loss and gradient before every step, listens to signals, and writes
TensorBoard's curves.
"""

import statistics
from argparse import Namespace

from benchmarks.measure import Row, in_turn
from benchmarks.sides import Experiment, bare, documented, ours

EPOCHS = 3  # after one that is not counted
MLP = [
    "model.hidden_sizes=[64, 128, 64]", "model.normalization=batch", "optimizer.lr=0.001", "schedule={name: constant}",
    f"trainer.max_epochs={EPOCHS + 1}",
]  # fmt: skip


def run(options: Namespace) -> list[Row]:
    rows = []
    for size, at_most in ((128, 1.5), (1024, 1.15 if not options.gpu else 1.3)):
        experiment = Experiment(
            "configs/mnist_mlp.yaml", [*MLP, f"data.batch_size={size}", f"data.root={options.data}"]
        )
        accuracies: dict[str, float] = {}

        def ours_epoch(experiment: Experiment = experiment, accuracies: dict[str, float] = accuracies) -> float:
            ticks = ours(experiment)
            accuracies["ours"] = ticks.accuracies[-1]
            return statistics.median(ticks.seconds[1:])

        def bare_epoch(experiment: Experiment = experiment, accuracies: dict[str, float] = accuracies) -> float:
            ticks = bare(experiment, EPOCHS + 1)
            accuracies["bare"] = ticks.accuracies[-1]
            return statistics.median(ticks.seconds[1:])

        def documented_epoch(experiment: Experiment = experiment, accuracies: dict[str, float] = accuracies) -> float:
            ticks = documented(experiment, 2)
            accuracies["documented"] = ticks.accuracies[-1]
            return ticks.seconds[1]

        sides = {"ours": ours_epoch, "bare": bare_epoch}
        if size == 128:
            sides["documented"] = documented_epoch
        times = in_turn(sides, options.pairs)
        work = f"epoch of the 68k MLP, batch {size}"
        note = f"validation accuracy {accuracies['ours']:.4f} / {{:.4f}}"
        rows.append(Row(work, "bare loop", times["ours"], times["bare"], at_most, note=note.format(accuracies["bare"])))
        if "documented" in times:
            note = note.format(accuracies["documented"]) + " after 4 and 2 epochs"
            bar = 10.0 if options.gpu else 5.0
            rows.append(
                Row(work, "Lightning as documented", times["ours"], times["documented"], at_least=bar, note=note)
            )
    return rows
