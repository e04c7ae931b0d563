"""The pictures of a study, and its page in TensorBoard.

For a search: parallel coordinates (Inselberg, The Plane with Parallel Coordinates, The Visual Computer 1, 1985) and, for
each hyperparameter, the metric against its values. Otherwise: for each metric, a box plot for each setting, or points if
there are few runs.

A diverged trial would compress the rest of the axis of a metric. Therefore values that are more than `FENCE` interquartile
ranges worse than the quartiles are drawn at the end of the axis, if this shortens the axis by more than half.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.drawing import (
    BLACK,
    BLUE,
    CARD_WIDTH,
    GREY,
    ORANGE,
    PALE,
    TEXT_SIZE,
    VERMILION,
    WHITE,
    Canvas,
    Colour,
    blend,
    replace_undrawable,
    shorten,
    text_width,
)
from engine.studies.analysis import Analysis, format_value
from engine.studies.report import report
from engine.studies.results import Choices, Range, Space, StudyResult
from engine.terminal import count_of

# N trials, H height, W width; lengths are in pixels

FOLDER = "study"  # subfolder of the event file
WORST, BEST = (198, 219, 239), (8, 48, 107)  # from ColorBrewer's "Blues" (colour-blind safe)
SMALL = TEXT_SIZE - 1
MAX_TICKS = 5
MIN_BOX = 5  # values of a setting with a box; fewer values are only points
MAX_SETTINGS = 25  # most settings in a picture
FENCE = 5.0  # interquartile ranges; Tukey (Exploratory Data Analysis, 1977) calls values beyond 3 "far out"
JITTER = 3  # horizontal offset between trials with equal values
RADIUS = 3
LEFT, RIGHT = 14, CARD_WIDTH - 14  # ends of the axes of parallel coordinates and box plots
AXIS_GAP = 62  # distance between parallel axes
SETTING_HEIGHT = 40
LINE_HEIGHT = 17  # height of a line of text below a diagram
SLICE_HEIGHT, SLICE_LEFT, SLICE_TOP, SLICE_BOTTOM = 230, 52, 44, 186


def draw_pictures(study: StudyResult) -> dict[str, np.ndarray]:
    """Return the pictures (H, W, 3) of a study by their tags in TensorBoard. Those without any result are left out."""
    analysis = Analysis(study)
    if not study.is_search:
        drawn = [metric for metric in analysis.metrics if any(analysis.values(each, metric) for each in study.settings)]
        return {f"settings/{metric}": draw_settings(analysis, metric) for metric in drawn}
    if not analysis.ranked:
        return {}
    slices = {f"slices/{key}": draw_slice(analysis, key) for key in study.vary}
    return {"search/parallel_coordinates": draw_parallel_coordinates(analysis), **slices}


def write_tensorboard(study: StudyResult, folder: Path) -> None:
    """Write the pictures and the report of a study to ``FOLDER/study/``, in place of an earlier event file."""
    from torch.utils.tensorboard import SummaryWriter

    target = folder / FOLDER
    for path in target.glob("events.out.tfevents.*"):
        path.unlink()
    with SummaryWriter(str(target)) as writer:
        writer.add_text("study", report(study).markdown)
        for tag, picture in draw_pictures(study).items():
            writer.add_image(tag, picture, dataformats="HWC")


def draw_parallel_coordinates(analysis: Analysis) -> np.ndarray:
    """Draw a search (H, W, 3): a horizontal axis for each hyperparameter and, below them, for the metric.

    Each line is a trial, and its colour is its rank. Trials without a result are grey and do not reach the last axis.
    """
    study, metric = analysis.study, analysis.metric
    metrics = _metrics(analysis)
    axes = {key: _Axis(space, LEFT, RIGHT) for key, space in study.vary.items()}
    last = _metric_axis(list(metrics.values()), study.is_minimized, LEFT, RIGHT)
    tops = [40 + AXIS_GAP * i for i in range(len(axes) + 1)]
    canvas = Canvas(CARD_WIDTH, tops[-1] + 50 + LINE_HEIGHT * bool(_count_outside(metrics.values(), last)))
    ranked = [trial for trial in analysis.ranked[::-1] if trial.number in metrics]  # the best trial is drawn last
    others = [trial for trial in study.settings if trial.number not in metrics]
    for place, trial in enumerate([*others, *ranked]):
        points = [(axes[key].place(trial.values.get(key)), top) for key, top in zip(axes, tops, strict=False)]
        if trial.number in metrics:
            points.append((last.place(metrics[trial.number]), tops[-1]))
        is_best = trial is analysis.ranked[0]
        fraction = (place - len(others)) / max(1, len(ranked) - 1)
        colour = VERMILION if is_best else blend(WORST, BEST, fraction) if trial.number in metrics else PALE
        known = [(x, y) for x, y in points if x is not None]
        canvas.pen.line(known, colour, 3 if is_best else 1, joint="curve")
    for (key, axis), top in zip([*axes.items(), (metric, last)], tops, strict=True):
        canvas.pen.line((LEFT, top, RIGHT, top), BLACK)
        canvas.write(LEFT, top - 18, shorten(_drawable(key), RIGHT - LEFT), halo=3)
        for x, text in axis.ticks():  # beside the tick, because lines meet there
            canvas.pen.line((x, top, x, top + 4), BLACK)
            is_at_end = x + 4 + text_width(text, SMALL) > CARD_WIDTH
            canvas.write(x + (-4 if is_at_end else 4), top + 4, text, GREY, SMALL, "ra" if is_at_end else "la", halo=2)
    end = "; grey: no result" if others else ""
    canvas.write(CARD_WIDTH / 2, tops[-1] + 28, f"red: best trial; darker blue: better{end}", GREY, anchor="ma")
    _write_outliers(canvas, tops[-1] + 28 + LINE_HEIGHT, metrics.values(), last)
    return canvas.to_array()


def draw_slice(analysis: Analysis, key: str) -> np.ndarray:
    """Draw the metric against a hyperparameter (H, W, 3). Marks at the bottom are trials without a result."""
    study, metrics = analysis.study, _metrics(analysis)
    across = _Axis(study.vary[key], SLICE_LEFT + 12, CARD_WIDTH - 22)
    up = _metric_axis(list(metrics.values()), study.is_minimized, SLICE_BOTTOM - 8, SLICE_TOP + 8)
    canvas = Canvas(CARD_WIDTH, SLICE_HEIGHT + LINE_HEIGHT * bool(_count_outside(metrics.values(), up)))
    found = analysis.importances.get(key)
    share = (
        "its effect may be chance" if found is None or not found.is_visible else f"explains {100 * found.share:.0f} %"
    )
    note = f" ({share})" if found is not None else ""
    width = CARD_WIDTH - 12 - text_width(note)
    canvas.write(CARD_WIDTH / 2, 6, shorten(_drawable(key), width) + note, anchor="ma")
    canvas.write(6, 25, shorten(analysis.metric, CARD_WIDTH - 12), GREY, SMALL)
    for y, text in up.ticks():
        canvas.pen.line((SLICE_LEFT, y, CARD_WIDTH - 10, y), PALE)
        canvas.write(SLICE_LEFT - 5, y, text, GREY, SMALL, anchor="rm")
    for x, text in across.ticks():
        canvas.pen.line((x, SLICE_BOTTOM, x, SLICE_BOTTOM + 3), GREY)
        canvas.write(x, SLICE_BOTTOM + 5, text, GREY, SMALL, anchor="ma")
    canvas.pen.rectangle((SLICE_LEFT, SLICE_TOP, CARD_WIDTH - 10, SLICE_BOTTOM), outline=GREY)
    is_stepped = isinstance(across.space, Choices) or across.space.is_int
    for trial in [*study.settings, analysis.ranked[0]]:  # the best trial is drawn last
        place = across.place(trial.values.get(key))
        if place is None:
            continue
        x = place + JITTER * (trial.number % 5 - 2) * is_stepped
        if trial.number in metrics:
            colour = VERMILION if trial is analysis.ranked[0] else BLUE
            _draw_point(canvas, x, up.place(metrics[trial.number]) or 0.0, colour)
        else:
            canvas.pen.line((x, SLICE_BOTTOM - 6, x, SLICE_BOTTOM), GREY)
    has_others = any(trial.number not in metrics for trial in study.settings)
    text = "red: best trial" + ("; grey marks: no result" if has_others else "")
    canvas.write(CARD_WIDTH / 2, SLICE_BOTTOM + 24, text, GREY, anchor="ma")
    _write_outliers(canvas, SLICE_BOTTOM + 24 + LINE_HEIGHT, metrics.values(), up)
    return canvas.to_array()


def draw_settings(analysis: Analysis, metric: str) -> np.ndarray:
    """Draw a metric in the runs of each setting (H, W, 3): a box for five or more runs, and a point for each run."""
    settings = [*analysis.ranked, *(each for each in analysis.study.settings if each not in analysis.ranked)]
    drawn = settings[:MAX_SETTINGS]
    values = [np.array([*analysis.values(setting, metric).values()]) for setting in drawn]
    names = replace_undrawable([setting.label for setting in drawn])
    numbers = np.concatenate(values).tolist()
    axis = _metric_axis(numbers, analysis.study.is_lower_better(metric), LEFT, RIGHT)
    top, bottom = 26, 26 + SETTING_HEIGHT * len(drawn)
    canvas = Canvas(CARD_WIDTH, bottom + 46 + LINE_HEIGHT * bool(_count_outside(numbers, axis)))
    title = metric if len(drawn) == len(settings) else f"{metric}: the best {len(drawn)} of {len(settings)} settings"
    canvas.write(CARD_WIDTH / 2, 6, title, anchor="ma")
    for x, text in axis.ticks():
        canvas.pen.line((x, top, x, bottom), PALE)
        canvas.write(x, bottom + 4, text, GREY, SMALL, anchor="ma")
    canvas.pen.line((LEFT, bottom, RIGHT, bottom), GREY)
    for i, (name, found) in enumerate(zip(names, values, strict=True)):
        y = top + SETTING_HEIGHT * i + 27
        canvas.write(LEFT, y - 24, shorten(name, RIGHT - LEFT), halo=2)
        if len(found):
            _draw_box(canvas, axis, y, found)
        else:
            canvas.write(LEFT, y, "no result", GREY, SMALL, anchor="lm")
    canvas.write(CARD_WIDTH / 2, bottom + 24, "a point is a run; orange: mean", GREY, anchor="ma")
    _write_outliers(canvas, bottom + 24 + LINE_HEIGHT, numbers, axis)
    return canvas.to_array()


class _Axis:
    """An axis for the values of a hyperparameter or a metric.

    Args:
        space: The values.
        start: Place of the smallest value, or of the first choice.
        end: Place of the largest value, or of the last choice.
    """

    def __init__(self, space: Space, start: float, end: float) -> None:
        self.space, self.start, self.end = space, start, end
        self.choices = {repr(value): i for i, value in enumerate(space.values)} if isinstance(space, Choices) else {}

    def place(self, value: Any) -> float | None:
        """Return the place of a value in pixels; None if it does not belong to the axis."""
        if isinstance(self.space, Choices):
            if repr(value) not in self.choices:
                return None
            fraction = (self.choices[repr(value)] + 0.5) / len(self.choices)
        else:
            if not isinstance(value, int | float) or not math.isfinite(value) or (self.space.is_log and value <= 0):
                return None
            low, high = self._scale(self.space.low), self._scale(self.space.high)
            fraction = (self._scale(value) - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * min(max(fraction, 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Return place and text of each tick."""
        if isinstance(self.space, Choices):
            room = abs(self.end - self.start) / len(self.choices) - 4
            texts = replace_undrawable([format_value(value) for value in self.space.values])
            return [
                (self.place(value) or 0.0, shorten(text, room, SMALL))
                for value, text in zip(self.space.values, texts, strict=True)
            ]
        numbers = log_ticks(self.space) if self.space.is_log else linear_ticks(self.space)
        return [(self.place(number) or 0.0, f"{number:.6g}") for number in numbers]

    def _scale(self, value: float) -> float:
        return math.log(value) if isinstance(self.space, Range) and self.space.is_log else value


