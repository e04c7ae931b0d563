"""The statistics of many runs: values of scipy, simulations with a known truth, and the sentences of a verdict."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from engine.config.signatures import PROJECT
from engine.contracts import ConfigError, is_lower_better
from engine.studies import statistics
from engine.studies.statistics import (
    Difference,
    difference,
    format_interval,
    holm_levels,
    needed_count,
    paired_difference,
    pairwise_differences,
    summary,
    unpaired_difference,
    verdict,
)

FIRST = [0.910, 0.920, 0.930, 0.915, 0.900]
SECOND = [0.912, 0.925, 0.933, 0.921, 0.908]
UNEQUAL = [0.85, 0.95, 0.90, 0.80, 0.99, 0.93, 0.91]


def at_most(rate: float, count: int) -> float:
    """A bound that a frequency exceeds with a probability of 0.1 % if its true value is `rate`: 3 standard errors above."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / count)


def by_seed(values) -> dict:
    return {(None, seed): float(value) for seed, value in enumerate(values)}


def test_a_summary_agrees_with_scipy():
    found = summary(FIRST)
    assert (found.mean, found.std, found.count) == pytest.approx((np.mean(FIRST), np.std(FIRST, ddof=1), 5))
    low, high = stats.t.interval(0.95, 4, loc=np.mean(FIRST), scale=stats.sem(FIRST))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert str(found) == "0.915 ± 0.011 (5)"


def test_a_single_value_and_a_value_that_is_not_finite_have_no_interval():
    assert summary([0.5]) == statistics.Summary(0.5, None, None, None, 1)
    assert str(summary([0.5])) == "0.5 (1)"
    assert [str(summary([value, 1.0])) for value in (math.nan, math.inf)] == ["nan (2)", "inf (2)"]


def test_a_paired_difference_agrees_with_scipy():
    found, expected = paired_difference(FIRST, SECOND), stats.ttest_rel(SECOND, FIRST)
    assert found.mean == pytest.approx(np.mean(SECOND) - np.mean(FIRST))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.p_value, found.degrees) == pytest.approx((expected.pvalue, 4))
    assert found.counts == (5,)


@pytest.mark.parametrize("second", [SECOND, UNEQUAL])
def test_an_unpaired_difference_agrees_with_scipy(second):
    found, expected = unpaired_difference(FIRST, second), stats.ttest_ind(second, FIRST, equal_var=False)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.p_value, found.degrees) == pytest.approx((expected.pvalue, expected.df))
    assert found.counts == (5, len(second))


def test_a_correction_for_splits_widens_the_interval():
    """The variance of the mean of J splits is s^2 (1 / J + test size / training size)."""
    for function in (paired_difference, unpaired_difference):
        plain, corrected = function(FIRST, SECOND), function(FIRST, SECOND, 1 / 4)
        assert corrected.standard_error / plain.standard_error == pytest.approx(math.sqrt((1 / 5 + 1 / 4) * 5))
    plain, corrected = summary(FIRST), summary(FIRST, 1 / 4)
    assert (corrected.high - corrected.low) / (plain.high - plain.low) == pytest.approx(1.5)


def test_seeds_are_averaged_within_a_split():
    first = {(split, seed): FIRST[split] + seed * 0.01 for split in range(5) for seed in range(2)}
    second = {(split, seed): SECOND[split] + seed * 0.01 for seed in range(2) for split in range(5)}  # another order
    assert difference(first, second, 1 / 4).interval == pytest.approx(paired_difference(FIRST, SECOND, 1 / 4).interval)
    assert difference(first, second).counts == (10,)


def test_settings_without_common_seeds_are_not_paired():
    assert difference(by_seed(FIRST), by_seed(SECOND)).is_paired
    others = {(None, seed + 1): value for (_, seed), value in by_seed(SECOND).items()}
    assert difference(by_seed(FIRST), others).interval == pytest.approx(unpaired_difference(FIRST, SECOND).interval)


@pytest.mark.parametrize("function", [paired_difference, unpaired_difference])
@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [([1.0], [2.0], "at least two values"), ([1.0, math.nan], [1.0, 2.0], "not finite")],
)
def test_values_without_a_difference(function, first, second, problem):
    with pytest.raises(ValueError, match=problem):
        function(first, second)


def test_values_that_do_not_vary_have_no_interval():
    """A t test would be certain of this difference. Accuracies on 30 samples are multiples of 1/30, rounded to 32 bits."""
    first = [float(np.float32(n / 30)) for n in (27, 28, 29)]
    second = [float(np.float32(n / 30)) for n in (28, 29, 30)]
    found = paired_difference(first, second)
    assert found.interval is found.p_value is None
    assert not found.is_visible
    assert verdict(found, is_minimized=False) == "B is better by 3.3 points in every pair, so there is no interval"
    assert format_interval(found, is_minimized=False) == ""
    assert verdict(paired_difference(first, first), is_minimized=False) == "no difference: the values are equal"
    unpaired = unpaired_difference([0.5, 0.5], [0.75, 0.75])
    assert unpaired.interval is None
    assert verdict(unpaired, is_minimized=False) == "B is better by 25 points in all runs, so there is no interval"


