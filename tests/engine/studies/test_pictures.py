"""The pictures of a study: where marks are drawn, cases that are hard to draw, and the page in TensorBoard."""

from dataclasses import replace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.drawing import BLUE, CARD_WIDTH, GREY, ORANGE, PALE, VERMILION, Colour
from engine.studies.pictures import (
    MAX_SETTINGS,
    WORST,
    draw_pictures,
    linear_ticks,
    log_ticks,
    metric_range,
    write_tensorboard,
)
from engine.studies.results import Choices, Range, SettingResult, StudyResult
from tests.engine.studies.made_up import FOLDER, make_grid, make_run, make_search, make_setting

NAN = float("nan")


def find(picture: np.ndarray, colour: Colour) -> np.ndarray:
    """Row and column (N, 2) of every pixel of a colour."""
    return np.argwhere((picture == colour).all(2))


def columns_of(picture: np.ndarray, colour: Colour) -> list[float]:
    """The centres of the groups of neighbouring columns with a colour."""
    columns = np.unique(find(picture, colour)[:, 1])
    return [float(group.mean()) for group in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)]


def trials(values: list, accuracies: list[float], space, metric: str = "val/accuracy") -> StudyResult:
    settings = [
        make_setting(i, {"key": value}, [accuracy], metric)
        for i, (value, accuracy) in enumerate(zip(values, accuracies, strict=True))
    ]
    return StudyResult(FOLDER, settings, {"key": space}, metric, True, None)


def is_complete(picture: np.ndarray) -> bool:
    """Whether nothing touches the left, right and lower edge, where it would be cut off."""
    return bool((picture[:, [0, -1]] == 255).all() and (picture[-1] == 255).all())


@pytest.mark.parametrize("keys", [1, 3, 8])
@pytest.mark.parametrize("num_trials", [1, 2, 12, 40])
def test_a_search_can_be_drawn(num_trials, keys):
    study = make_search(num_trials, keys)
    pictures = draw_pictures(study)
    assert [*pictures] == ["search/parallel_coordinates", *(f"slices/{key}" for key in study.vary)]
    for picture in pictures.values():
        assert (picture.dtype, picture.shape[1:]) == (np.uint8, (CARD_WIDTH, 3))
        assert is_complete(picture)


@pytest.mark.parametrize("name", ["a_key_of_some_length." * 8, "键"])
def test_names_and_choices_of_any_length_can_be_drawn(name):
    choices = tuple(f"{name} {i}" for i in range(12))
    study = trials([*choices], [0.9 + i / 1000 for i in range(12)], Choices(choices))
    settings = [replace(each, values={name: each.values["key"]}) for each in study.settings]
    search = replace(study, settings=settings, vary={name: study.vary["key"]})
    for picture in (*draw_pictures(search).values(), *draw_pictures(replace(search, is_search=False)).values()):
        assert is_complete(picture)


def test_a_point_of_a_slice_is_at_its_value():
    """The learning rates are 0, 1 and 2 thirds of the logarithmic range above its lower end."""
    picture = draw_pictures(trials([1e-4, 1e-3, 1e-2], [0.91, 0.99, 0.95], Range(1e-4, 1e-1, is_log=True)))[
        "slices/key"
    ]
    (first, last), (best,) = columns_of(picture, BLUE), columns_of(picture, VERMILION)
    assert best - first == pytest.approx(last - best, abs=1)
    rows = {column: find(picture[:, int(column) - 1 : int(column) + 2], colour)[:, 0].mean() for column, colour in
            ((first, BLUE), (best, VERMILION), (last, BLUE))}  # fmt: skip
    assert rows[first] - rows[last] == pytest.approx(rows[last] - rows[best], abs=1)
    assert rows[best] < rows[last]


def test_the_best_trial_depends_on_the_metric():
    space = Range(0.0, 1.0)
    low, high = (trials([0.1, 0.9], [0.3, 0.5], space, metric) for metric in ("val/loss", "val/accuracy"))
    (first,), (second,) = (columns_of(draw_pictures(study)["slices/key"], VERMILION) for study in (low, high))
    assert first < CARD_WIDTH / 2 < second


