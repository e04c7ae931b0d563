"""The splits of the data that the runs of a group use. tests/engine/runs/test_run_index.py compares groups."""

import pytest

from engine.studies.groups import overlap_ratio


@pytest.mark.parametrize(
    ("metric", "first", "second", "ratio"),
    [
        ("test/f1", {"split_seed": 0, "test_fraction": 0.2}, {"split_seed": 1, "test_fraction": 0.2}, 0.2 / 0.8),
        ("val/f1", {"split_seed": 0, "val_fraction": 0.1}, {"split_seed": 1, "val_fraction": 0.1}, 0.1 / 0.9),
        ("test/f1", {"split_seed": 0, "val_fraction": 0.1}, {"split_seed": 1, "val_fraction": 0.1}, 0),
        ("test/f1", {"num_folds": 10, "fold": 0, "test_fraction": 0.5}, {"num_folds": 10, "fold": 1}, 1 / 9),
        ("test/f1", {"num_folds": 5, "fold": 3, "split_seed": 0}, {"num_folds": 5, "fold": 3, "split_seed": 1}, 1 / 4),
        ("val/f1", {"val_fraction": 0.1}, {"val_fraction": 0.2}, 0),
        ("test/f1", {}, {}, 0),
    ],
)
def test_the_size_of_the_held_out_set_relative_to_the_training_set(metric, first, second, ratio):
    assert overlap_ratio([{"data": first}, {"data": second}], metric, is_tested=True) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("num_folds", "is_tested", "limit", "ratio"),
    [
        (5, True, None, 0.1 / 0.9),  # the fold is the test set
        (20, False, None, 1 / 19),  # the fold is the validation set
        (20, False, 0, 0.1 / 0.9),  # the config and the metrics do not tell: the larger of the two
        (5, False, 0, 1 / 4),
    ],
)
def test_the_validation_set_is_a_fold_if_the_runs_have_no_test(num_folds, is_tested, limit, ratio):
    configs = [
        {"data": {"num_folds": num_folds, "fold": fold, "val_fraction": 0.1}, "trainer": {"limit_test_batches": limit}}
        for fold in range(2)
    ]
    assert overlap_ratio(configs, "val/f1", is_tested) == pytest.approx(ratio)