# Simulations with a known truth


@pytest.mark.parametrize("count", [3, 5, 20])
def test_intervals_contain_the_true_value_in_95_percent_of_studies(count):
    random, num_studies = np.random.default_rng(count), 4000
    seeds = random.normal(size=(num_studies, count, 1))  # the effect of a seed on both settings
    values = random.normal([0.0, 0.3], [1.0, 1.5], (num_studies, count, 2)) + 2 * seeds
    alone = random.normal(0.3, 1.5, (num_studies, 2 * count))  # another number of runs with other seeds
    hits = np.zeros(3)
    for both, others in zip(values.tolist(), alone.tolist(), strict=True):
        first, second = zip(*both, strict=True)
        one = summary(second)
        intervals = [paired_difference(first, second).interval, unpaired_difference(others, second).interval]
        intervals.append((one.low, one.high))
        hits += [low < truth < high for (low, high), truth in zip(intervals, (0.3, 0.0, 0.3), strict=True)]
    assert ((hits / num_studies > 0.93) & (hits / num_studies < 0.97)).all(), hits / num_studies


def test_equal_settings_are_called_different_in_5_percent_of_studies():
    random, num_studies = np.random.default_rng(0), 4000
    values = random.normal(0.9, 0.01, (num_studies, 5, 2)) + random.normal(0, 0.02, (num_studies, 5, 1))
    found = [paired_difference(both[:, 0].tolist(), both[:, 1].tolist()) for both in values]
    rate = np.mean([" better " in verdict(each, is_minimized=False) for each in found])
    assert 0.05 - (at_most(0.05, num_studies) - 0.05) < rate < at_most(0.05, num_studies)


@pytest.mark.parametrize("num_better", [0, 1])
def test_a_family_of_equal_settings_has_a_false_verdict_in_at_most_5_percent_of_studies(num_better):
    """Six settings, all equal or with one that is much better than the others, which are equal."""
    random, num_studies, names = np.random.default_rng(num_better), 1000, "ABCDEF"
    values = random.normal(size=(num_studies, 5, 6)) + random.normal(size=(num_studies, 5, 1))
    values[:, :, :num_better] += 100
    equal = [*combinations(names[num_better:], 2)]
    errors = found_better = plain = best = 0
    for study in values:
        settings = {name: by_seed(study[:, i]) for i, name in enumerate(names)}
        found = pairwise_differences(settings)
        errors += any(found[pair].is_visible for pair in equal)
        found_better += sum(found[pair].is_visible for pair in found if pair not in equal)
        plain += any(replace(found[pair], level=0.95).is_visible for pair in equal)
        ranked = sorted(names[num_better:], key=lambda name: -sum(settings[name].values()))
        best += difference(settings[ranked[0]], settings[ranked[-1]]).is_visible
    assert errors / num_studies < at_most(0.05, num_studies)
    assert found_better == num_better * 5 * num_studies
    assert min(plain, best) / num_studies > 0.15  # without the correction, or for the best setting against the worst