def test_the_best_line_of_parallel_coordinates_connects_its_values():
    study = trials([0.25, 0.9, 0.1], [0.99, 0.91, 0.92], Range(0.0, 1.0))
    rows = find(draw_pictures(study)["search/parallel_coordinates"], VERMILION)
    top, bottom = rows[rows[:, 0] == rows[:, 0].min(), 1].mean(), rows[rows[:, 0] == rows[:, 0].max(), 1].mean()
    assert top == pytest.approx(14 + 0.25 * (CARD_WIDTH - 28), abs=4)
    assert bottom > CARD_WIDTH * 0.85  # the largest accuracy is at the right end


@pytest.mark.parametrize("state", ["failed", "pruned", "waiting"])
def test_a_trial_without_a_result_is_a_grey_line_that_ends_before_the_metric(state):
    study = trials([0.5, 0.5], [0.9, NAN], Range(0.0, 1.0))
    study = replace(study, vary={"key": Range(0.0, 1.0), "other": Range(0.0, 1.0)})
    settings = [
        replace(
            each,
            values={"key": 0.2, "other": 0.2 + 0.6 * i},
            runs=[replace(each.runs[0], state=state if i else "finished")],
        )
        for i, each in enumerate(study.settings)
    ]
    pictures = draw_pictures(replace(study, settings=settings))
    rows = find(pictures["search/parallel_coordinates"], PALE)[:, 0]  # the axes are at 40, 102 and 164
    assert ((rows > 60) & (rows < 80)).any()
    assert not ((rows > 120) & (rows < 142)).any()
    mark = find(pictures["slices/other"][140:186], GREY)[:, 1]
    assert ((mark > 0.6 * CARD_WIDTH) & (mark < 0.9 * CARD_WIDTH)).any()


def test_nothing_is_drawn_without_a_result():
    assert draw_pictures(trials([0.1], [NAN], Range(0.0, 1.0))) == {}
    assert draw_pictures(make_grid({0.1: [NAN, NAN]})) == {}
    assert draw_pictures(StudyResult(FOLDER, [], {}, "val/accuracy", True, None)) == {}


@pytest.mark.parametrize("accuracies", [[0.9], [0.9] * 5, [0.0] * 3, [0.9, NAN, 0.92], [1e-9, 1.0, 1e9]])
def test_any_values_can_be_drawn(accuracies):
    for picture in draw_pictures(make_grid({0.1: accuracies, 0.2: [NAN] * len(accuracies)})).values():
        assert is_complete(picture)
    for picture in draw_pictures(trials([0.5] * len(accuracies), accuracies, Range(0.5, 0.5))).values():
        assert is_complete(picture)


@pytest.mark.parametrize(("count", "has_box"), [(1, False), (4, False), (5, True), (20, True)])
def test_few_runs_are_points_and_many_have_a_box(count, has_box):
    values = np.linspace(0.9, 0.95, count).tolist()
    picture = draw_pictures(make_grid({0.1: values}))["settings/test/accuracy"]
    assert bool(len(find(picture, WORST))) == has_box
    assert len(find(picture, BLUE))


def test_the_mean_is_orange():
    picture = draw_pictures(make_grid({0.1: [0.90, 0.91, 0.98]}))["settings/test/accuracy"]
    (mean,) = columns_of(picture, ORANGE)
    blue = np.unique(find(picture, BLUE)[:, 1])
    fraction = (mean - (blue.min() + 3)) / (blue.max() - blue.min() - 6)
    assert fraction == pytest.approx(0.375, abs=0.02)


def test_each_main_metric_has_a_picture():
    runs = [make_run(str(seed), seed, test__accuracy=0.9, val__loss=0.1 * seed, other=1.0) for seed in range(3)]
    study = StudyResult(FOLDER, [SettingResult(0, {}, runs)], {}, "test/accuracy", False, None)
    assert [*draw_pictures(study)] == ["settings/test/accuracy", "settings/val/loss"]