def linear_ticks(space: Range) -> list[float]:
    """Return at most five round numbers in a range, with steps of 1, 2 or 5 times a power of ten."""
    width = space.high - space.low
    if width <= 0:
        return [space.low]
    power = 10.0 ** math.floor(math.log10(width / MAX_TICKS))
    steps = [factor * power for factor in (1, 2, 5, 10, 20) if not space.is_int or factor * power >= 1]
    for step in steps:
        first, last = math.ceil(space.low / step - 1e-9), math.floor(space.high / step + 1e-9)
        if last - first < MAX_TICKS:
            break
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(space: Range) -> list[float]:
    """Return at most five round numbers in a positive range: powers of ten or, if there are few, 1, 2 and 5 times them."""
    low, high = math.log10(space.low) - 1e-9, math.log10(space.high) + 1e-9
    powers = range(math.ceil(low), math.floor(high) + 1)
    if len(powers) > 2:
        return [10.0**power for power in powers[:: -(-len(powers) // MAX_TICKS)]]
    numbers = [factor * 10.0**power for power in range(math.floor(low), math.floor(high) + 1) for factor in (1, 2, 5)]
    inside = [float(f"{number:.12g}") for number in numbers if low <= math.log10(number) <= high]
    return inside[:: -(-len(inside) // MAX_TICKS)] if inside else [space.low]


def metric_range(values: Sequence[float], is_minimized: bool) -> Range:
    """Return the range that an axis shows, with a margin.

    Values that are much worse than the others are outside, if they would take more than half of the axis.
    """
    low, quarter, most, high = map(float, np.quantile(values, [0, 0.25, 0.75, 1]))
    reach = FENCE * (most - quarter)
    if is_minimized:
        high = most + reach if 0 < most + reach - low < (high - low) / 2 else high
    else:
        low = quarter - reach if 0 < high - quarter + reach < (high - low) / 2 else low
    margin = 0.04 * (high - low)
    return Range(low - margin, high + margin)


def _metric_axis(values: Sequence[float], is_minimized: bool, start: float, end: float) -> _Axis:
    return _Axis(metric_range(values, is_minimized), start, end)


def _metrics(analysis: Analysis) -> dict[int, float]:
    """Return the metric of each finished trial, by its number."""
    found = {trial.number: analysis.summary(trial, analysis.metric) for trial in analysis.ranked}
    return {number: summary.mean for number, summary in found.items() if summary is not None}


def _draw_box(canvas: Canvas, axis: _Axis, y: float, values: np.ndarray) -> None:
    """Draw quartiles, whiskers, points and the mean of at least one value. Whiskers end at most 1.5 boxes away."""
    if len(values) >= MIN_BOX:
        quarter, middle, most = np.quantile(values, [0.25, 0.5, 0.75])
        reach = 1.5 * (most - quarter)
        inside = values[(values >= quarter - reach) & (values <= most + reach)]
        low, left, median, right, high = (
            axis.place(float(value)) or 0.0 for value in (inside.min(), quarter, middle, most, inside.max())
        )
        canvas.pen.line((low, y, high, y), GREY)
        for end in (low, high):
            canvas.pen.line((end, y - 4, end, y + 4), GREY)
        canvas.pen.rectangle((left, y - 8, right, y + 8), fill=WORST, outline=GREY)
        canvas.pen.line((median, y - 8, median, y + 8), BLACK)
    for value in values:
        _draw_point(canvas, axis.place(float(value)) or 0.0, y, BLUE, RADIUS - 1 if len(values) >= MIN_BOX else RADIUS)
    mean = axis.place(float(values.mean())) or 0.0
    canvas.pen.line((mean, y - 9, mean, y + 9), ORANGE, 3)


def _draw_point(canvas: Canvas, x: float, y: float, colour: Colour, radius: int = RADIUS) -> None:
    x, y = round(x), round(y)
    canvas.pen.ellipse((x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1), fill=WHITE)
    canvas.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _count_outside(values: Iterable[float], axis: _Axis) -> int:
    assert isinstance(axis.space, Range)
    return sum(not axis.space.low <= value <= axis.space.high for value in values)


def _write_outliers(canvas: Canvas, y: float, values: Iterable[float], axis: _Axis) -> None:
    if outside := _count_outside(values, axis):
        text = f"{count_of(outside, 'much worse value')} at the end of the axis"
        canvas.write(CARD_WIDTH / 2, y, text, GREY, anchor="ma")


def _drawable(name: str) -> str:
    return replace_undrawable([name])[0]