def fold_accuracies(num_folds: int, num_repeats: int, num_studies: int) -> np.ndarray:
    """Accuracies (folds, studies, 2) of two equally good classifiers, in repeated stratified cross-validation.

    In each study the data are 100 samples of two classes. The features of both classifiers are different, but have the same
    distribution. A classifier chooses the class with the nearer mean.
    """
    random, size = np.random.default_rng(num_folds), 100
    labels = np.tile([0, 1], size // 2)
    inputs = random.normal(size=(num_studies, size, 2, 3)) + 0.5 * labels[:, None, None]
    accuracies = []
    for _ in range(num_repeats):
        order = np.stack([random.permutation(np.flatnonzero(labels == label)) for label in (0, 1)], 1).ravel()
        for test in np.split(order, num_folds):
            means = [inputs[:, np.setdiff1d(np.flatnonzero(labels == label), test)].mean(1) for label in (0, 1)]
            distances = [
                ((inputs[:, test] - mean[:, None]) ** 2).sum(-1) for mean in means
            ]  # (studies, test samples, 2)
            accuracies.append(((distances[1] < distances[0]) == labels[test][:, None]).mean(1))
    return np.stack(accuracies)


@pytest.mark.parametrize(("num_folds", "num_repeats"), [(5, 1), (10, 1), (5, 3), (10, 3)])
def test_equal_classifiers_are_called_different_in_at_most_5_percent_of_cross_validations(num_folds, num_repeats):
    accuracies, num_studies = fold_accuracies(num_folds, num_repeats, 1000), 1000
    errors = np.zeros(2)
    for study in accuracies.transpose(1, 2, 0).tolist():
        first, second = ({(fold, 0): value for fold, value in enumerate(values)} for values in study)
        errors += [difference(first, second, ratio).is_visible for ratio in (0.0, 1 / (num_folds - 1))]
    plain, corrected = errors / num_studies
    assert 0 < corrected < at_most(0.05, num_studies)
    assert plain > (0.2 if num_repeats > 1 else 1.5 * corrected)  # the plain t test


@pytest.mark.parametrize(("size", "is_paired", "count"), [(0.5, True, 34), (1.0, True, 10), (0.8, False, 26)])
def test_the_needed_number_of_runs(size, is_paired, count):
    """Values of G*Power 3.1 for a two-sided t test with a power of 80 %, and the frequency in a simulation."""
    std, counts = (1.0, (5,)) if is_paired else (math.sqrt(2), (5, 5))
    assert needed_count(Difference(0.0, 0.0, std, 1.0, 4, counts), size) == count
    random, function = np.random.default_rng(count), paired_difference if is_paired else unpaired_difference
    values = random.normal([0.0, size], math.sqrt(0.5) if is_paired else 1.0, (1000, count, 2))
    rate = np.mean([function(both[:, 0].tolist(), both[:, 1].tolist()).is_visible for both in values])
    assert 0.76 < rate < 0.84


def test_splits_of_the_same_data_may_never_be_enough():
    found = Difference(0.0, 0.9, 0.02, 0.01, 4, (5,), test_to_train=1 / 4)
    assert needed_count(found, 0.005) is None
    assert needed_count(found, 0.05) == 5
    assert verdict(found, is_minimized=False, unit="folds") == (
        "no significant difference with 5 folds; detecting a difference of 0.5 points needs more data"
    )


def test_levels_of_holm():
    """Of 0.01, 0.04, 0.03 and 0.005, the two smallest are below 0.05 / 3 and 0.05 / 4. The next, 0.03, is above 0.05 / 2."""
    assert holm_levels([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [1 - 0.05 / 3, 1 - 0.05 / 2, 1 - 0.05 / 2, 1 - 0.05 / 4]
    )
    assert holm_levels([None, 0.04]) == pytest.approx([0.975, 0.975])
    assert holm_levels([None, 0.01]) == pytest.approx([0.95, 0.975])


# The sentences


@pytest.mark.parametrize(
    ("metric", "first", "second", "sentence"),
    [
        ("test/accuracy", FIRST, SECOND, "mlp is better by 0.18 to 0.78 points"),
        ("test/accuracy", SECOND, FIRST, "cnn is better by 0.18 to 0.78 points"),
        ("test/loss", FIRST, SECOND, "cnn is better by 0.0018 to 0.0078"),
        ("test/calibration_error", SECOND, FIRST, "mlp is better by 0.0018 to 0.0078"),
        ("val/score", [10.0, 12.0, 11.0], [20.0, 23.0, 21.0], "mlp is better by 8.9 to 11.8"),
        ("train_seconds", [100.0, 105.0, 110.0], [900.0, 935.0, 890.0], "cnn is better by 741 to 866"),
        (
            "test/accuracy", FIRST, [0.92, 0.915, 0.935, 0.91, 0.91],
            "no significant difference with 5 seeds; detecting a difference of 0.5 points needs about 21 seeds",
        ),
        (
            "test/loss", FIRST, [0.92, 0.915, 0.935, 0.91, 0.91],
            "no significant difference with 5 seeds; "
            "a difference of 0.046 would be detected with a probability of at least 80 %",
        ),
    ],
)  # fmt: skip
def test_a_verdict_on_pairs(metric, first, second, sentence):
    assert verdict(paired_difference(first, second), is_lower_better(metric), "cnn", "mlp") == sentence


def test_a_verdict_without_pairs():
    found = unpaired_difference(FIRST, UNEQUAL)
    start = "no significant difference with 5 and 7 runs"
    assert verdict(found, is_minimized=False, unit="runs") == (
        f"{start}; detecting a difference of 0.5 points needs about 1,295 runs in each group"
    )
    assert verdict(found, is_minimized=False, unit="runs", size=1e-6) == (
        f"{start}; detecting a difference of 0.0001 points needs more than 10,000 runs in each group"
    )


def test_an_end_near_0_is_not_rounded_to_0():
    found = Difference(0.02501, 0.5, 0.1, 0.025 / stats.t.ppf(0.975, 4), 4, (5,))
    assert verdict(found, is_minimized=False) == "B is better by 0.0010 to 5.0010 points"
    assert format_interval(found, is_minimized=False) == "+0.0010 to +5.0010 points"


def test_scipy_is_named_with_its_extra_if_it_is_missing(monkeypatch):
    monkeypatch.setattr(statistics, "find_spec", lambda name: None)
    message = r"the statistics of runs need the package scipy; run: pip install -e '\.\[study\]' -c constraints.txt"
    with pytest.raises(ConfigError, match=message):
        summary(FIRST)


def test_the_import_needs_neither_torch_nor_numpy():
    code = "import sys, engine.studies.groups; print(*{'torch', 'numpy', 'scipy'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True, timeout=300) == "\n"
