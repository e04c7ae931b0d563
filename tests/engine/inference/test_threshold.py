"""Thresholds of a probability: the curve, the rules, and the predictions that use them."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

import predict
from engine.config.signatures import PROJECT
from engine.contracts import ConfigError, UserError
from engine.inference.threshold import Rule, choose_index, parse_threshold, threshold_curve
from tests import files
from tests.runs import IRIS, WITHOUT_PICTURES, run

QUICK = ["trainer.max_epochs=1", "trainer.precision=32-true", *WITHOUT_PICTURES]
PROBABILITIES = np.array([0.9, 0.8, 0.8, 0.6, 0.4, 0.2], np.float32)
LABELS = np.array([1, 1, 0, 1, 0, 0])


def test_the_curve_has_a_point_for_each_probability():
    curve = threshold_curve(PROBABILITIES, LABELS)
    np.testing.assert_allclose(curve.thresholds, [0.9, 0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(curve.precision, [1, 2 / 3, 3 / 4, 3 / 5, 3 / 6])
    np.testing.assert_allclose(curve.recall, [1 / 3, 2 / 3, 1, 1, 1])
    np.testing.assert_allclose(curve.specificity, [1, 2 / 3, 2 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        ("f1", 0.6),
        ("youden", 0.6),
        ("recall>=0.5", 0.8),
        ("recall>=1", 0.6),
        ("precision>=0.7", 0.6),
        ("precision>=1", 0.9),
    ],
)
def test_a_rule_chooses_a_threshold(rule, threshold):
    curve = threshold_curve(PROBABILITIES, LABELS)
    parsed = parse_threshold(rule)
    assert isinstance(parsed, Rule)
    assert curve.thresholds[choose_index(curve, parsed)] == np.float32(threshold)


@pytest.mark.parametrize("name", ["f1", "youden"])
def test_no_other_threshold_is_better(name):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 500)
    probabilities = (generator.normal(labels, 1.0)).astype(np.float32)

    def value(threshold: float) -> float:
        predicted = probabilities >= threshold
        hits = (predicted & (labels == 1)).sum()
        if name == "f1":
            return 2 * hits / (predicted.sum() + labels.sum())
        return hits / labels.sum() - (predicted & (labels == 0)).sum() / (labels == 0).sum()

    curve = threshold_curve(probabilities, labels)
    best = value(curve.thresholds[choose_index(curve, Rule(name))])
    assert best == pytest.approx(max(map(value, probabilities)))


def test_a_precision_that_no_threshold_has_is_a_mistake():
    with pytest.raises(
        ConfigError, match=r"no threshold has this precision on the validation set; the highest is 0\.5"
    ):
        choose_index(threshold_curve(np.array([0.9, 0.1]), np.array([0, 1])), Rule("precision", 0.9))


@pytest.mark.parametrize(
    "text", ["1.5", "0", "1", "-1", "nan", "x", "recall>=0", "recall>=2", "recall>=", "f2", "recall=0.5"]
)
def test_a_wrong_rule_is_a_mistake(text):
    with pytest.raises(ConfigError, match="--threshold"):
        parse_threshold(text)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The folder of a run with two classes, and its training file."""
    os.chdir(PROJECT)
    root = tmp_path_factory.mktemp("table")
    files.write_table(root / "train.csv", 300)
    header, *rows = (root / "train.csv").read_text(encoding="utf-8").splitlines()
    two = sorted({row.rpartition(",")[2] for row in rows})[:2]
    rows = [row for row in rows if row.rpartition(",")[2] in two]
    (root / "train.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    data = [f"data.train={root}/train.csv", "data.target=label", "callbacks.early_stopping=null"]
    folder = run(root / "runs", "--config", "configs/table_mlp.yaml", *data, *QUICK, "model.hidden_sizes=[16]")
    return folder, root / "train.csv"


@pytest.mark.needs("table")
def test_predictions_use_the_threshold(table, tmp_path, capsys):
    folder, source = table
    for rule in ("0.3", "recall>=0.9"):
        assert predict.main([str(folder), str(source), "--output", str(tmp_path / "out.csv"), "--threshold", rule]) == 0
        with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        first, second = (name for name in rows[0] if name.startswith("probability_"))
        (threshold,) = {float(row["threshold"]) for row in rows}
        expected = [(second if float(row[second]) >= threshold else first).partition("_")[2] for row in rows]
        assert [row["predicted"] for row in rows] == expected
        assert [row["probability"] for row in rows] == [row[f"probability_{row['predicted']}"] for row in rows]
        (tmp_path / "out.csv").unlink()
    printed = capsys.readouterr()
    assert "recall>=0.9: threshold" in printed.err
    assert "numbers " not in printed.out.rpartition("TensorBoard")[2]  # only predictions belong to the standard output
    with Image.open(folder / "thresholds/recall_0.9.png") as picture:
        assert picture.width == 340


@pytest.mark.needs("table")
def test_a_rule_without_the_training_data_is_a_mistake(table):
    folder, source = table
    moved = source.rename(source.with_name("moved.csv"))
    try:
        with pytest.raises(UserError, match=r"--threshold: f1 needs the validation set of the run: .*; give a number"):
            predict.main([str(folder), str(moved), "--threshold", "f1"])
    finally:
        moved.rename(source)


def test_a_threshold_needs_two_classes(tmp_path):
    folder = run(tmp_path / "runs", "--config", IRIS, *QUICK)
    np.save(tmp_path / "rows.npy", np.zeros((2, 4), np.float32))
    with pytest.raises(UserError, match="--threshold: needs two classes; the run has 3"):
        predict.main([str(folder), str(tmp_path / "rows.npy"), "--threshold", "0.3"])
