"""The report of a study: tables and sentences for the terminal and for Markdown, and plain values for JSON.

It gives means with 95 % intervals, differences between all pairs of settings, and the result of a search. It claims nothing
from a single run. A run counts if it is finished and its metric is a finite number. `engine.studies.statistics` explains the
intervals.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.studies import statistics
from engine.studies.analysis import METRICS, Analysis, format_value, short_label
from engine.studies.importance import MIN_TRIALS
from engine.studies.rendering import Part, markdown_lines, text_lines
from engine.studies.results import Range, SettingResult, State, StudyResult
from engine.studies.statistics import Summary
from engine.terminal import count_of

MAX_PAIRS, MAX_SETTINGS, MAX_REASONS = 15, 20, 5  # most rows on the terminal
NUM_BEST = 5  # trials of a search in the table of the best
STATES: dict[State, str] = {
    "finished": "finished", "pruned": "pruned", "failed": "failed", "stopped": "interrupted", "running": "running",
    "waiting": "not started",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        text: For the terminal: lines of at most 110 characters, except for single long words.
        markdown: The content of ``study.md``.
        data: Plain values for ``study.json``. NaN and infinity are None.
    """

    text: str
    markdown: str
    data: dict[str, Any]


def report(study: StudyResult) -> Report:
    """Return the report of a study, which may be unfinished."""
    analysis = Analysis(study)
    parts = [part for part in _parts(analysis) if part.sentences or part.rows]
    text = "\n\n".join("\n".join(text_lines(part)) for part in parts if part.only != "markdown")
    markdown = "\n\n".join("\n".join(markdown_lines(part, i)) for i, part in enumerate(parts) if part.only != "text")
    return Report(f"{text}\n", f"{markdown}\n", _finite(_to_dict(analysis)))


def _parts(analysis: Analysis) -> Iterator[Part]:
    yield _overview(analysis)
    yield from _problems(analysis)
    if analysis.study.is_search:
        yield _best_trials(analysis)
        yield _importance(analysis)
        yield _confirmation(analysis)
    elif len(analysis.study.settings) == 1:
        yield _single_setting(analysis, analysis.study.settings[0])
    else:
        yield from _settings(analysis)
        yield _differences(analysis)
    yield Part("How to read this", [*_notes(analysis)])


def _overview(analysis: Analysis) -> Part:
    study, runs = analysis.study, analysis.runs
    if study.is_search:
        goal = "lowest" if study.is_minimized else "highest"
        start = f"A search for the {goal} {study.metric}: {count_of(len(runs), 'trial')}."
    else:
        seeds = count_of(len({run.seed for run in runs}), "seed")
        folds = f" x {count_of(study.num_folds, 'fold')}" if study.num_folds else ""
        settings = f"{count_of(len(study.settings), 'setting')} x " if len(study.settings) != 1 else ""
        start = f"{settings}{seeds}{folds}: {count_of(len(runs), 'run')}, compared by {study.metric}."
    counts = Counter(run.state for run in runs)
    numbers = [f"{counts[state]} {words}" for state, words in STATES.items() if counts[state]]
    sentences = [start, f"{'Trials' if study.is_search else 'Runs'}: {', '.join(numbers) or 'none'}."]
    if counts["waiting"] or counts["running"] or counts["stopped"]:
        sentences.append("The study is not complete. The figures below are from the finished runs.")
    return Part(f"Study {study.folder.name}", sentences)


def _problems(analysis: Analysis) -> Iterator[Part]:
    study = analysis.study
    places = [(analysis.names[setting.number], run) for setting in study.settings for run in setting.runs]
    if study.confirmation is not None:
        places += [("new seeds", run) for run in study.confirmation.runs]
    reasons: dict[str, list[str]] = {}
    without = []
    for name, run in places:
        fold = "" if run.fold is None else f", fold {run.fold}"
        where = name if name.startswith("trial ") else f"{name}, seed {run.seed}{fold}"
        if run.state == "failed":
            reasons.setdefault(" ".join(run.reason.split()) or "unknown", []).append(where)
        elif run.state == "finished" and run.value(study.metric) is None:
            without.append(where)
    rows = [[str(len(names)), _join(names), reason] for reason, names in reasons.items()]
    yield Part("Failed runs", (), ["runs", "where", "reason"], rows, MAX_REASONS)
    if without:
        words = ("has", "is") if len(without) == 1 else ("have", "are")
        problem = (
            f"{count_of(len(without), 'finished run')} {words[0]} no finite {study.metric} and {words[1]} left out"
        )
        yield Part("Runs without a result", [f"{problem}: {_join(without)}."])


