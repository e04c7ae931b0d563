"""What TensorBoard's pictures, curves and explanations cost a training and its test, by `configs/mnist_cnn.yaml`.

Each callback's time is taken within one run, with all that is written to TensorBoard: two runs of a minute and a half on a
shared machine differ by more than they cost.
"""

import json
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

import train
from benchmarks.measure import BenchmarkError, Row
from callbacks.evaluation import EvaluationCallback
from callbacks.histograms import Histograms

HOOKS = tuple(f"on_{stage}_{when}" for stage in ("validation", "test") for when in ("start", "batch_end", "end"))
CURVES = "curves and texts"
ON_REQUEST = "Histograms"


def run(options: Namespace) -> list[Row]:
    spent: defaultdict[str, float] = defaultdict(float)
    logged: defaultdict[str, float] = defaultdict(float)  # of that, what a run's own clock calls logging, too
    hooks: list[tuple[type[Callback], str]] = [(EvaluationCallback, hook) for hook in HOOKS]
    hooks.append((Histograms, "on_before_optimizer_step"))
    originals = [(one, hook, getattr(one, hook)) for one, hook in hooks]
    for one, hook, original in originals:
        is_logging = hook in ("on_validation_end", "on_before_optimizer_step")
        setattr(one, hook, _counted(original, spent, logged if is_logging else None))
    try:
        with tempfile.TemporaryDirectory() as root:
            argv = ["--config", "configs/mnist_cnn.yaml", f"data.root={options.data}", f"run.root={root}"]
            if train.main([*argv, "run.name=one", "callbacks.histograms={}"]) != 0:
                raise BenchmarkError("the run has not come to its end")
            seconds = json.loads((Path(root) / "mnist_cnn/one/metrics.json").read_text(encoding="utf-8"))["seconds"]
    finally:
        for one, hook, original in originals:
            setattr(one, hook, original)
    spent[CURVES] = max(0.0, seconds["logging"] - sum(logged.values()))
    on_request = spent.pop(ON_REQUEST)
    whole = sum(value for name, value in seconds.items() if name != "start") - on_request
    return [
        _row("all of mnist_cnn", "without all", sum(spent.values()), whole, at_most=1.03),
        *(_row(f"  {name}", "without it", spent[name], whole) for name in sorted(spent, key=lambda one: -spent[one])),
        _row(f"{ON_REQUEST}, on request", "without it", on_request, whole + on_request),
    ]


def _counted(
    original: Callable[..., Any], spent: dict[str, float], logged: dict[str, float] | None
) -> Callable[..., Any]:
    def counted(self: Callback, *args: Any) -> Any:
        begun = time.perf_counter()
        try:
            return original(self, *args)
        finally:
            taken = time.perf_counter() - begun
            spent[type(self).__name__] += taken
            if logged is not None:
                logged[type(self).__name__] += taken

    return counted


def _row(work: str, against: str, value: float, whole: float, at_most: float | None = None) -> Row:
    return Row(work, against, [whole], [whole - value], at_most, note=f"{100 * value / whole:.2f} %, {value:.2f} s")
