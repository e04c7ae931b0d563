"""Time to 99.0 % of validation accuracy on MNIST, by `configs/mnist_cnn.yaml`."""

from argparse import Namespace

from benchmarks.measure import Row, in_turn
from benchmarks.sides import Experiment, autocast_type, bare, ours

TARGET = 0.99


def run(options: Namespace) -> list[Row]:
    experiment = Experiment("configs/mnist_cnn.yaml", [f"data.root={options.data}"])
    epochs, accuracies = experiment.config["trainer.max_epochs"], {}

    def by_us() -> float:
        ticks = ours(experiment, until=TARGET)
        accuracies["ours"] = ticks.accuracies
        return ticks.reached

    def by_a_loop() -> float:
        ticks = bare(experiment, epochs, until=TARGET, precision=autocast_type(experiment))
        accuracies["bare"] = ticks.accuracies
        return ticks.reached

    times = in_turn({"ours": by_us, "bare": by_a_loop}, options.pairs)
    found = " / ".join(f"{one[-1]:.4f} after {len(one)} epochs" for one in accuracies.values())
    return [Row("MNIST to 99.0 % of validation", "bare loop", times["ours"], times["bare"], at_most=1.15, note=found)]
