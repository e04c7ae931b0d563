"""Computes the metrics of a test for each value of a column, with confidence intervals."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# N samples, K classes

MAX_VALUES = 20  # of a column; more values are grouped
NUM_GROUPS = 5  # of equal size, for a column of numbers
NUM_RESAMPLES = 100  # of the bootstrap
Z = 1.96  # standard errors on each side of a 95 % interval
RANKING = {"roc_auc", "average_precision"}  # undefined if all samples have the same class
OTHERS, MISSING = "(other values)", "(missing)"


@dataclass(frozen=True)
class Slice:
    """The metrics of the samples with one value of a column.

    Attributes:
        value: The value, or a range of numbers.
        num_samples: Number of samples.
        metrics: Each metric that is defined, and its 95 % interval: (value, low, high).
    """

    value: str
    num_samples: int
    metrics: dict[str, tuple[float, float, float]]


def slice_metrics(logits: Tensor, labels: Tensor, values: Sequence[str | None], metrics: Any) -> list[Slice]:
    """Return the metrics for each value of a column, in ascending order of accuracy.

    The interval of the accuracy is Wilson's (1927, https://doi.org/10.1080/01621459.1927.10502953), which is also valid for
    few samples. The others are normal intervals with the standard error of a bootstrap (Efron 1979,
    https://doi.org/10.1214/aos/1176344552) that has a fixed seed.

    Args:
        logits: (N, K).
        labels: (N,).
        values: The value of each sample, None if it is missing. Numbers with more than 20 values are grouped into 5 ranges
            of equal size, and texts with more than 20 values into the most frequent ones and the others.
        metrics: A metric of torchmetrics that takes logits and labels and returns a dictionary.
    """
    groups = group_values(values)
    names = sorted(set(groups))
    members = {name: torch.tensor([i for i, group in enumerate(groups) if group == name]) for name in names}
    slices = [Slice(name, len(rows), _measure(logits[rows], labels[rows], metrics)) for name, rows in members.items()]
    return sorted(slices, key=lambda found: found.metrics["accuracy"])


def group_values(values: Sequence[str | None]) -> list[str]:
    """Return the group of each value: the value itself, a range of numbers, or `OTHERS`. See `slice_metrics`."""
    counts = Counter(value for value in values if value is not None)
    if len(counts) <= MAX_VALUES:
        return [MISSING if value is None else value for value in values]
    try:
        numbers = {value: float(value) for value in counts}
    except ValueError:
        frequent = {value for value, _ in counts.most_common(MAX_VALUES - 1)}
        return [MISSING if value is None else value if value in frequent else OTHERS for value in values]
    ordered = sorted(numbers[value] for value in values if value is not None)
    bounds = sorted({ordered[len(ordered) * i // NUM_GROUPS] for i in range(NUM_GROUPS)})
    tops = [max(number for number in ordered if number < bound) for bound in bounds[1:]] + [ordered[-1]]
    groups = {
        value: next(i for i, top in enumerate(tops) if number <= top or math.isnan(number))
        for value, number in numbers.items()
    }
    width = len(str(len(tops)))
    titles = [f"{i + 1:{width}}: {low:g} to {top:g}" for i, (low, top) in enumerate(zip(bounds, tops, strict=True))]
    return [MISSING if value is None else titles[groups[value]] for value in values]


def wilson_interval(hits: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction `hits` of `count` samples."""
    centre = (hits + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(hits * (1 - hits) / count + Z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _measure(logits: Tensor, labels: Tensor, metrics: Any) -> dict[str, tuple[float, float, float]]:
    found, count = _compute(logits, labels, metrics), len(labels)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(count, (count,), generator=generator) for _ in range(NUM_RESAMPLES)]
    resampled = [_compute(logits[chosen], labels[chosen], metrics) for chosen in rows]
    result = {}
    for name, value in found.items():
        half = Z * float(np.std([each[name] for each in resampled if name in each] or [0.0]))
        low, high = max(0.0, value - half), value + half if name == "loss" else min(1.0, value + half)
        result[name] = (value, *(wilson_interval(value, count) if name == "accuracy" else (low, high)))
    return result


def _compute(logits: Tensor, labels: Tensor, metrics: Any) -> dict[str, float]:
    metrics.reset()
    metrics.update(logits, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about samples of one class, whose ranking is undefined
        scalars = {name: float(value) for name, value in metrics.compute().items() if value.numel() == 1}
    scalars["loss"] = float(torch.nn.functional.cross_entropy(logits, labels))
    has_ranking = bool((labels != labels[0]).any())
    return {name: value for name, value in scalars.items() if has_ranking or name not in RANKING}
