"""Time that TensorBoard's pictures, curves and explanations add to a training and its test, with `configs/mnist_cnn.yaml`.

The time of each callback is measured within one run, with everything that it writes to TensorBoard. On a shared machine, two
runs of this length differ by more than these times.
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
from benchmarks.measure import BenchmarkError, Comparison
from callbacks.evaluation import EvaluationCallback
from callbacks.histograms import Histograms

HOOKS = tuple(f"on_{stage}_{when}" for stage in ("validation", "test") for when in ("start", "batch_end", "end"))
CURVES = "curves and texts"
ON_REQUEST = "Histograms"  # a callback that is off by default


def run(options: Namespace) -> list[Comparison]:
    spent: defaultdict[str, float] = defaultdict(float)  # class of the callback -> seconds
    logged: defaultdict[str, float] = defaultdict(float)  # the part of these seconds that the run counts as logging
    hooks: list[tuple[type[Callback], str]] = [(EvaluationCallback, hook) for hook in HOOKS]
    hooks.append((Histograms, "on_before_optimizer_step"))
    originals = [(owner, hook, getattr(owner, hook)) for owner, hook in hooks]
    for owner, hook, original in originals:
        is_logging = hook in ("on_validation_end", "on_before_optimizer_step")
        setattr(owner, hook, _timed(original, spent, logged if is_logging else None))
    try:
        with tempfile.TemporaryDirectory() as root:
            argv = ["--config", "configs/mnist_cnn.yaml", f"data.root={options.data}", f"run.root={root}"]
            if train.main([*argv, "run.name=run", "callbacks.histograms={}"]) != 0:
                raise BenchmarkError("the run failed")
            metrics = json.loads((Path(root) / "mnist_cnn/run/metrics.json").read_text(encoding="utf-8"))
    finally:
        for owner, hook, original in originals:
            setattr(owner, hook, original)
    seconds = metrics["seconds"]
    spent[CURVES] = max(0.0, seconds["logging"] - sum(logged.values()))
    on_request = spent.pop(ON_REQUEST)
    total = sum(value for name, value in seconds.items() if name != "start") - on_request
    return [
        _compare("all of mnist_cnn", "without all", sum(spent.values()), total, at_most=1.03),
        *(_compare(f"  {name}", "without it", spent[name], total) for name in sorted(spent, key=lambda n: -spent[n])),
        _compare(f"{ON_REQUEST}, on request", "without it", on_request, total + on_request),
    ]


def _timed(
    original: Callable[..., Any], spent: dict[str, float], logged: dict[str, float] | None
) -> Callable[..., Any]:
    """A hook that adds its seconds to `spent` and `logged`, under the class of the callback."""

    def hook(self: Callback, *args: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(self, *args)
        finally:
            seconds = time.perf_counter() - start
            spent[type(self).__name__] += seconds
            if logged is not None:
                logged[type(self).__name__] += seconds

    return hook


def _compare(work: str, baseline: str, seconds: float, total: float, at_most: float | None = None) -> Comparison:
    note = f"{seconds / total:.2%}, {seconds:.2f} s"
    return Comparison(work, baseline, [total], [total - seconds], at_most, note=note)
