"""Metrics for each value of a column."""

import json
import os

import numpy as np
import pytest
import torch

import evaluate
from engine.config.signatures import PROJECT
from engine.contracts import UserError
from engine.inference.slices import MISSING, OTHERS, group_values, slice_metrics, wilson_interval
from lit_models.parts.metrics import evaluation_metrics
from tests import files
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

QUICK = ["trainer.max_epochs=1", "trainer.precision=32-true", *WITHOUT_PICTURES]


def test_few_values_are_kept():
    assert group_values(["b", None, "a", "3"]) == ["b", MISSING, "a", "3"]


def test_many_numbers_are_grouped_into_ranges_of_equal_size():
    groups = group_values([str(number) for number in range(100)] + [None])
    assert groups[0] == "1: 0 to 19"
    assert groups[99] == "5: 80 to 99"
    assert groups[100] == MISSING
    assert sorted({groups.count(group) for group in set(groups)}) == [1, 20]


def test_a_frequent_number_does_not_make_empty_groups():
    groups = group_values(["0"] * 90 + [str(number) for number in range(1, 31)])
    assert sorted(set(groups)) == ["1: 0 to 6", "2: 7 to 30"]


def test_rare_texts_are_grouped():
    values = [f"word{number}" for number in range(30) for _ in range(30 - number)]
    groups = group_values(values)
    assert len(set(groups)) == 20
    assert groups[0] == "word0"
    assert groups[-1] == OTHERS


def test_the_interval_of_an_accuracy_is_that_of_wilson():
    """The values are those of Newcombe 1998, table I: 81 of 263, and 0 of 20."""
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_metrics_of_a_value_are_those_of_its_samples(num_classes):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (300,), generator=generator)
    values = [("a", "b", None)[i % 3] for i in range(300)]
    is_hard = torch.tensor([value is None for value in values])
    logits = torch.randn(300, num_classes, generator=generator)
    logits += 3 * torch.eye(num_classes)[labels] * ~is_hard[:, None]
    found = slice_metrics(logits, labels, values, evaluation_metrics(num_classes))
    assert [each.num_samples for each in found] == [100] * 3
    assert found[0].value == MISSING
    for each in found:
        rows = torch.tensor([(value or MISSING) == each.value for value in values])
        metrics = evaluation_metrics(num_classes)
        metrics.update(logits[rows], labels[rows])
        expected = {name: float(value) for name, value in metrics.compute().items() if value.numel() == 1}
        expected["loss"] = float(torch.nn.functional.cross_entropy(logits[rows], labels[rows]))
        assert {name: values[0] for name, values in each.metrics.items()} == expected
        assert all(low < value < high for value, low, high in each.metrics.values())


@pytest.mark.slow
def test_an_interval_covers_the_expected_loss():
    """About 95 of 100 intervals contain the expectation."""
    generator, covered = torch.Generator().manual_seed(1), 0
    labels = torch.arange(50) % 3
    for _ in range(100):
        logits = torch.randn(50, 3, generator=generator)
        ((_, low, high),) = (
            each.metrics["loss"] for each in slice_metrics(logits, labels, ["a"] * 50, evaluation_metrics(3))
        )
        covered += low < 1.4342 < high  # log-sum-exp of three normal variables, minus the mean of one
    assert 88 <= covered <= 99


