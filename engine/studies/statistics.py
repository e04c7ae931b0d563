"""The statistics of many runs: means with intervals, differences between two settings, and verdicts in words.

All intervals use Student's t distribution. They assume that the values, or the differences of pairs, are roughly normal.

Runs with different seeds on the same data are independent, so a plain t test is valid. The training sets of folds, or of
random splits of the same data, overlap. Their results are correlated, and a plain t test has too many false positives.
Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52, 2003
(https://doi.org/10.1023/A:1024068626366), replace the variance of the mean, s^2 / J for J splits, by s^2 (1 / J + test size
/ training size). Bouckaert and Frank, PAKDD 2004 (https://doi.org/10.1007/978-3-540-24775-3_3), use the same formula for
repeated cross-validation. The functions take this ratio as `test_to_train`: 1 / (k - 1) for k folds.

This module imports neither torch nor numpy. It needs scipy, which the extra [study] installs.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import combinations
from statistics import fmean, stdev
from typing import TypeAlias

from engine.contracts import ConfigError

LEVEL = 0.95  # confidence level of an interval
POWER = 0.8  # probability that the needed number of runs detects the difference
SMALLEST_POINTS = 0.005  # half a percentage point: the difference that `verdict` looks for
SMALLEST_FRACTION = 0.05  # the same for metrics in their own unit, as a fraction of the first mean
MAX_COUNT = 10_000  # largest number of runs that `needed_count` returns
ROUNDING = 1e-6  # metrics have 32 bits: smaller relative differences are rounding errors

# the value of a metric for each pair (split of the data, seed)
Values: TypeAlias = Mapping[tuple[Hashable, Hashable], float]


@dataclass(frozen=True)
class Summary:
    """The values of a metric in several runs.

    Attributes:
        mean: Their mean.
        std: Their sample standard deviation; None for a single value, or if a value is not finite.
        low: Lower end of the interval of the mean; None if `std` is None, and in a report if all values are equal.
        high: Upper end of the interval; None if `low` is None.
        count: Number of values.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        """``mean ± standard deviation (count)``, with two significant digits of the standard deviation."""
        if self.std is None:
            return f"{self.mean:.4g} ({self.count})"
        digits = max(0, 1 - math.floor(math.log10(self.std))) if 0 < self.std < math.inf else 4
        return f"{self.mean:.{digits}f} ± {self.std:.{digits}f} ({self.count})"


