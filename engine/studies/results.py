"""The results of a study: its settings and their runs. The report, the pictures and the progress table use these classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from engine.contracts import is_lower_better
from engine.runs.run_index import is_number

# "waiting": not started. "stopped": it was interrupted or killed, and can be resumed. "pruned": ended early by the search.
State = Literal["waiting", "running", "stopped", "finished", "pruned", "failed"]
Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Range:
    """The values between two numbers.

    Attributes:
        low: Smallest value.
        high: Largest value.
        is_log: Whether values are drawn uniformly on a logarithmic scale.
        is_int: Whether the values are integers.
    """

    low: float
    high: float
    is_log: bool = False
    is_int: bool = False


@dataclass(frozen=True)
class Choices:
    """A list of values, such as numbers, names or lists of numbers."""

    values: tuple[Any, ...]


Space: TypeAlias = Range | Choices


@dataclass(frozen=True)
class RunResult:
    """The result of a run of a study.

    Attributes:
        name: Name of its folder.
        folder: Its folder, which may not exist yet.
        seed: Its seed.
        fold: Its fold, from 0; None without folds.
        state: Its state.
        metrics: The content of its ``metrics.json``, such as "test/accuracy"; empty until it is finished or pruned.
        reason: Why it has failed.
    """

    name: str
    folder: Path
    seed: int
    fold: int | None
    state: State
    metrics: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def value(self, metric: str) -> float | None:
        """Return a metric; None if it is missing or not finite."""
        value: Any = self.metrics.get(metric)
        return float(value) if is_number(value) and math.isfinite(value) else None


@dataclass(frozen=True)
class SettingResult:
    """A setting: values of the varied keys, and the runs with these values.

    Attributes:
        number: Number of the setting in the study, from 0.
        values: For each varied key, such as "optimizer.lr", its value; empty if no key is varied.
        runs: One run for each pair of seed and fold.
    """

    number: int
    values: dict[str, Any]
    runs: Sequence[RunResult]

    @property
    def label(self) -> str:
        """The values in words: ``optimizer.lr=0.1 model.hidden_sizes=[64]``; "all runs" if no key is varied."""
        return " ".join(f"{key}={value}" for key, value in self.values.items()) or "all runs"


@dataclass(frozen=True)
class StudyResult:
    """A study.

    Attributes:
        folder: Its folder.
        settings: Its settings in the order of their numbers. In a search, each has one run, which does not use the test set.
        vary: The varied keys with their values; empty if no key is varied.
        metric: The metric that the study compares or optimizes, such as "test/accuracy", or "val/accuracy" in a search.
        is_search: Whether a search has chosen the settings; otherwise all settings were given.
        num_folds: Number of folds; None without folds.
        confirmation: In a search, runs of the best setting with new seeds, which use the test set; None before that.
        mode: "min" if lower values of `metric` are better, "max" if higher values are; None if its name tells it.
    """

    folder: Path
    settings: Sequence[SettingResult]
    vary: dict[str, Space]
    metric: str
    is_search: bool
    num_folds: int | None
    confirmation: SettingResult | None = None
    mode: Mode | None = None

    @property
    def is_minimized(self) -> bool:
        """Whether lower values of `metric` are better."""
        return self.is_lower_better(self.metric)

    def is_lower_better(self, metric: str) -> bool:
        """Return whether lower values of a metric are better."""
        return is_lower_better(metric) if self.mode is None or metric != self.metric else self.mode == "min"
