"""What TensorBoard's pictures, curves and explanations cost a training and its test, by `configs/mnist_cnn.yaml`.

Each callback's time is taken within one run, with all that is written to TensorBoard: two runs of a minute and a half on a
shared machine differ by more than they cost.
"""

import importlib
import json
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import train
from benchmarks.measure import BenchmarkError, Row
from callbacks.evaluation import EvaluationCallback
from configs.schema import DEFAULT_CALLBACKS

HOOKS = ("begin", "see", "show")
CURVES = "curves and texts"


def run(options: Namespace) -> list[Row]:
    for name in DEFAULT_CALLBACKS:
        importlib.import_module(f"callbacks.{name}")
    spent: defaultdict[str, float] = defaultdict(float)
    shown: defaultdict[str, float] = defaultdict(float)  # of that, what the clock counts as logging, too
    originals = [(one, hook, getattr(one, hook)) for one in EvaluationCallback.__subclasses__() for hook in HOOKS]
    for one, hook, original in originals:
        setattr(one, hook, _counted(original, one.__name__, spent, shown if hook == "show" else None))
    try:
        with tempfile.TemporaryDirectory() as root:
            argv = ["--config", "configs/mnist_cnn.yaml", f"data.root={options.data}", f"run.root={root}"]
            if train.main([*argv, "run.name=one"]) != 0:
                raise BenchmarkError("the run has not come to its end")
            seconds = json.loads((Path(root) / "mnist_cnn/one/metrics.json").read_text(encoding="utf-8"))["seconds"]
    finally:
        for one, hook, original in originals:
            setattr(one, hook, original)
    whole = sum(value for name, value in seconds.items() if name != "start")
    in_training = sum(value for name, value in shown.items() if not name.endswith(" test"))
    spent[CURVES] = max(0.0, seconds["logging"] - in_training)
    everything = sum(spent.values())
    rows = [
        Row(
            "all of mnist_cnn",
            "without all",
            [whole],
            [whole - everything],
            at_most=1.03,
            note=_note(everything, whole),
        )
    ]
    return rows + [
        Row(f"  {name}", "without it", [whole], [whole - value], note=_note(value, whole))
        for name, value in sorted(spent.items(), key=lambda one: -one[1])
    ]


def _counted(
    original: Callable[..., Any], name: str, spent: dict[str, float], shown: dict[str, float] | None
) -> Callable[..., Any]:
    def counted(self: EvaluationCallback, *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return original(self, *args, **kwargs)
        finally:
            taken = time.perf_counter() - begun
            spent[name] += taken
            if shown is not None:
                shown[f"{name} {args[2]}"] += taken

    return counted


def _note(value: float, whole: float) -> str:
    return f"{100 * value / whole:.2f} %, {value:.2f} s"
