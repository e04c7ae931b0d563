"""Time to 99 % validation accuracy on MNIST with `configs/mnist_cnn.yaml`."""

from argparse import Namespace

from benchmarks.baselines import train_bare
from benchmarks.experiment import Experiment, TrainingTimes, autocast_dtype, train_ours
from benchmarks.measure import BenchmarkError, Comparison, run_in_turn

TARGET = 0.99


def run(options: Namespace) -> list[Comparison]:
    experiment = Experiment("configs/mnist_cnn.yaml", [f"data.root={options.data}"])
    return [compare("MNIST", experiment, TARGET, options.pairs)]


def compare(data: str, experiment: Experiment, target: float, pairs: int) -> Comparison:
    """Compare the times until the validation accuracy is `target`.

    Raises:
        BenchmarkError: if a side does not reach it.
    """
    epochs, notes = experiment.config["trainer.max_epochs"], dict[str, str]()

    def seconds_to_target(name: str, times: TrainingTimes) -> float:
        if times.accuracies[-1] < target:
            best = max(times.accuracies)
            raise BenchmarkError(f"{name}: accuracy {best:.4f} after {epochs} epochs; the target is {target}")
        notes[name] = f"{times.accuracies[-1]:.4f} after {len(times.accuracies)} epochs"
        return times.target_seconds

    dtype = autocast_dtype(experiment)
    sides = {
        "ours": lambda: seconds_to_target("ours", train_ours(experiment, target)),
        "bare": lambda: seconds_to_target("bare", train_bare(experiment, epochs, target, autocast_dtype=dtype)),
    }
    times = run_in_turn(sides, pairs)
    work, note = f"{data} to {target:.1%} of validation", " / ".join(notes.values())
    return Comparison(work, "bare loop", times["ours"], times["bare"], at_most=1.15, note=note)
