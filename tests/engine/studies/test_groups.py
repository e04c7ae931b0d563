"""The splits of the data that the runs of a group use. tests/engine/runs/test_run_index.py compares groups."""

import pytest

from engine.studies.groups import overlap_ratio


@pytest.mark.parametrize(
    ("metric", "first", "second", "ratio"),
    [
        ("test/f1", {"split_seed": 0, "test_fraction": 0.2}, {"split_seed": 1, "test_fraction": 0.2}, 0.2 / 0.8),
        ("val/f1", {"split_seed": 0, "val_fraction": 0.1}, {"split_seed": 1, "val_fraction": 0.1}, 0.1 / 0.9),
        ("test/f1", {"split_seed": 0, "val_fraction": 0.1}, {"split_seed": 1, "val_fraction": 0.1}, 0),
        ("val/f1", {"num_folds": 5, "fold": 0, "val_fraction": 0.1}, {"num_folds": 5, "fold": 1}, 1 / 4),
        ("val/f1", {"num_folds": 10, "fold": 0, "val_fraction": 0.2}, {"num_folds": 10, "fold": 1}, 0.2 / 0.8),
        ("test/f1", {"num_folds": 10, "fold": 0, "test_fraction": 0.5}, {"num_folds": 10, "fold": 1}, 1 / 9),
        ("test/f1", {"num_folds": 5, "fold": 3, "split_seed": 0}, {"num_folds": 5, "fold": 3, "split_seed": 1}, 1 / 4),
        ("val/f1", {"val_fraction": 0.1}, {"val_fraction": 0.2}, 0),
        ("test/f1", {}, {}, 0),
    ],
)
def test_the_size_of_the_held_out_set_relative_to_the_training_set(metric, first, second, ratio):
    assert overlap_ratio([{"seed": 0, "data": first}, {"seed": 1, "data": second}], metric) == pytest.approx(ratio)