def test_a_metric_that_is_undefined_is_left_out():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    (found,) = slice_metrics(logits, torch.tensor([1, 1, 1]), ["a"] * 3, evaluation_metrics(2))
    assert {"accuracy", "loss"} < found.metrics.keys()
    assert {"roc_auc", "average_precision"} & found.metrics.keys() == set()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The folder of a run with its own test file."""
    os.chdir(PROJECT)
    root = tmp_path_factory.mktemp("table")
    files.write_table(root / "all.csv", 300)
    header, *rows = (root / "all.csv").read_text(encoding="utf-8").splitlines()
    for name, part in (("train", rows[:200]), ("test", rows[200:])):
        (root / f"{name}.csv").write_text("\n".join([header, *part]) + "\n", encoding="utf-8")
    data = [f"data.train={root}/train.csv", f"data.test={root}/test.csv", "data.target=label"]
    options = [*data, *QUICK, "model.hidden_sizes=[16]", "callbacks.early_stopping=null", "data.drop=[noise]"]
    return run(root / "runs", "--config", "configs/table_mlp.yaml", *options)


@pytest.mark.needs("table")
@pytest.mark.parametrize("column", ["colour", "noise", "label"], ids=["feature", "dropped number", "target"])
def test_slices_of_a_table(column, table, capsys):
    folder = table
    assert evaluate.main([str(folder), "--slices", column]) == 0
    found = json.loads((folder / "evaluations/test.json").read_text(encoding="utf-8"))
    assert {name: found[name] for name in found if name.startswith("test")} == {
        name: value for name, value in figures(folder).items() if name.startswith("test")
    }
    slices = found["slices"]
    assert sum(each["num_samples"] for each in slices) == 100
    mean = np.average(
        [each["metrics"]["accuracy"][0] for each in slices], weights=[each["num_samples"] for each in slices]
    )
    assert mean == pytest.approx(found["test/accuracy"], abs=1e-6)
    accuracies = [each["metrics"]["accuracy"][0] for each in slices]
    assert accuracies == sorted(accuracies)
    if column == "label":
        recalls = {each["value"]: each["metrics"]["accuracy"][0] for each in slices}
        assert recalls == pytest.approx({name: found[f"test_class_accuracy/{name}"] for name in recalls})
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2 - len(slices)].split()[:3] == [column, "samples", "accuracy"]


@pytest.mark.needs("text", "bert")
def test_slices_of_texts(small_data, tmp_path):
    source = tmp_path / "texts.tsv"
    lines = [f"{text}\t{label}\t{'even' if i % 2 else 'odd'}" for i, (text, label) in enumerate(files.texts(60, 1))]
    source.write_text("\n".join(["text\tlabel\tplace", *lines, ""]), encoding="utf-8")
    data = [f"data.train={small_data}/text/train.tsv", "data.vocab_size=200", f"data.cache={tmp_path}/cache"]
    model = ["model.hidden_size=16", "model.num_layers=1", "model.num_heads=2"]
    folder = run(tmp_path / "runs", "--config", "configs/text_bert.yaml", *data, *model, *QUICK)
    assert evaluate.main([str(folder), f"data.test={source}", "--slices", "place"]) == 0
    slices = json.loads((folder / "evaluations/texts.json").read_text(encoding="utf-8"))["slices"]
    assert sorted((each["value"], each["num_samples"]) for each in slices) == [("even", 30), ("odd", 30)]


@pytest.mark.needs("pictures")
def test_slices_of_pictures(small_data, tmp_path):
    data = [f"data.train={small_data}/pictures", "data.image_size=16", f"data.cache={tmp_path}/cache"]
    options = ["--config", "configs/pictures_cnn.yaml", *data, *QUICK, "model.widths=[8]", "data.batch_size=16"]
    folder = run(tmp_path / "runs", *options)
    paths = sorted((small_data / "pictures").rglob("*.png"))
    lines = [f"{path},{path.parent.name},camera{i % 3}" for i, path in enumerate(paths)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,camera", *lines, ""]), encoding="utf-8")
    assert evaluate.main([str(folder), f"data.test={tmp_path}/list.csv", "--slices", "camera"]) == 0
    slices = json.loads((folder / "evaluations/list.json").read_text(encoding="utf-8"))["slices"]
    assert sorted((each["value"], each["num_samples"]) for each in slices) == [(f"camera{i}", 40) for i in range(3)]


@pytest.mark.needs("table")
def test_a_column_that_does_not_exist_is_a_mistake(table):
    with pytest.raises(UserError, match=r"--slices: .* has no column 'color'; did you mean colour\?"):
        evaluate.main([str(table), "--slices", "color"])


def test_data_without_columns_has_no_slices(tmp_path):
    folder = run(tmp_path / "runs", "--config", IRIS, *QUICK)
    with pytest.raises(UserError, match=r"--slices: the data of the run \(iris\) has no columns"):
        evaluate.main([str(folder), "--slices", "petal"])
