"""Evaluations of a trained model: the figures of the run's own test, new data with labels, and mistakes in one line."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import evaluate
from engine.config.signatures import PROJECT
from engine.contracts import UserError
from engine.inference.predictor import load
from engine.training.loggers import event_files
from lit_models.parts.metrics import WeightedMean
from tests import files
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

QUICK = ["trainer.max_epochs=1", "trainer.precision=32-true", *WITHOUT_PICTURES]


def evaluated(folder: Path, *argv: str, name: str = "test") -> dict:
    """Evaluate the run in a folder. Returns the content of the file."""
    assert evaluate.main([str(folder), *argv]) == 0
    return json.loads((folder / f"evaluations/{name}.json").read_text(encoding="utf-8"))


def of_test(found: dict) -> dict:
    return {name: value for name, value in found.items() if name.startswith("test")}


@pytest.mark.needs("table")
def test_the_file_of_the_test_has_the_figures_of_the_run(small_data, tmp_path, capsys):
    header, *rows = (small_data / "table/train.csv").read_text(encoding="utf-8").splitlines()
    train, test = small_data / "table/first.csv", small_data / "table/second.csv"
    train.write_text("\n".join([header, *rows[:200]]) + "\n", encoding="utf-8")
    test.write_text("\n".join([header, *rows[200:]]) + "\n", encoding="utf-8")
    data = [f"data.train={train}", f"data.test={test}", "data.target=label", "callbacks.early_stopping=null"]
    folder = run(tmp_path / "runs", "--config", "configs/table_mlp.yaml", *data, *QUICK)
    train.unlink()
    found = evaluated(folder, f"data.test={test}", name="second")
    assert of_test(found) == of_test(figures(folder))
    assert found["num_samples"] == 100
    assert capsys.readouterr().out.splitlines()[-2].startswith(f"accuracy {found['test/accuracy']:.4f}")
    test.write_text("\n".join([header, *rows[:7]]) + "\n", encoding="utf-8")
    assert evaluated(folder, f"data.test={test}", "--name", "seven", name="seven")["num_samples"] == 7


@pytest.mark.needs("table")
def test_an_error_keeps_an_earlier_evaluation(table, tmp_path):
    folder = shutil.copytree(table, tmp_path / "runs/table_mlp" / table.name)
    evaluated(folder)
    before = [path for path in (folder / "evaluations").rglob("*") if path.is_file()]
    with pytest.raises(UserError, match="--slices"):
        evaluate.main([str(folder), f"data.test={table.parents[2]}/train.csv", "--name", "test", "--slices", "nothing"])
    assert [path for path in (folder / "evaluations").rglob("*") if path.is_file()] == before


def test_the_model_cannot_be_changed(tmp_path):
    folder = run(tmp_path / "runs", "--config", IRIS, *QUICK)
    with pytest.raises(UserError, match=r"model\.hidden_sizes: cannot be changed: the model comes from the checkpoint"):
        evaluate.main([str(folder), "model.hidden_sizes=[3]"])


@pytest.mark.needs("pictures")
def test_a_folder_has_no_columns_for_slices(table, tmp_path):
    with pytest.raises(UserError, match=r"--slices: .* is a folder and has no columns; give a table"):
        evaluate.main([str(table), f"data.test={tmp_path}", "--slices", "label"])


@pytest.mark.needs("text", "bert")
def test_texts_with_labels(small_data, tmp_path):
    files.write_texts(small_data / "text/test.tsv", 60, seed=1)
    data = [f"data.train={small_data}/text/train.tsv", f"data.test={small_data}/text/test.tsv", "data.vocab_size=200"]
    model = ["model.hidden_size=16", "model.num_layers=1", "model.num_heads=2", f"data.cache={tmp_path}/cache"]
    folder = run(tmp_path / "runs", "--config", "configs/text_bert.yaml", *data, *model, *QUICK)
    found = evaluated(folder, f"data.test={small_data}/text/test.tsv")
    assert of_test(found) == of_test(figures(folder))


@pytest.mark.needs("pictures")
def test_pictures_with_labels(small_data, tmp_path):
    data = [f"data.train={small_data}/pictures", "data.image_size=16", f"data.cache={tmp_path}/cache"]
    options = ["--config", "configs/pictures_cnn.yaml", *data, *QUICK, "model.widths=[8]", "data.batch_size=16"]
    folder = run(tmp_path / "runs", *options)
    found = evaluated(folder, f"data.test={small_data}/pictures", "--name", "all", name="all")
    assert found["num_samples"] == 120


def test_the_pictures_of_the_test_are_drawn_again(tmp_path):
    folder = run(tmp_path / "runs", "--config", IRIS, "trainer.max_epochs=1")
    for _ in range(2):
        evaluated(folder)
        written = {path.parent.name: path.stat().st_size for path in event_files(folder / "evaluations/test/test")}
        assert [*written] == ["test"]  # the second evaluation replaces the first one
        assert written["test"] > 10_000


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    os.chdir(PROJECT)
    root = tmp_path_factory.mktemp("table")
    files.write_table(root / "train.csv", 300)
    data = [f"data.train={root}/train.csv", "data.target=label", "callbacks.early_stopping=null"]
    return run(root / "runs", "--config", "configs/table_mlp.yaml", *data, *QUICK, "model.hidden_sizes=[16]")


ROWS = {
    "unknown": "height,colour,noise,member,label\n1.0,red,1,yes,violet\n",
    "unlabelled": "height,colour,noise,member,label\n1.0,red,1,yes,\n",
    "columns": "height,colour,noise,member\n1.0,red,1,yes\n",
}
MISTAKES = [
    (["no_such_run"], "matches no run below"),
    (["RUN", "data.test=missing.csv"], "data.test: missing.csv does not exist"),
    (["RUN", "data.tset=a.csv"], "data.tset: unknown key; did you mean test?"),
    (["RUN", "--name", "../a"], "--name: '../a' is not the name of a file"),
    (["RUN", "trainer.accelerator=tpu"], "trainer.accelerator"),
    (["RUN", "data.test=ROWS/unknown.csv"], "the label 'violet' does not occur in the training set"),
    (["RUN", "data.test=ROWS/unlabelled.csv"], "1: no label"),
    (["RUN", "data.test=ROWS/columns.csv"], "has no column 'label'; it has height"),
]


@pytest.mark.needs("table")
@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line(arguments, message, table, tmp_path):
    for name, text in ROWS.items():
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        evaluate.main([word.replace("RUN", str(table)).replace("ROWS", str(tmp_path)) for word in arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (table / "evaluations").exists()


PRECISIONS = ["32-true", "bf16-mixed", "64-true", 64, "bf16-true"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_gives_the_figures_of_the_run(precision, small_data, tmp_path):
    config = ["--config", IRIS, "trainer.max_epochs=5"]
    if precision == "bf16-true":  # not for features
        config = ["--config", "configs/mnist_cnn.yaml", f"data.root={small_data}", "model.widths=[4, 8]", QUICK[0]]
    folder = run(tmp_path / "runs", *config, f"trainer.precision={precision}", *WITHOUT_PICTURES)
    assert of_test(evaluated(folder)) == of_test(figures(folder))
    predictor = load(folder)
    predictor.datamodule.prepare_data()
    predictor.datamodule.setup()
    ((inputs, labels),) = predictor.datamodule.test_dataloader()
    logits = predictor.logits(inputs)
    metric = WeightedMean()
    metric.update(torch.nn.functional.cross_entropy(logits, labels), len(labels))
    assert float(metric.compute()) == figures(folder)["test/loss"]
    saved = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value, saved[name]), name
        assert value.dtype == saved[name].dtype


def test_the_precision_of_an_evaluation_can_be_chosen(tmp_path):
    options = ["--config", IRIS, "trainer.max_epochs=5", *WITHOUT_PICTURES]
    folder = run(tmp_path, *options, "trainer.precision=64-true")
    narrow = of_test(evaluated(folder, "trainer.precision=32-true"))
    assert narrow != of_test(figures(folder))
    assert narrow == pytest.approx(of_test(figures(folder)), rel=1e-5)
