"""Groups of runs that differ only in their seed or their split of the data, and the comparison of such groups."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from engine.contracts import COMMAND_LINE, ConfigError, is_lower_better, listed
from engine.runs.comparison import compare_configs, read_config
from engine.runs.run_index import Run, metric_names
from engine.studies import statistics
from engine.studies.statistics import Difference, Summary, Values
from engine.terminal import count_of

REPEATED = ("seed", "data.split_seed", "data.num_folds", "data.fold")  # keys in which the runs of a group may differ


@dataclass(frozen=True)
class RunGroup:
    """The finished runs of a group.

    Attributes:
        name: Its name.
        runs: The runs, by their split of the data and their seed.
        configs: The config of each run, in the same order.
        num_unfinished: Number of runs that are left out because they are not finished.
        num_older: Number of runs that are left out because a newer run has the same split and seed.
    """

    name: str
    runs: Mapping[tuple[Hashable, Hashable], Run]
    configs: Sequence[dict[str, Any]]
    num_unfinished: int
    num_older: int

    def values(self, metric: str) -> Values:
        """Return the values of a metric, without the runs that lack it."""
        return {key: run.metrics[metric] for key, run in self.runs.items() if metric in metric_names(run)}

    @property
    def is_tested(self) -> bool:
        """Whether a run has metrics of the test."""
        return any(name.startswith("test/") for run in self.runs.values() for name in run.metrics)

    def differing_keys(self) -> list[str]:
        """Return the keys, other than seeds and splits, in which the configs of the runs differ."""
        keys = [key for key, _ in compare_configs([*self.runs.values()])]
        return [key for key in keys if key not in REPEATED and not key.startswith("run.")]


@dataclass(frozen=True)
class MetricComparison:
    """A metric in several groups.

    Attributes:
        metric: Its name.
        summaries: Mean and standard deviation of each group.
        differences: The difference of each pair of groups; None if a value is not finite.
    """

    metric: str
    summaries: Sequence[Summary]
    differences: Mapping[tuple[str, str], Difference | None]


def read_group(name: str, runs: Sequence[Run]) -> RunGroup:
    """Read the configs of runs, the newest first, and leave out runs that do not count.

    Two runs with the same split and seed are a repetition, not two independent results, so only the newest counts.

    Raises:
        ConfigError: if fewer than two runs are left.
    """
    finished = [run for run in runs if run.status == "finished"]
    kept: dict[tuple[Hashable, Hashable], Run] = {}
    configs = []
    for run in finished:
        config = read_config(run.folder / "config.yaml")
        key = (split_of(config), config.get("seed"))
        if key not in kept:
            kept[key] = run
            configs.append(config)
    if len(kept) < 2:
        problem = f"needs at least 2 finished runs with different seeds or folds, but has {len(kept)}"
        raise ConfigError(COMMAND_LINE, name, problem, "train with another seed, for example seed=1")
    return RunGroup(name, kept, configs, len(runs) - len(finished), len(finished) - len(kept))


def compare_groups(groups: Sequence[RunGroup]) -> list[MetricComparison]:
    """Compare test metrics, validation metrics and the training time.

    A metric is left out if fewer than two runs, or splits, of a group have it.

    Raises:
        ConfigError: if a run is in two groups, if only some groups have several splits of the data, or if the groups have no
            metric in common.
    """
    for first, second in combinations(groups, 2):
        folders = {run.folder.resolve() for run in first.runs.values()}
        both = [run.name for run in second.runs.values() if run.folder.resolve() in folders]
        if both:
            problem = f"{first.name} and {second.name} have common runs: {listed(both)}"
            raise ConfigError(COMMAND_LINE, "compare", problem, "choose groups without common runs")
    found = []
    for metric in metric_names(next(iter(groups[0].runs.values()))):
        values = {group.name: group.values(metric) for group in groups}
        ratios = {group.name: overlap_ratio(group.configs, metric, group.is_tested) for group in groups}
        ratio = max(ratios.values())
        units = [{split for split, _ in numbers} if ratio else numbers for numbers in values.values()]
        if "/" not in metric and metric != "train_seconds":
            continue
        if ratio and not all(ratios.values()):
            several, single = max(ratios, key=ratios.__getitem__), min(ratios, key=ratios.__getitem__)
            problem = f"{several} has several splits of the data, but {single} only one"
            raise ConfigError(
                COMMAND_LINE, "compare", problem, "compare runs with the same data.split_seed and data.fold"
            )
        if min(map(len, units)) < 2:
            continue
        summaries = [statistics.summary([*numbers.values()]) for numbers in values.values()]
        differences: dict[tuple[str, str], Difference | None] = dict.fromkeys(combinations(values, 2))
        if all(math.isfinite(value) for numbers in values.values() for value in numbers.values()):
            differences |= statistics.pairwise_differences(values, ratio)
        found.append(MetricComparison(metric, summaries, differences))
    if not found:
        raise ConfigError(COMMAND_LINE, "compare", "the groups have no metric in common", "python runs.py shows all")
    return found


def overlap_ratio(configs: Sequence[Mapping[str, Any]], metric: str, is_tested: bool) -> float:
    """Return the size of the held-out set relative to the training set, or 0 if all runs use the same split of the data.

    The held-out set is the set that the metric is measured on. The ratio is also 0 for a test set that is not split off the
    training data, unless the runs use folds.

    Args:
        configs: The configs of the runs.
        metric: Name of the metric.
        is_tested: Whether the runs have metrics of the test. If the test set is given, a fold is the validation set, and the
            runs are not tested.
    """
    if len({split_of(config) for config in configs}) < 2:
        return 0.0
    return max(_held_out_ratio(config, metric, is_tested) for config in configs)


def split_of(config: Mapping[str, Any]) -> Hashable:
    """Return what identifies the split of the data that a run with this config uses."""
    data = config.get("data") or {}
    folds = data.get("num_folds")
    return folds, data.get("fold") if folds else None, data.get("split_seed")


def pair_rows(comparison: MetricComparison) -> Iterator[list[str]]:
    """Yield metric, names, interval of the difference and verdict of each pair of groups."""
    for (first, second), found in comparison.differences.items():
        interval = "" if found is None else statistics.format_interval(found, is_lower_better(comparison.metric))
        yield [comparison.metric, f"{first}, {second}", interval, _verdict(comparison.metric, first, second, found)]


def group_notes(groups: Sequence[RunGroup], comparisons: Sequence[MetricComparison]) -> Iterator[str]:
    """Yield sentences about the runs that are left out, and about how the groups are compared."""
    for group in groups:
        if group.num_unfinished:
            yield f"{group.name}: {_left_out(group.num_unfinished, 'unfinished run')}"
        if group.num_older:
            yield f"{group.name}: {_left_out(group.num_older, 'older run', ' with the same seed and split')}"
        if keys := group.differing_keys():
            yield f"{group.name}: the runs also differ in {listed(keys)}, so they are not repetitions of the same setting"
    differences = [found for each in comparisons for found in each.differences.values() if found is not None]
    if all(found.is_paired for found in differences):
        yield "paired: the groups have the same seeds and splits"
    else:
        yield "not paired: the groups have different seeds or splits"
    if any(found.test_to_train for found in differences):
        yield "the runs use several splits of the same data, so the intervals are corrected for overlapping training sets"
    if len(groups) > 2:
        num_pairs = len(groups) * (len(groups) - 1) // 2
        yield f"the intervals are corrected for {num_pairs} pairs per metric (Holm)"


def to_dict(groups: Sequence[RunGroup], comparisons: Sequence[MetricComparison]) -> dict[str, Any]:
    """Return plain values, for JSON."""
    facts = [
        {
            "group": group.name,
            "runs": [run.name for run in group.runs.values()],
            "unfinished": group.num_unfinished,
            "older": group.num_older,
        }
        for group in groups
    ]
    metrics = []
    for each in comparisons:
        summaries = {group.name: asdict(found) for group, found in zip(groups, each.summaries, strict=True)}
        pairs = [
            {"first": first, "second": second, "verdict": _verdict(each.metric, first, second, found)}
            | ({} if found is None else asdict(found) | {"interval": found.interval, "p_value": found.p_value})
            for (first, second), found in each.differences.items()
        ]
        metrics.append({"metric": each.metric, "groups": summaries, "differences": pairs})
    return {"groups": facts, "metrics": metrics}


def _left_out(count: int, noun: str, which: str = "") -> str:
    return f"{count_of(count, noun)}{which} {'is' if count == 1 else 'are'} left out"


def _verdict(metric: str, first: str, second: str, found: Difference | None) -> str:
    if found is None:
        return "unknown, because a value is not finite"
    unit = "splits" if found.test_to_train else "seeds" if found.is_paired else "runs"
    return statistics.verdict(found, is_lower_better(metric), first, second, unit)


def _held_out_ratio(config: Mapping[str, Any], metric: str, is_tested: bool) -> float:
    """Return the size of the set that a metric is measured on, relative to the training set; 0 if the set is the same."""
    data, trainer = config.get("data") or {}, config.get("trainer") or {}
    fold, val = 1 / data["num_folds"] if data.get("num_folds") else 0.0, data.get("val_fraction", 0.0)
    if metric.startswith("val/"):
        if (
            fold and not is_tested
        ):  # the fold is the validation set; without a test by the config, it may be the test set
            val = max(fold, val) if trainer.get("limit_test_batches") == 0 else fold
        return val / (1 - val)
    held_out = fold or (data.get("test_fraction", 0.0) if data.get("test") is None else 0.0)
    return held_out / ((1 - held_out) * (1 - val))
