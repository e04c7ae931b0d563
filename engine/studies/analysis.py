"""The figures of a study: names, values, means with intervals, differences between settings, and the best setting."""

import math
from collections import Counter
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from typing import Any

from engine.contracts import ConfigError
from engine.runs.comparison import read_config
from engine.studies import statistics
from engine.studies.groups import overlap_ratio, split_of
from engine.studies.importance import Importance, importances
from engine.studies.results import Range, RunResult, SettingResult, StudyResult
from engine.studies.statistics import Difference, Summary, Values

MAX_NAME = 21  # longest name of a setting in sentences; settings with longer names are called by their numbers
EDGE = 0.05  # part of a range, at each of its ends, that counts as its edge
METRICS = tuple(
    f"{stage}/{name}" for stage in ("test", "val") for name in ("accuracy", "loss", "f1", "calibration_error")
)


class Analysis:
    """The figures of a study.

    Args:
        study: The study.
    """

    def __init__(self, study: StudyResult) -> None:
        self.study, self.metric = study, study.metric
        self._ratios: dict[tuple[str, bool], float] = {}
        confirmation = [] if study.confirmation is None else [study.confirmation]
        self._configs = {
            run.folder: _read_split(run, study.num_folds)
            for setting in [*study.settings, *confirmation]
            for run in setting.runs
            if run.state == "finished"
        }

    @property
    def runs(self) -> list[RunResult]:
        """The runs of all settings, without those of the confirmation."""
        return [run for setting in self.study.settings for run in setting.runs]

    @cached_property
    def names(self) -> dict[int, str]:
        """A short and unique name of each setting, by its number."""
        if self.study.is_search:
            return {setting.number: f"trial {setting.number}" for setting in self.study.settings}
        names = {setting.number: short_label(setting) for setting in self.study.settings}
        if len({*names.values()}) < len(names) or max(map(len, names.values()), default=0) > MAX_NAME:
            names = {number: f"setting {number}" for number in names}
        return names

    @cached_property
    def metrics(self) -> list[str]:
        """The main metrics that a finished run has, the metric of the study first."""
        found = {name for run in self.runs if run.state == "finished" for name in run.metrics}
        return [self.metric, *(name for name in METRICS if name in found and name != self.metric)]

    def values(self, setting: SettingResult, metric: str) -> Values:
        """Return the finite values of a metric in the finished runs of a setting."""
        return {
            (split_of(self._configs[run.folder]), run.seed): value
            for run in setting.runs
            if run.state == "finished" and (value := run.value(metric)) is not None
        }

    def test_to_train(self, metric: str, of_confirmation: bool = False) -> float:
        """Return the ratio that `statistics` needs for several splits, for the settings or for the runs with new seeds."""
        key = metric, of_confirmation
        if key not in self._ratios:
            runs = self.study.confirmation.runs if of_confirmation and self.study.confirmation else self.runs
            finished = [run for run in runs if run.folder in self._configs]
            is_tested = any(name.startswith("test/") for run in finished for name in run.metrics)
            self._ratios[key] = overlap_ratio([self._configs[run.folder] for run in finished], metric, is_tested)
        return self._ratios[key]

    def summary(self, setting: SettingResult, metric: str) -> Summary | None:
        """Return the summary of a metric over the splits or, if there is one split, over the seeds; None without values.

        It has no interval if all values are equal, because an interval without width would claim certainty.
        """
        values, ratio = self.values(setting, metric), self.test_to_train(metric, setting is self.study.confirmation)
        if not values:
            return None
        found = statistics.summary([*(statistics.mean_of_splits(values) if ratio else values).values()], ratio)
        if found.std is not None and found.std <= statistics.ROUNDING * abs(found.mean):
            return replace(found, std=0.0, low=None, high=None)
        if metric not in METRICS:
            return found
        return statistics.within_range(found, math.inf if metric.endswith("/loss") else 1.0)

    @cached_property
    def ranked(self) -> list[SettingResult]:
        """The settings with a value of the metric, the best mean first."""
        means = {
            setting.number: found.mean
            for setting in self.study.settings
            if (found := self.summary(setting, self.metric)) is not None
        }
        sign = 1 if self.study.is_minimized else -1
        known = [setting for setting in self.study.settings if setting.number in means]
        return sorted(known, key=lambda setting: sign * means[setting.number])

    @cached_property
    def differences(self) -> dict[tuple[int, int], Difference | None]:
        """The difference of each pair of settings; None if fewer than two common runs, or splits, have values.

        A pair is compared over the seeds and folds that both settings have. The intervals are corrected for the number of
        pairs, see `statistics.pairwise_differences`.
        """
        if self.study.is_search:
            return {}
        ratio = self.test_to_train(self.metric)
        values = {setting.number: self.values(setting, self.metric) for setting in self.study.settings}
        found: dict[tuple[int, int], Difference | None] = {}
        for first, second in combinations(values, 2):
            common = [key for key in values[first] if key in values[second]]
            is_enough = len({split for split, _ in common} if ratio else common) > 1
            one, other = ({key: values[number][key] for key in common} for number in (first, second))
            found[first, second] = statistics.difference(one, other, ratio) if is_enough else None
        levels = statistics.holm_levels([None if each is None else each.p_value for each in found.values()])
        return {
            pair: None if each is None else replace(each, level=level)
            for (pair, each), level in zip(found.items(), levels, strict=True)
        }

    @property
    def repetitions(self) -> str:
        """Two settings can be compared if they have two of these in common: "folds", "splits" or "seeds"."""
        if self.study.num_folds:
            return "folds"
        return "splits" if self.test_to_train(self.metric) else "seeds"

    def verdict(self, pair: tuple[int, int]) -> str:
        """Return the sentence about a pair of settings."""
        found = self.differences[pair]
        if found is None:
            return f"unknown: fewer than 2 {self.repetitions} are finished in both settings"
        unit = ("folds" if self.study.num_folds else "splits") if found.test_to_train else "seeds"
        first, second = (self.names[number] for number in pair)
        return statistics.verdict(found, self.study.is_minimized, first, second, unit)

    @cached_property
    def importances(self) -> dict[str, Importance]:
        """The importance of each hyperparameter of a search, see `engine.studies.importance`."""
        if not self.study.is_search:
            return {}
        metric = [found.mean for trial in self.ranked if (found := self.summary(trial, self.metric)) is not None]
        return importances([trial.values for trial in self.ranked], metric, self.study.vary)

    @cached_property
    def edges(self) -> dict[str, str]:
        """The hyperparameters whose best value is close to an end of their range: "lower" or "upper"."""
        if not self.study.is_search or not self.ranked:
            return {}
        places = {
            key: _place(self.ranked[0].values[key], space)
            for key, space in self.study.vary.items()
            if isinstance(space, Range) and key in self.ranked[0].values and space.low < space.high
        }
        return {
            key: "lower" if place < 0.5 else "upper" for key, place in places.items() if abs(place - 0.5) >= 0.5 - EDGE
        }


def format_value(value: Any) -> str:
    """Return a value of a hyperparameter as text, a float with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short_label(setting: SettingResult) -> str:
    """Return the values with only the last part of each key, as long as this is unique: ``lr=0.1``."""
    parts = Counter(key.rpartition(".")[2] for key in setting.values)
    names = {key: last if parts[last := key.rpartition(".")[2]] == 1 else key for key in setting.values}
    return " ".join(f"{names[key]}={format_value(value)}" for key, value in setting.values.items()) or setting.label


def _place(value: float, space: Range) -> float:
    """Return the place of a value in its range, from 0 to 1."""
    low, high, value = (math.log(number) if space.is_log else number for number in (space.low, space.high, value))
    return (value - low) / (high - low)


def _read_split(run: RunResult, num_folds: int | None) -> dict[str, Any]:
    """Return the config of a run or, if its folder is gone, the keys of it that the study knows."""
    try:
        return read_config(run.folder / "config.yaml")
    except ConfigError:
        return {"data": {"num_folds": num_folds, "fold": run.fold}}