@dataclass(frozen=True)
class Difference:
    """The mean difference between two settings: the second minus the first.

    Attributes:
        mean: The difference.
        first_mean: Mean of the first setting.
        std: Standard deviation of the difference of a pair; of two single runs if the runs are not paired.
        standard_error: Standard error of `mean`; 0 if the values do not vary, so that there is no interval.
        degrees: Degrees of freedom of the t distribution.
        counts: Number of pairs; number of values of each setting if the runs are not paired.
        test_to_train: Size of the test set relative to the training set if the values are from several splits, or 0.
        level: Confidence level of the interval.
    """

    mean: float
    first_mean: float
    std: float
    standard_error: float
    degrees: float
    counts: tuple[int, ...]
    test_to_train: float = 0.0
    level: float = LEVEL

    @property
    def is_paired(self) -> bool:
        return len(self.counts) == 1

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the difference; None if the values do not vary."""
        if not self.standard_error:
            return None
        half = _quantile(self.degrees, (1 + self.level) / 2) * self.standard_error
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float | None:
        """The two-sided p value of the hypothesis that there is no difference; None if the values do not vary.

        It is the p value of a single comparison: it does not depend on `level`, nor on the number of pairs.
        """
        if not self.standard_error:
            return None
        check_scipy()
        from scipy.special import stdtr

        return 2 * float(stdtr(self.degrees, -abs(self.mean) / self.standard_error))

    @property
    def is_visible(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def within_range(found: Summary, largest: float) -> Summary:
    """Return a summary whose interval does not exceed the range of its metric, 0 to `largest`.

    The interval of few values can exceed it.
    """
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(found.low, 0.0), high=min(found.high, largest))


def summary(values: Sequence[float], test_to_train: float = 0.0, level: float = LEVEL) -> Summary:
    """Return mean, standard deviation and interval of the mean of at least one value.

    Args:
        values: One value per run, or per split if there are several splits.
        test_to_train: Test size / training size if the values are from several splits of the same data.
        level: Confidence level of the interval.
    """
    mean, count = fmean(values), len(values)
    if count == 1 or not math.isfinite(mean):
        return Summary(mean, None, None, None, count)
    std = stdev(values)
    half = _quantile(count - 1, (1 + level) / 2) * std * math.sqrt(1 / count + test_to_train)
    return Summary(mean, std, mean - half, mean + half, count)


def mean_of_splits(values: Values) -> Values:
    """Return the mean of each split over its seeds, because runs of the same split share their samples."""
    splits: dict[Hashable, list[float]] = {}
    for (split, _), value in values.items():
        splits.setdefault(split, []).append(value)
    return {(split, None): fmean(found) for split, found in splits.items()}


def paired_difference(first: Sequence[float], second: Sequence[float], test_to_train: float = 0.0) -> Difference:
    """Return the difference of two settings that were run with the same seeds or splits: a paired t test.

    Pairs have a smaller spread than single runs, because an easy split or a lucky seed helps both settings.

    Args:
        first: Values of the first setting, at least two.
        second: Values of the second setting, in the same order of seeds or splits.
        test_to_train: Test size / training size if the values are from several splits of the same data: the corrected
            resampled t test. 0 for seeds on the same data.
    """
    _check_values(first, second)
    differences = [b - a for a, b in zip(first, second, strict=True)]
    std = _spread(differences, first, second)
    count = len(differences)
    error = std * math.sqrt(1 / count + test_to_train)
    return Difference(fmean(differences), fmean(first), std, error, count - 1, (count,), test_to_train)


def unpaired_difference(first: Sequence[float], second: Sequence[float], test_to_train: float = 0.0) -> Difference:
    """Return the difference of two settings without common seeds: Welch's t test, which allows unequal variances.

    Args:
        first: Values of the first setting, at least two.
        second: Values of the second setting, at least two.
        test_to_train: As for `paired_difference`. Values of two settings on the same data are positively correlated. This is
            ignored, so the interval is rather too wide than too narrow.
    """
    _check_values(first, second)
    stds = _spread(first, first, second), _spread(second, first, second)
    variances = [std**2 * (1 / len(values) + test_to_train) for std, values in zip(stds, (first, second), strict=True)]
    total, counts = sum(variances), (len(first), len(second))
    terms = [variance**2 / (count - 1) for variance, count in zip(variances, counts, strict=True)]
    degrees = total**2 / sum(terms) if total else float(min(counts) - 1)
    mean = fmean(second) - fmean(first)
    return Difference(mean, fmean(first), math.hypot(*stds), math.sqrt(total), degrees, counts, test_to_train)


def difference(first: Values, second: Values, test_to_train: float = 0.0) -> Difference:
    """Return the difference of two settings: paired if both have the same splits and seeds, otherwise unpaired.

    If there are several splits (`test_to_train` is not 0), the values of a split are averaged over its seeds first. Runs of
    the same split share their training and test samples, so more seeds are not more splits.
    """
    is_paired = first.keys() == second.keys()
    if test_to_train:
        first, second = mean_of_splits(first), mean_of_splits(second)
    if is_paired:
        return paired_difference([*first.values()], [second[key] for key in first], test_to_train)
    return unpaired_difference([*first.values()], [*second.values()], test_to_train)


def pairwise_differences(
    settings: Mapping[str, Values], test_to_train: float = 0.0
) -> dict[tuple[str, str], Difference]:
    """Return the difference of every pair of settings, with intervals that are corrected for the number of pairs.

    All pairs are compared, not only the pairs with the best setting. The best of k equal settings is best by chance. A test
    that ignores this selection has too many false positives. Comparing all pairs needs no selection.

    The intervals follow Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6,
    1979. Of m pairs, the pair with the smallest p value gets an interval of the level 1 - 0.05 / m, the next pair an
    interval of the level 1 - 0.05 / (m - 1), and so on, until an interval contains 0. All other pairs get the level of that
    interval. With a probability of at least 95 %, no interval of two equal settings excludes 0.
    """
    pairs = {
        (first, second): difference(settings[first], settings[second], test_to_train)
        for first, second in combinations(settings, 2)
    }
    levels = holm_levels([found.p_value for found in pairs.values()])
    return {pair: replace(found, level=level) for (pair, found), level in zip(pairs.items(), levels, strict=True)}


def holm_levels(p_values: Sequence[float | None], level: float = LEVEL) -> list[float]:
    """Return the confidence level of each interval, see `pairwise_differences`. None is a test without a result."""
    numbers = [1.0 if p_value is None else p_value for p_value in p_values]
    levels, remaining = [level] * len(numbers), len(numbers)
    for i in sorted(range(len(numbers)), key=numbers.__getitem__):
        levels[i] = 1 - (1 - level) / remaining
        remaining -= numbers[i] < 1 - levels[i]
    return levels


def needed_count(found: Difference, size: float, power: float = POWER) -> int | None:
    """Return the number of pairs, or of runs of each setting, that shows a difference of `size` with probability `power`.

    The usual formula is n = ((t1 + t2) std / size)^2. The quantiles t1 and t2 of Student's t distribution depend on n, too.
    For several splits, 1 / n + `test_to_train` replaces 1 / n, so that even many splits may not be enough.

    Returns:
        At least 2; None if more than 10,000 are needed.
    """

    def is_enough(count: int) -> bool:
        degrees = len(found.counts) * (count - 1)
        quantiles = _quantile(degrees, (1 + found.level) / 2) + _quantile(degrees, power)
        return quantiles * found.std * math.sqrt(1 / count + found.test_to_train) <= size

    if not is_enough(MAX_COUNT):
        return None
    low, high = 1, MAX_COUNT  # `low` is not enough, `high` is enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def verdict(
    found: Difference, is_minimized: bool, first: str = "A", second: str = "B", unit: str = "seeds",
    size: float | None = None,
) -> str:  # fmt: skip
    """Return a sentence: the better setting and the size of the difference, or the number of runs that is needed.

    The needed number of runs is computed for a fixed difference (`size`), not for the observed difference. A power analysis
    with the observed difference is misleading: it asks for more runs whenever the result is not significant (Hoenig and
    Heisey, The Abuse of Power, The American Statistician 55, 2001).

    Args:
        found: The difference.
        is_minimized: Whether lower values of the metric are better.
        first: Name of the first setting.
        second: Name of the second setting.
        unit: What was counted: seeds, folds, splits or runs.
        size: Smallest difference that matters, in the unit of the metric; None for half a percentage point, or 5 % of the
            first mean if the metric has its own unit.
    """
    in_points = uses_points(found, is_minimized)
    better = second if (found.mean > 0) != is_minimized else first
    if found.interval is None:
        if abs(found.mean) <= ROUNDING * abs(found.first_mean):
            return "no difference: the values are equal"
        amount = _amount([abs(found.mean)], in_points)
        where = "every pair" if found.is_paired else "all runs"
        return f"{better} is better by {amount} in {where}, so there is no interval"
    if found.is_visible:
        return f"{better} is better by {_amount(sorted(map(abs, found.interval)), in_points)}"
    if size is None:
        size = SMALLEST_POINTS if in_points else SMALLEST_FRACTION * abs(found.first_mean)
    count, target = needed_count(found, size), f"a difference of {_amount([size], in_points)}"
    start = f"no significant difference with {' and '.join(map(str, found.counts))} {unit}"
    if count is not None and count <= min(found.counts):
        return f"{start}; {target} would be detected with a probability of at least {100 * POWER:.0f} %"
    if count is None and found.test_to_train:
        return f"{start}; detecting {target} needs more data"
    number = f"more than {MAX_COUNT:,}" if count is None else f"about {count:,}"
    return f"{start}; detecting {target} needs {number} {unit}{'' if found.is_paired else ' in each group'}"


def format_interval(found: Difference, is_minimized: bool) -> str:
    """Return the interval of a difference as text, such as ``-0.12 to +0.91 points``; empty if it is unknown."""
    return "" if found.interval is None else _amount(found.interval, uses_points(found, is_minimized), "+")


def uses_points(found: Difference, is_minimized: bool) -> bool:
    """Return whether differences are given in percentage points: for metrics from 0 to 1 whose higher values are better."""
    means = found.first_mean, found.first_mean + found.mean
    return not is_minimized and all(0 <= mean <= 1 for mean in means)


def check_scipy() -> None:
    """Raise a ConfigError if scipy is not installed."""
    if find_spec("scipy") is None:
        hint = "run: pip install -e '.[study]' -c constraints.txt"
        raise ConfigError("", "", "the statistics of runs need the package scipy", hint)


def _amount(values: Sequence[float], in_points: bool, sign: str = "") -> str:
    """Return a number with two significant digits, or the two ends of an interval with two digits of its width."""
    numbers = [value * 100 for value in values] if in_points else list(values)
    size = abs(numbers[-1] - numbers[0]) if len(numbers) > 1 else abs(numbers[0])
    digits = 1 - math.floor(math.log10(size)) if size else 0
    if len(numbers) == 1:
        text = f"{round(numbers[0], digits):g}"
    else:
        smallest = min(map(abs, numbers))  # 0.004 to 0.5 is not 0.00 to 0.50, because the interval excludes 0
        digits = max(0, digits, -math.floor(math.log10(smallest)) if smallest else 0)
        text = " to ".join(f"{number:{sign}.{digits}f}" for number in numbers)
    return f"{text} points" if in_points else text


def _check_values(*groups: Sequence[float]) -> None:
    for values in groups:
        if len(values) < 2:
            raise ValueError(f"at least two values are needed, but there are {len(values)}")
        if not all(map(math.isfinite, values)):
            raise ValueError("a value is not finite")


def _spread(values: Sequence[float], *groups: Sequence[float]) -> float:
    """Return the standard deviation of `values`, or 0 if they only differ by the rounding errors of the values in `groups`.

    On a small test set of N samples, the accuracy is a multiple of 1 / N, so all differences are sometimes equal. Their
    standard deviation is then 0, and a t test would call any difference significant.
    """
    found = stdev(values)
    return 0.0 if found <= ROUNDING * max(abs(value) for group in groups for value in group) else found


def _quantile(degrees: float, probability: float) -> float:
    """Return a quantile of Student's t distribution."""
    check_scipy()
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