def test_a_large_grid_shows_the_best_settings():
    pictures = [
        draw_pictures(make_grid({value: [0.5 + value / 100, 0.51 + value / 100] for value in range(count)}))
        for count in (MAX_SETTINGS, 40)
    ]
    heights = [picture["settings/test/accuracy"].shape[0] for picture in pictures]
    assert heights[0] == heights[1]
    means = columns_of(pictures[1]["settings/test/accuracy"], ORANGE)
    assert min(means) > 10


def test_a_diverged_trial_leaves_room_for_the_others():
    space = Range(0.0, 1.0)
    usual = [0.95, 0.96, 0.97, 0.98, 0.955, 0.965]
    found = metric_range([*usual, 0.1], is_minimized=False)
    assert 0.8 < found.low < 0.95
    assert found.high == pytest.approx(0.98, abs=0.01)
    found = metric_range([*(1 - value for value in usual), 1e6], is_minimized=True)
    assert found.high < 0.3
    found = metric_range(usual, is_minimized=False)
    assert (found.low, found.high) == pytest.approx((0.95, 0.98), abs=0.003)
    with_outlier = trials([i / 7 for i in range(7)], [*usual, 0.1], space)
    without = trials([i / 6 for i in range(6)], usual, space)
    for tag, picture in draw_pictures(with_outlier).items():
        assert picture.shape[0] > draw_pictures(without)[tag].shape[0]  # a line says that a value is at the end


@pytest.mark.parametrize(
    ("space", "ticks"),
    [
        (Range(0, 0.5), [0, 0.2, 0.4]),
        (Range(0, 1), [0, 0.5, 1.0]),
        (Range(0.93, 0.981), [0.94, 0.96, 0.98]),
        (Range(1, 4, is_int=True), [1, 2, 3, 4]),
        (Range(1, 2, is_int=True), [1, 2]),
        (Range(16, 512, is_int=True), [100, 200, 300, 400, 500]),
        (Range(-3, 3), [-2, 0, 2]),
        (Range(5, 5), [5]),
    ],
)
def test_linear_ticks(space, ticks):
    assert linear_ticks(space) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("space", "ticks"),
    [
        ((1e-4, 1e-1), [1e-4, 1e-3, 1e-2, 1e-1]),
        ((1e-6, 1), [1e-6, 1e-4, 1e-2, 1]),
        ((1e-3, 1e-2), [1e-3, 2e-3, 5e-3, 1e-2]),
        ((3e-4, 4e-2), [5e-4, 2e-3, 1e-2]),
        ((0.3, 0.4), [0.3]),
    ],
)
def test_logarithmic_ticks(space, ticks):
    assert log_ticks(Range(*space, is_log=True)) == pytest.approx(ticks)


def test_tensorboard_has_the_report_and_the_pictures_once(tmp_path):
    study = make_search(12, 2)
    write_tensorboard(make_search(3, 2), tmp_path)
    write_tensorboard(study, tmp_path)
    (path,) = (tmp_path / "study").iterdir()
    events = EventAccumulator(str(path), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert events.Tags()["images"] == [
        "search/parallel_coordinates",
        "slices/optimizer.lr",
        "slices/model.hidden_sizes",
    ]
    assert all(len(events.Images(tag)) == 1 for tag in events.Tags()["images"])
    (text,) = events.Tensors("study/text_summary")
    assert text.tensor_proto.string_val[0].decode().startswith("# Study 20260101-120000\n")


@pytest.mark.parametrize(("mode", "is_outside"), [("min", True), ("max", False), (None, False)])
def test_run_mode_decides_which_trials_are_much_worse(mode, is_outside):
    """The value 100 is drawn at the end of the axis only if lower values are better."""
    values = [0.95, 0.96, 0.97, 0.98, 0.955, 0.965]
    usual, outlier = (
        replace(trials([i / 7 for i in range(len(found))], found, Range(0.0, 1.0), "val/own"), mode=mode)
        for found in (values, [*values, 100])
    )
    for tag, picture in draw_pictures(outlier).items():
        assert (picture.shape[0] > draw_pictures(usual)[tag].shape[0]) == is_outside