def _single_setting(analysis: Analysis, setting: SettingResult) -> Part:
    rows = [
        [metric, *_figures(found), str(len(analysis.values(setting, metric)))]
        for metric in analysis.metrics
        if (found := analysis.summary(setting, metric)) is not None
    ]
    title = "Result" if setting.label == "all runs" else f"Result of {short_label(setting)}"
    return Part(title, [*_single_run(rows, 4)], ["metric", "mean", "std", "95 % interval", "runs"], rows)


def _settings(analysis: Analysis) -> Iterator[Part]:
    without = [setting for setting in analysis.study.settings if setting not in analysis.ranked]
    settings = [*analysis.ranked, *without]
    names = [analysis.names[setting.number] for setting in settings]
    labels = [short_label(setting) for setting in settings]
    has_labels = names != labels  # names are numbers
    stages: dict[str, list[str]] = {}
    for i, metric in enumerate(analysis.metrics):
        rows = []
        for setting, name, label in zip(settings, names, labels, strict=True):
            found, count = analysis.summary(setting, metric), len(analysis.values(setting, metric))
            runs = str(count) if count == len(setting.runs) else f"{count} of {len(setting.runs)}"
            rows.append([name, runs, *(["", "", ""] if found is None else _figures(found)), label][: 5 + has_labels])
        sentences = [] if i else [*_conclusion(analysis)]
        titles = ["setting", "runs", "mean", "std", "95 % interval", "values"][: 5 + has_labels]
        yield Part(metric, sentences, titles, rows, MAX_SETTINGS, "markdown" if i else "")
        if i:
            stages.setdefault(metric.partition("/")[0], []).append(metric)
    for metrics in stages.values():
        rows = [
            [name, *(_mean_and_std(analysis.summary(setting, metric)) for metric in metrics)]
            for setting, name in zip(settings, names, strict=True)
        ]
        yield Part("Mean ± standard deviation", (), ["setting", *metrics], rows, MAX_SETTINGS, "text")


def _conclusion(analysis: Analysis) -> Iterator[str]:
    """Yield a sentence about the setting with the best mean, if something can be said about it."""
    if not analysis.ranked:
        yield f"No finished run has {analysis.metric}."
        return
    best = analysis.ranked[0].number
    pairs = {pair: found for pair, found in analysis.differences.items() if best in pair}
    if not any(analysis.differences.values()):
        yield f"Settings cannot be compared: no two settings have 2 finished {analysis.repetitions} in common."
        return
    if not any(pairs.values()):
        yield (
            f"{analysis.names[best]} has the best mean, but it cannot be compared: it has fewer than 2 finished "
            f"{analysis.repetitions} in common with each other setting."
        )
        return
    visible = [pair for pair, found in pairs.items() if found is not None and found.is_visible]
    worse = [pair for pair in visible if _better(analysis, pair) == best]
    start = f"{analysis.names[best]} has the best mean"
    if not worse:
        yield f"{start}, but it is not significantly better than any other setting."
    elif len(worse) < len(pairs):
        yield f"{start}. It is significantly better than {len(worse)} of the {len(pairs)} other settings."
    else:
        yield f"{start}, and it is significantly better than {'the' if len(pairs) == 1 else 'every'} other setting."


def _better(analysis: Analysis, pair: tuple[int, int]) -> int:
    found = analysis.differences[pair]
    return pair[(found is not None and found.mean > 0) != analysis.study.is_minimized]


def _differences(analysis: Analysis) -> Part:
    if not any(analysis.differences.values()):
        return Part("Differences")
    places = {setting.number: place for place, setting in enumerate(analysis.ranked)}
    best, last = analysis.ranked[0].number, len(places)

    def order(pair: tuple[int, int]) -> tuple[bool, int, int]:
        first, second = sorted(places.get(number, last) for number in pair)
        return best not in pair, first, second

    rows = []
    for pair in sorted(analysis.differences, key=order):
        found = analysis.differences[pair]
        interval = "" if found is None else statistics.format_interval(found, analysis.study.is_minimized)
        names = [analysis.names[number] for number in pair]
        rows.append([", ".join(names), interval, analysis.verdict(pair)])
    titles = ["first, second", "second minus first", "verdict"]
    return Part(f"Differences of {analysis.metric}", (), titles, rows, MAX_PAIRS)


