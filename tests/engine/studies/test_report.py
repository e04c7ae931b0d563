"""The report of a study: exact sentences, and studies without results."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from engine.studies.importance import importances
from engine.studies.rendering import WIDTH
from engine.studies.report import report
from engine.studies.results import Choices, Range, SettingResult, StudyResult
from engine.studies.statistics import pairwise_differences
from tests.engine.studies.made_up import FOLDER, SPACE, draw, make_grid, make_run, make_search, make_setting

SEEDS = make_grid({0.01: [0.91, 0.92, 0.93, 0.90, 0.94], 0.1: [0.96, 0.97, 0.98, 0.96, 0.98]})
NAN = float("nan")
BEST = "The best value of optimizer.lr"
LARGER = "close to the upper end of its range. Try a range with larger values."
SMALLER = "close to the lower end of its range. Try a range with smaller values."


def section(study: StudyResult, title: str) -> list[str]:
    """The lines of a part of the text, without their indentation."""
    parts = report(study).text.strip().split("\n\n")
    (found,) = (part.split("\n")[1:] for part in parts if part.split("\n")[0] == title)
    return [line.removeprefix("  ") for line in found]


def sentences(study: StudyResult, title: str) -> str:
    return " ".join(section(study, title))


def with_states(study: StudyResult, *states: str, reason: str = "") -> StudyResult:
    """The study with other states of its first runs."""
    runs = [run for setting in study.settings for run in setting.runs]
    changed = {
        run.name: replace(run, state=state, metrics={} if state != "finished" else run.metrics, reason=reason)
        for run, state in zip(runs, states, strict=False)
    }
    settings = [replace(each, runs=[changed.get(run.name, run) for run in each.runs]) for each in study.settings]
    return replace(study, settings=settings)


def trials(lr: list[float], accuracies: list[float], space=SPACE["optimizer.lr"]) -> StudyResult:
    """A search for a learning rate."""
    settings = [
        make_setting(i, {"optimizer.lr": value}, [accuracy], "val/accuracy")
        for i, (value, accuracy) in enumerate(zip(lr, accuracies, strict=True))
    ]
    return StudyResult(FOLDER, settings, {"optimizer.lr": space}, "val/accuracy", True, None)


def test_seeds_of_two_settings():
    assert report(SEEDS).text == (
        "Study 20260101-120000\n"
        "  2 settings x 5 seeds: 10 runs, compared by test/accuracy.\n"
        "  Runs: 10 finished.\n"
        "\n"
        "test/accuracy\n"
        "  lr=0.1 has the best mean, and it is significantly better than the other setting.\n"
        "  setting  runs  mean   std    95 % interval\n"
        "  lr=0.1   5     0.970  0.010  0.958 to 0.982\n"
        "  lr=0.01  5     0.920  0.016  0.900 to 0.940\n"
        "\n"
        "Differences of test/accuracy\n"
        "  first, second    second minus first   verdict\n"
        "  lr=0.01, lr=0.1  +4.1 to +5.9 points  lr=0.1 is better by 4.1 to 5.9 points\n"
        "\n"
        "How to read this\n"
        "  Mean, standard deviation (std) and interval are over the seeds, with the same split of the data. They do not\n"
        "  include the variation between different splits of the data.\n"
        "  A paired t test compares two settings on the seeds that are finished in both.\n"
    )
    low, high = stats.ttest_rel([0.96, 0.97, 0.98, 0.96, 0.98], [0.91, 0.92, 0.93, 0.90, 0.94]).confidence_interval()
    assert report(SEEDS).data["differences"][0]["interval"] == pytest.approx([low, high])


def test_markdown_has_tables():
    lines = report(SEEDS).markdown.split("\n")
    assert lines[0] == "# Study 20260101-120000"
    assert lines[lines.index("## test/accuracy") + 4 :][:3] == [
        "| setting | runs | mean | std | 95 % interval |",
        "| --- | --- | --- | --- | --- |",
        "| lr=0.1 | 5 | 0.970 | 0.010 | 0.958 to 0.982 |",
    ]


def test_a_table_in_markdown_survives_any_value():
    text = report(make_grid({"a|b\n*c*": [0.9, 0.91], "x": [0.8, 0.82]})).markdown
    assert "| lr=a\\|b \\*c\\* | 2 |" in text


def test_two_settings_with_seeds_and_folds():
    generator = np.random.default_rng(0)
    first = generator.normal(0.9, 0.02, (5, 3))
    second = first + 0.01 + generator.normal(0, 0.001, (5, 3))
    study = make_grid({0.1: first, 0.3: second}, num_folds=3)
    found = report(study)
    assert "  2 settings x 5 seeds x 3 folds: 30 runs, compared by test/accuracy.\n" in found.text
    assert sentences(study, "How to read this") == (
        "Mean, standard deviation (std) and interval are over the folds. The values of all seeds of a fold are "
        "averaged first. The training sets of the folds overlap, so the intervals are corrected (Nadeau and Bengio, 2003). "
        "A paired t test compares two settings on the seeds and folds that are finished in both."
    )
    folds = first.mean(0)
    half = stats.t.ppf(0.975, 2) * folds.std(ddof=1) * np.sqrt(1 / 3 + 1 / 2)  # 1 / (k - 1) for k = 3 folds
    summary = found.data["settings"][0]["metrics"]["test/accuracy"]
    assert (summary["low"], summary["high"]) == pytest.approx((folds.mean() - half, folds.mean() + half))
    values = {
        name: {(fold, seed): values[seed, fold] for seed in range(5) for fold in range(3)}
        for name, values in (("a", first), ("b", second))
    }
    expected = pairwise_differences(values, 1 / 2)["a", "b"]
    assert found.data["differences"][0]["interval"] == pytest.approx(expected.interval)
    assert "in favor of" not in found.text


def test_folds_of_the_validation_set_chose_the_epoch():
    study = make_grid({0.1: np.array([[0.9, 0.91, 0.95]])}, num_folds=3, metric="val/accuracy")
    assert sentences(study, "How to read this").endswith(
        "corrected (Nadeau and Bengio, 2003). "
        "The best epoch was chosen on the samples that val/accuracy is measured on, so the values are slightly optimistic. "
        "If the dataset has an official test set, these samples are the held-out fold."
    )


def test_seeds_with_their_own_splits_get_wider_intervals(tmp_path):
    """The Iris configs set split_seed to the seed."""
    runs = []
    for seed, accuracy in enumerate([0.9, 0.92, 0.94]):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "config.yaml").write_text(f"seed: {seed}\ndata: {{test_fraction: 0.2, split_seed: {seed}}}\n")
        runs.append(replace(make_run(str(seed), seed, test__accuracy=accuracy), folder=folder))
    study = StudyResult(FOLDER, [SettingResult(0, {}, runs)], {}, "test/accuracy", False, None)
    half = stats.t.ppf(0.975, 2) * 0.02 * np.sqrt(1 / 3 + 0.2 / 0.8)
    found = report(study).data["settings"][0]["metrics"]["test/accuracy"]
    assert (found["low"], found["high"]) == pytest.approx((0.92 - half, 0.92 + half))
    assert sentences(study, "How to read this").startswith(
        "Each seed uses its own split of the data (data.split_seed). The training sets of these splits overlap, so the "
        "intervals are corrected (Nadeau and Bengio, 2003)."
    )


def test_one_setting_shows_all_main_metrics():
    runs = [
        make_run(str(seed), seed, test__accuracy=value, test__loss=1 - value, val__f1=value, other=1.0)
        for seed, value in enumerate([0.90, 0.92, 0.94])
    ]
    study = StudyResult(FOLDER, [SettingResult(0, {}, runs)], {}, "test/accuracy", False, None)
    assert section(study, "Result") == [
        "metric         mean   std    95 % interval   runs",
        "test/accuracy  0.920  0.020  0.870 to 0.970  3",
        "test/loss      0.080  0.020  0.030 to 0.130  3",
        "val/f1         0.920  0.020  0.870 to 0.970  3",
    ]


def test_several_settings_show_other_metrics_after_the_main_metric():
    settings = [
        SettingResult(
            number,
            {"optimizer.lr": number},
            [make_run(f"{number}-{seed}", seed, test__accuracy=0.9, val__loss=0.2 + 0.1 * seed) for seed in (0, 1)],
        )
        for number in (0, 1)
    ]
    study = StudyResult(FOLDER, settings, {"optimizer.lr": Choices((0, 1))}, "test/accuracy", False, None)
    assert section(study, "Mean ± standard deviation") == [
        "setting  val/loss",
        "lr=0     0.250 ± 0.071",
        "lr=1     0.250 ± 0.071",
    ]
    assert "## val/loss\n" in report(study).markdown


def test_many_pairs_show_the_best_setting_first():
    generator = np.random.default_rng(0)
    study = make_grid({value: generator.normal(0.9, 0.01, 4) + 0.05 * (value == 3) for value in range(8)})
    rows = section(study, "Differences of test/accuracy")
    pairs = [row.split("  ")[0] for row in rows if row.startswith("lr=")]
    assert len(pairs) == 15
    assert all("lr=3" in pair.split(", ") for pair in pairs[:7])
    assert not any("lr=3" in pair.split(", ") for pair in pairs[7:])
    assert rows[-1] == "13 more rows are in study.md and study.json."
    assert len(report(study).data["differences"]) == 28
    assert report(study).markdown.count("\n| lr=") == 28 + 8
    assert sentences(study, "How to read this").endswith(
        "The intervals of the differences are corrected for all 28 pairs (Holm, 1979), including pairs that are not shown."
    )


def test_intervals_follow_holm_over_all_pairs():
    generator = np.random.default_rng(0)
    values = {value: generator.normal(0.9 + value / 100, 0.01, 5) for value in range(4)}
    named = {value: {(None, seed): float(each) for seed, each in enumerate(found)} for value, found in values.items()}
    expected = pairwise_differences(named)
    for found in report(make_grid(values)).data["differences"]:
        assert found["interval"] == pytest.approx(expected[found["first"], found["second"]].interval)


def test_settings_with_long_names_are_called_by_their_numbers():
    study = make_grid({"a" * 30: [0.9, 0.91, 0.92], "b" * 30: [0.8, 0.81, 0.83]})
    assert section(study, "test/accuracy")[2:] == [
        "setting 0  3     0.910  0.010  0.885 to 0.935  lr=" + "a" * 30,
        "setting 1  3     0.813  0.015  0.775 to 0.851  lr=" + "b" * 30,
    ]
    assert section(study, "Differences of test/accuracy")[1].startswith("setting 0, setting 1  ")


def test_names_are_unique():
    study = make_grid({0.100001: [0.9, 0.91], 0.100002: [0.8, 0.81]})
    assert [row.split("  ")[0] for row in section(study, "test/accuracy")[2:]] == ["setting 0", "setting 1"]


def test_a_failed_run_is_left_out_of_its_pairs():
    study = with_states(SEEDS, "failed", reason="CUDA out\nof memory")
    assert section(study, "Failed runs") == [
        "runs  where            reason",
        "1     lr=0.01, seed 0  CUDA out of memory",
    ]
    assert "lr=0.01  4 of 5" in report(study).text
    expected = stats.ttest_rel([0.97, 0.98, 0.96, 0.98], [0.92, 0.93, 0.90, 0.94]).confidence_interval()
    assert report(study).data["differences"][0]["interval"] == pytest.approx([*expected])


def test_equal_reasons_share_a_row():
    study = with_states(make_grid({1: [0.9] * 5}), *["failed"] * 4, reason="no memory")
    assert section(study, "Failed runs")[1] == (
        "4     all runs, seed 0; all runs, seed 1; all runs, seed 2; and 1 more  no memory"
    ).replace("all runs", "lr=1")


@pytest.mark.parametrize("state", ["failed", "waiting", "running", "stopped", "pruned"])
def test_a_study_without_a_finished_run(state):
    for study in (SEEDS, make_grid({1: [0.9] * 3}), trials([0.01] * 5, [0.9] * 5)):
        found = report(with_states(study, *[state] * 10))
        assert "nan" not in found.text
        assert found.data["best"] is None
        assert ("The study is not complete." in found.text) == (state in ("waiting", "running", "stopped"))
    assert sentences(with_states(SEEDS, *[state] * 10), "test/accuracy").startswith(
        "No finished run has test/accuracy."
    )
    assert section(with_states(trials([0.01], [0.9]), state), "Best trials") == ["No finished trial has val/accuracy."]


def test_an_unfinished_study_says_what_is_missing():
    study = with_states(SEEDS, "finished", "failed", "stopped", "running", "waiting", "waiting")
    assert section(study, "Study 20260101-120000") == [
        "2 settings x 5 seeds: 10 runs, compared by test/accuracy.",
        "Runs: 5 finished, 1 failed, 1 interrupted, 1 running, 2 not started.",
        "The study is not complete. The figures below are from the finished runs.",
    ]
    assert section(study, "test/accuracy")[:2] == [
        "Settings cannot be compared: no two settings have 2 finished seeds in common.",
        "setting  runs    mean    std     95 % interval",
    ]


def test_nothing_is_claimed_from_single_runs():
    study = make_grid({0.1: [0.9], 0.2: [0.95], 0.3: [0.99]})
    assert section(study, "test/accuracy")[0] == (
        "Settings cannot be compared: no two settings have 2 finished seeds in common."
    )
    assert "best" not in report(study).text
    assert "better" not in report(study).text
    single = make_grid({0.1: [0.9]})
    assert section(single, "Result of lr=0.1") == [
        "A standard deviation needs at least two runs. Train with several seeds.",
        "metric         mean    runs",
        "test/accuracy  0.9000  1",
    ]


def test_a_best_setting_that_cannot_be_compared():
    states = ["finished", *["failed"] * 4]
    study = with_states(make_grid({0.1: [0.99] * 5, 0.2: [0.90, 0.91, 0.92, 0.93, 0.94], 0.3: [0.8] * 5}), *states)
    assert sentences(study, "test/accuracy").startswith(
        "lr=0.1 has the best mean, but it cannot be compared: it has fewer than 2 finished seeds in common with each other "
        "setting. setting"
    )
    verdicts = [pair["verdict"] for pair in report(study).data["differences"]]
    assert verdicts[:2] == ["unknown: fewer than 2 seeds are finished in both settings"] * 2
    assert verdicts[2].startswith("lr=0.2 is better")


def test_seeds_of_a_single_fold_are_not_enough():
    study = make_grid({0.1: np.full((3, 2), 0.9), 0.2: np.full((3, 2), 0.8)}, num_folds=2)
    runs = [run for setting in study.settings for run in setting.runs]
    states = ["failed" if run in study.settings[0].runs and run.fold == 1 else "finished" for run in runs]
    (pair,) = report(with_states(study, *states)).data["differences"]
    assert pair["verdict"] == "unknown: fewer than 2 folds are finished in both settings"


def test_values_that_are_not_finite_do_not_count():
    study = make_grid({0.1: [0.9, NAN, 0.92], 0.2: [0.8, 0.81, float("inf")]})
    found = report(study)
    assert section(study, "Runs without a result") == [
        "2 finished runs have no finite test/accuracy and are left out: lr=0.1, seed 1; lr=0.2, seed 2."
    ]
    assert [row.split()[1:4] for row in section(study, "test/accuracy")[2:]] == [["2", "of", "3"]] * 2
    assert found.data["settings"][0]["runs"][1]["metrics"]["test/accuracy"] is None
    json.dumps(found.data, allow_nan=False)


def test_equal_values_have_no_interval():
    study = make_grid({0.1: [0.9] * 5, 0.2: [0.9] * 5})
    assert section(study, "test/accuracy") == [
        "lr=0.1 has the best mean, but it is not significantly better than any other setting.",
        "setting  runs  mean    std",
        "lr=0.1   5     0.9000  0.0000",
        "lr=0.2   5     0.9000  0.0000",
    ]
    assert section(study, "Differences of test/accuracy")[1] == "lr=0.1, lr=0.2  no difference: the values are equal"


@pytest.mark.parametrize(("metric", "best"), [("test/loss", 0.1), ("test/accuracy", 0.2)])
def test_the_best_setting_depends_on_the_metric(metric, best):
    study = make_grid({0.1: [0.3, 0.31, 0.32], 0.2: [0.5, 0.51, 0.53]}, metric=metric)
    sentence = f"lr={best} has the best mean, and it is significantly better than the other setting."
    assert section(study, metric)[0] == sentence
    assert report(study).data["best"] == [0.1, 0.2].index(best)


# a search


def test_the_best_trials_of_a_search():
    study = make_search(40, keys=2)
    rows = section(study, "Best trials")
    assert rows[0].split() == ["trial", "val/accuracy", "values"]
    results = {
        each.number: each.runs[0].metrics["val/accuracy"] for each in study.settings if each.runs[0].state == "finished"
    }
    best = sorted(results, key=results.__getitem__)[::-1][:5]
    assert [int(row.split()[0]) for row in rows[1:]] == best
    assert section(study, "Study 20260101-120000") == [
        "A search for the highest val/accuracy: 40 trials.",
        "Trials: 32 finished, 6 pruned, 2 failed.",
    ]
    assert section(study, "Failed runs")[1] == "2     trial 8; trial 26  training diverged: the loss is not finite"


def confirmed(study: StudyResult, number: int, val: list[float], states=("finished",) * 9) -> StudyResult:
    trial = study.settings[number]
    runs = [
        make_run(f"new-{i}", 100 + i, state=state, **({"val__accuracy": v, "test__accuracy": v - 0.01} if v else {}))
        for i, (v, state) in enumerate(zip(val, states, strict=False))
    ]
    return replace(study, confirmation=replace(trial, runs=runs))


def test_the_best_trial_is_too_optimistic():
    study = trials([0.001, 0.01, 0.02], [0.95, 0.981, 0.97])
    title = "Result with new seeds"
    start = "The best of 3 trials has val/accuracy 0.9810. This value is biased, because it is the best of many trials."
    assert sentences(study, title) == f"{start} The setting has not been trained with new seeds yet."
    found = sentences(confirmed(study, 1, [0.974, 0.976, 0.978]), title)
    assert found.startswith(
        f"{start} With 3 new seeds, the same setting has val/accuracy 0.9760 ± 0.0020 and test/accuracy 0.9660 ± 0.0020."
    )
    found = sentences(confirmed(study, 2, [0.974, 0.976, 0.978]), title)
    assert " An earlier best setting, trial 2, has val/accuracy 0.9760 ± 0.0020 and test/accuracy " in found
    assert " with 3 new seeds." in found


def test_an_unfinished_confirmation():
    study = trials([0.001, 0.01], [0.95, 0.981])
    states = ["finished", "waiting", "failed"]
    found = sentences(confirmed(study, 1, [0.97, 0, 0], states), "Result with new seeds")
    assert "With 1 new seed, the same setting has val/accuracy 0.9700 and test/accuracy 0.9600." in found
    assert "2 of 3 runs with new seeds are not finished." in found
    found = sentences(confirmed(study, 1, [0, 0, 0], ["waiting"] * 3), "Result with new seeds")
    assert "With" not in found
    assert "3 of 3 runs with new seeds are not finished." in found


@pytest.mark.parametrize(
    ("lr", "space", "sentence"),
    [
        (0.098, Range(1e-4, 0.1, True), f"{BEST}, 0.098, is {LARGER}"),
        (0.00013, Range(1e-4, 0.1, True), f"{BEST}, 0.00013, is {SMALLER}"),
        (0.001, Range(1e-4, 0.1, True), None),
        (0.07, Range(1e-4, 0.1, True), None),  # within 5 % of the logarithmic range would be 0.0708
        (0.07, Range(1e-4, 0.1), None),
        (0.096, Range(1e-4, 0.1), f"{BEST}, 0.096, is {LARGER}"),
        (4, Range(1, 4, is_int=True), f"{BEST}, 4, is {LARGER}"),
        (3, Range(1, 4, is_int=True), None),
        (0.01, Range(0, 0.5), f"{BEST}, 0.01, is close to the lower end of its range."),
        (0.1, Range(0.1, 0.1), None),
        (3, Choices((1, 2, 3)), None),
    ],
)  # fmt: skip
def test_the_best_value_at_the_edge_of_its_range(lr, space, sentence):
    study = trials([0.1 if space == Range(0.1, 0.1) else 2, lr], [0.9, 0.95], space)
    title = "trial  val/accuracy  values"
    assert sentences(study, "Best trials").startswith(f"{sentence} {title}" if sentence else title)


def test_an_edge_without_a_visible_effect_is_not_to_be_extended():
    generator = np.random.default_rng(0)
    lr = np.exp(generator.uniform(np.log(1e-4), np.log(0.08), 20))
    study = trials([*map(float, lr), 0.099], [*map(float, generator.normal(0.9, 0.01, 20)), 0.95])
    assert sentences(study, "Best trials").startswith(
        f"{BEST}, 0.099, is close to the upper end of its range, but the effect of optimizer.lr may be chance. trial"
    )


def test_importance_needs_ten_finished_trials():
    title = "Importance of the hyperparameters"
    study = trials([0.001 * (i + 1) for i in range(9)], [0.9 + i / 100 for i in range(9)])
    assert section(study, title) == ["The importance needs at least 10 finished trials. This search has 9."]
    assert report(study).data["importances"] == {}
    study = trials([0.001 * (i + 1) for i in range(10)], [0.9 + i / 100 for i in range(10)])
    assert section(study, title) == [
        "Fraction of the variance of the ranks of 10 finished trials that each hyperparameter alone explains",
        "(adjusted R^2):",
        "hyperparameter  fraction",
        "optimizer.lr    100 %",
    ]
    problem = (
        "The importance cannot be computed: the values or the results do not vary, or there are too many choices for the "
        "number of trials."
    )
    study = trials([0.001 * (i + 1) for i in range(10)], [0.9] * 10)
    assert sentences(study, title) == problem
    many = trials([i % 6 for i in range(10)], [0.9 + i / 100 for i in range(10)], Choices(tuple(range(6))))
    assert sentences(many, title) == problem


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("key", ["optimizer.lr", "model.dropout", "model.num_layers", "optimizer.name"])
def test_the_hyperparameter_that_matters_is_found(key, seed):
    generator = np.random.default_rng(seed)
    drawn = [{name: draw(space, generator) for name, space in SPACE.items()} for _ in range(30)]
    effect = {
        "optimizer.lr": lambda value: -np.square(np.log10(value) + 2.5),
        "model.dropout": lambda value: 3 * value,
        "model.num_layers": lambda value: 0.5 * value,
        "optimizer.name": lambda value: 1.5 * (value == "adamw"),
    }[key]
    metric = [effect(values[key]) + generator.normal(0, 0.15) for values in drawn]
    metric[0] = -1e6  # a diverged trial
    found = importances(drawn, metric, SPACE)
    assert next(iter(found)) == key
    assert found[key].is_visible
    assert found[key].share > 0.4


def test_importance_by_chance_is_rarely_visible():
    num_visible = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        drawn = [{name: draw(space, generator) for name, space in SPACE.items()} for _ in range(15)]
        found = importances(drawn, generator.normal(size=15).tolist(), SPACE)
        num_visible += any(each.is_visible for each in found.values())
    assert num_visible <= 5 + 3 * np.sqrt(100 * 0.05 * 0.95)


def test_importance_with_many_choices_or_one_value():
    space = {"many": Choices(tuple(range(12))), "one": Choices((1, 2)), "list": Choices(([1], [2]))}
    drawn = [{"many": i, "one": 1, "list": [1 + i % 2]} for i in range(12)]
    assert [*importances(drawn, [float(i % 2) for i in range(12)], space)] == ["list"]


def test_lines_fit_the_terminal():
    generator = np.random.default_rng(0)
    studies = [make_search(n, keys) for n in (1, 5, 12, 40) for keys in range(1, 9)]
    studies += [make_grid({f"{'long ' * n}{i}": generator.normal(0.9, 0.02, 4) for i in range(12)}) for n in range(9)]
    for study in studies:
        assert max(map(len, report(study).text.split("\n"))) <= WIDTH


def test_control_characters_are_escaped():
    study = replace(with_states(SEEDS, "failed", reason="\x1b[31mred"), folder=FOLDER / "\x1b[31mred")
    assert "\x1b" not in report(study).text
    assert "\x1b" not in report(study).markdown


def test_data_is_plain():
    study = confirmed(make_search(40, keys=8), 0, [0.97, NAN, 0.96])
    data = json.loads(json.dumps(report(study).data, allow_nan=False))
    assert data == report(study).data
    assert data["confirmation"]["metrics"]["val/accuracy"]["count"] == 2
    assert data["settings"][0]["values"]["model.hidden_sizes"] == [64, 64]
    assert data["states"] == {"finished": 32, "pruned": 6, "failed": 2}


def test_a_study_without_settings():
    study = StudyResult(FOLDER, [], {}, "val/accuracy", True, None)
    assert section(study, "Study 20260101-120000") == [
        "A search for the highest val/accuracy: 0 trials.",
        "Trials: none.",
    ]


# an own metric, whose name does not tell whether lower values are better


def test_run_mode_decides_which_setting_is_better():
    study = make_grid({0.1: [0.3, 0.31, 0.32], 0.2: [0.5, 0.51, 0.53]}, metric="val/own")
    for mode, best in (("min", 0.1), ("max", 0.2), (None, 0.2)):
        found = replace(study, mode=mode)
        sentence = f"lr={best} has the best mean, and it is significantly better than the other setting."
        assert section(found, "val/own")[0] == sentence
        assert report(found).data["best"] == [0.1, 0.2].index(best)
        (row,) = section(found, "Differences of val/own")[1:]
        assert f"lr={best} is better by " in row
        assert ("points" in row) == (mode != "min")


def test_run_mode_decides_which_trial_is_best():
    study = trials([0.001, 0.01], [0.95, 0.981])
    for mode, best, goal in (("min", 0, "lowest"), ("max", 1, "highest")):
        found = replace(study, mode=mode)
        assert section(found, "Study 20260101-120000")[0] == f"A search for the {goal} val/accuracy: 2 trials."
        assert report(found).data["best"] == best
