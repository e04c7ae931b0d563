"""Time to 99.0 % of validation accuracy on MNIST, by `configs/mnist_cnn.yaml`."""

from argparse import Namespace

from benchmarks.measure import BenchmarkError, Row, in_turn
from benchmarks.sides import Experiment, Ticks, autocast_type, bare, ours

TARGET = 0.99


def run(options: Namespace) -> list[Row]:
    experiment = Experiment("configs/mnist_cnn.yaml", [f"data.root={options.data}"])
    epochs, found = experiment.config["trainer.max_epochs"], dict[str, str]()

    def reached(name: str, ticks: Ticks) -> float:
        if ticks.accuracies[-1] < TARGET:
            raise BenchmarkError(
                f"{name}: no more than {max(ticks.accuracies):.4f} in {epochs} epochs; the aim is {TARGET}"
            )
        found[name] = f"{ticks.accuracies[-1]:.4f} after {len(ticks.accuracies)} epochs"
        return ticks.reached

    dtype = autocast_type(experiment)
    sides = {
        "ours": lambda: reached("ours", ours(experiment, until=TARGET)),
        "bare": lambda: reached("bare", bare(experiment, epochs, until=TARGET, precision=dtype)),
    }
    times = in_turn(sides, options.pairs)
    note = " / ".join(found.values())
    return [Row("MNIST to 99.0 % of validation", "bare loop", times["ours"], times["bare"], at_most=1.15, note=note)]