def _best_trials(analysis: Analysis) -> Part:
    if not analysis.ranked:
        return Part("Best trials", [f"No finished trial has {analysis.metric}."])
    rows = [
        [str(trial.number), _mean_and_std(analysis.summary(trial, analysis.metric)), _long_label(trial)]
        for trial in analysis.ranked[:NUM_BEST]
    ]
    return Part("Best trials", [*_edge_sentences(analysis)], ["trial", analysis.metric, "values"], rows)


def _edge_sentences(analysis: Analysis) -> Iterator[str]:
    for key, end in analysis.edges.items():
        space, importance = analysis.study.vary[key], analysis.importances.get(key)
        value = format_value(analysis.ranked[0].values[key])
        start = f"The best value of {key}, {value}, is close to the {end} end of its range"
        if importance is not None and not importance.is_visible:
            yield f"{start}, but the effect of {key} may be chance."
        elif end == "lower" and isinstance(space, Range) and space.low == 0:
            yield f"{start}."  # 0 is usually the smallest value that is allowed, as for dropout
        else:
            yield f"{start}. Try a range with {'larger' if end == 'upper' else 'smaller'} values."


def _importance(analysis: Analysis) -> Part:
    title, num_trials = "Importance of the hyperparameters", len(analysis.ranked)
    if num_trials < MIN_TRIALS:
        return Part(
            title, [f"The importance needs at least {MIN_TRIALS} finished trials. This search has {num_trials}."]
        )
    if not analysis.importances:
        problem = "the values or the results do not vary, or there are too many choices for the number of trials"
        return Part(title, [f"The importance cannot be computed: {problem}."])
    rows = [
        [key, f"{100 * found.share:.0f} %", "" if found.is_visible else "may be chance"]
        for key, found in analysis.importances.items()
    ]
    sentence = (
        f"Fraction of the variance of the ranks of {num_trials} finished trials that each hyperparameter alone explains "
        "(adjusted R^2):"
    )
    return Part(title, [sentence], ["hyperparameter", "fraction", ""], rows)


def _confirmation(analysis: Analysis) -> Part:
    title, study, metric = "Result with new seeds", analysis.study, analysis.metric
    if not analysis.ranked:
        return Part(title)
    best = analysis.ranked[0]
    value = analysis.summary(best, metric)
    assert value is not None
    is_best = study.confirmation is None or study.confirmation.values == best.values
    start = (
        f"The best of {count_of(len(analysis.runs), 'trial')} has {metric} {value.mean:#.4g}. This value is biased, "
        "because it is the best of many trials."
        if len(analysis.runs) > 1
        else f"The only trial has {metric} {value.mean:#.4g}."
    )
    if study.confirmation is None:
        return Part(title, [f"{start} The setting has not been trained with new seeds yet."])
    done = [run for run in study.confirmation.runs if run.state == "finished"]
    found = [
        f"{name} {_mean_and_std(summary)}"
        for name in dict.fromkeys((metric, f"test/{metric.partition('/')[2]}", "test/accuracy"))
        if (summary := analysis.summary(study.confirmation, name)) is not None
    ]
    seeds = count_of(len(done), "new seed")
    missing = len(study.confirmation.runs) - len(done)
    result = (
        f"With {seeds}, the same setting has {' and '.join(found)}."
        if is_best
        else f"An earlier best setting, trial {study.confirmation.number}, has {' and '.join(found)} with {seeds}."
    )
    sentences = [f"{start} {result}" if found else start]
    if missing:
        sentences.append(
            f"{missing} of {count_of(len(study.confirmation.runs), 'run')} with new seeds are not finished."
        )
    rows = [
        [name, *_figures(summary), str(len(analysis.values(study.confirmation, name)))]
        for name in dict.fromkeys((metric, *METRICS))
        if (summary := analysis.summary(study.confirmation, name)) is not None
    ]
    return Part(title, sentences, ["metric", "mean", "std", "95 % interval", "runs"], rows)


