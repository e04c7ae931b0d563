"""Made-up results of studies."""

from pathlib import Path

import numpy as np

from engine.studies.results import Choices, Range, RunResult, SettingResult, StudyResult

FOLDER = Path("studies/iris_mlp/20260101-120000")


def make_run(name: str, seed: int = 0, fold: int | None = None, state: str = "finished", reason: str = "", **metrics):
    """A run. The names of `metrics` have ``__`` for the slash; the loss follows from the accuracy if it is not given."""
    found = {name.replace("__", "/"): value for name, value in metrics.items()}
    return RunResult(name, FOLDER / name, seed, fold, state, found, reason)


def make_setting(number: int, values: dict, accuracies, metric: str = "test/accuracy", folds: int | None = None):
    """A setting with a finished run for each accuracy. With folds, `accuracies` has a row for each seed."""
    runs = []
    for (seed, *fold), accuracy in np.ndenumerate(np.asarray(accuracies, float)):
        metrics = {metric.replace("/", "__"): float(accuracy)}
        runs.append(make_run(f"{number}-{seed}-{fold}", seed, *map(int, fold), **metrics))
    return SettingResult(number, values, runs)


def make_grid(
    accuracies_of: dict, key: str = "optimizer.lr", num_folds: int | None = None, metric: str = "test/accuracy"
):
    """A study of given settings: the accuracies of each value of `key`."""
    settings = [
        make_setting(number, {key: value}, accuracies, metric)
        for number, (value, accuracies) in enumerate(accuracies_of.items())
    ]
    return StudyResult(FOLDER, settings, {key: Choices((*accuracies_of,))}, metric, False, num_folds)


SPACE = {
    "optimizer.lr": Range(1e-4, 1e-1, is_log=True),
    "model.hidden_sizes": Choices(([64], [64, 64], [256, 256])),
    "model.dropout": Range(0.0, 0.5),
    "model.num_layers": Range(1, 4, is_int=True),
    "optimizer.name": Choices(("sgd", "adamw", "muon")),
    "optimizer.weight_decay": Range(1e-6, 1e-2, is_log=True),
    "trainer.max_epochs": Choices((10, 20, 40)),
    "data.batch_size": Choices((16, 32, 64, 128)),
}


def draw(space, generator) -> object:
    if isinstance(space, Choices):
        return space.values[generator.integers(len(space.values))]
    if space.is_int:
        return int(generator.integers(space.low, space.high + 1))
    low, high = (np.log([space.low, space.high])) if space.is_log else (space.low, space.high)
    value = generator.uniform(low, high)
    return float(np.exp(value) if space.is_log else value)


def make_search(num_trials: int, keys: int = 3, seed: int = 0, noise: float = 0.003, best_lr: float = 1e-2):
    """A search in which the learning rate and, less, the dropout matter. Every sixth trial is pruned, every ninth fails."""
    generator = np.random.default_rng(seed)
    space = dict([*SPACE.items()][:keys])
    settings = []
    for number in range(num_trials):
        values = {key: draw(found, generator) for key, found in space.items()}
        accuracy = 0.97 - 0.04 * np.log10(values["optimizer.lr"] / best_lr) ** 2 - 0.05 * values.get("model.dropout", 0)
        accuracy += generator.normal(0, noise)
        state = "pruned" if number % 6 == 5 else "failed" if number % 9 == 8 else "finished"
        metrics = {} if state == "failed" else {"val__accuracy": float(accuracy), "val__loss": float(1 - accuracy)}
        reason = "training diverged: the loss is not finite" if state == "failed" else ""
        settings.append(SettingResult(number, values, [make_run(f"trial-{number}", 0, None, state, reason, **metrics)]))
    return StudyResult(FOLDER, settings, space, "val/accuracy", True, None)