def _notes(analysis: Analysis) -> Iterator[str]:
    study, metric = analysis.study, analysis.metric
    setting = study.confirmation if study.is_search else None
    if study.is_search and setting is None:
        return
    if any(analysis.values(each, metric) for each in ([setting] if setting else study.settings)):
        correction = "overlap, so the intervals are corrected (Nadeau and Bengio, 2003)"
        ratio = analysis.test_to_train(metric, setting is not None)
        if ratio and study.num_folds and setting is None:
            yield (
                "Mean, standard deviation (std) and interval are over the folds. The values of all seeds of a fold are "
                f"averaged first. The training sets of the folds {correction}."
            )
        elif ratio:
            yield (
                "Each seed uses its own split of the data (data.split_seed). The training sets of these splits "
                f"{correction}."
            )
        else:
            yield (
                "Mean, standard deviation (std) and interval are over the seeds, with the same split of the data. They do "
                "not include the variation between different splits of the data."
            )
    if metric.startswith("val/"):
        fold = (
            " If the dataset has an official test set, these samples are the held-out fold." if study.num_folds else ""
        )
        yield (
            f"The best epoch was chosen on the samples that {metric} is measured on, so the values are slightly "
            f"optimistic.{fold}"
        )
    pairs = analysis.differences
    if any(pairs.values()):
        yield (
            "A paired t test compares two settings on the seeds and folds that are finished in both."
            if study.num_folds
            else "A paired t test compares two settings on the seeds that are finished in both."
        )
    if len(pairs) > 1 and any(pairs.values()):
        yield (
            f"The intervals of the differences are corrected for all {len(pairs)} pairs (Holm, 1979), including pairs that "
            "are not shown."
        )


def _single_run(rows: Sequence[Sequence[str]], count: int) -> Iterator[str]:
    if not rows:
        yield "No run has a result."
    elif all(row[count] == "1" for row in rows):
        yield "A standard deviation needs at least two runs. Train with several seeds."


def _join(places: Sequence[str]) -> str:
    """Return the first three places, separated by semicolons, and the number of the others."""
    others = f"; and {len(places) - 3} more" if len(places) > 3 else ""
    return "; ".join(places[:3]) + others


def _figures(found: Summary) -> list[str]:
    """Return mean, standard deviation and interval as texts with the same number of decimals."""
    if found.std is None:
        return [f"{found.mean:#.4g}", "", ""]
    mean, std = str(found).rpartition(" (")[0].split(" ± ")
    if found.low is None or found.high is None:
        return [mean, std, ""]
    digits = len(mean.partition(".")[2])
    return [mean, std, f"{found.low:.{digits}f} to {found.high:.{digits}f}"]


def _mean_and_std(found: Summary | None) -> str:
    return "" if found is None else " ± ".join(filter(None, _figures(found)[:2]))


def _long_label(setting: SettingResult) -> str:
    return " ".join(f"{key}={format_value(value)}" for key, value in setting.values.items()) or setting.label


def _to_dict(analysis: Analysis) -> dict[str, Any]:
    study = analysis.study
    pairs = [
        {"first": first, "second": second, "verdict": analysis.verdict((first, second))}
        | ({} if found is None else asdict(found) | {"interval": found.interval, "p_value": found.p_value})
        for (first, second), found in analysis.differences.items()
    ]
    return {
        "study": study.folder.name,
        "metric": study.metric,
        "is_search": study.is_search,
        "num_folds": study.num_folds,
        "vary": {key: asdict(space) for key, space in study.vary.items()},
        "states": dict(Counter(run.state for run in analysis.runs)),
        "settings": [_setting_to_dict(analysis, setting) for setting in study.settings],
        "best": analysis.ranked[0].number if analysis.ranked else None,
        "differences": pairs,
        "importances": {key: asdict(found) for key, found in analysis.importances.items()},
        "edges": analysis.edges,
        "confirmation": None if study.confirmation is None else _setting_to_dict(analysis, study.confirmation),
        "notes": [*_notes(analysis)],
    }


def _setting_to_dict(analysis: Analysis, setting: SettingResult) -> dict[str, Any]:
    metrics = dict.fromkeys((analysis.metric, *METRICS))
    summaries = {metric: found for metric in metrics if (found := analysis.summary(setting, metric)) is not None}
    return {
        "number": setting.number,
        "label": setting.label,
        "values": setting.values,
        "metrics": {metric: asdict(found) for metric, found in summaries.items()},
        "runs": [asdict(run) | {"folder": str(run.folder)} for run in setting.runs],
    }


def _finite(content: Any) -> Any:
    """Return plain values that strict JSON can have."""
    if isinstance(content, Mapping):
        return {str(name): _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content if content is None or isinstance(content, str | int | float) else str(content)
