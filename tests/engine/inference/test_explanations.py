"""Explanations of predictions: attributions as columns, lists of tokens and pictures."""

import csv
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import predict
from engine.config.signatures import PROJECT
from engine.contracts import UserError
from engine.inference.explanations import explain_row
from engine.inference.predictor import load
from tests import files
from tests.runs import IRIS, WITHOUT_PICTURES, run

QUICK = ["trainer.max_epochs=1", "trainer.precision=32-true", *WITHOUT_PICTURES]


def rows_of(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    """A linear model, whose attributions are known."""
    os.chdir(PROJECT)
    folder = run(tmp_path_factory.mktemp("iris"), "--config", IRIS, *QUICK, "model.hidden_sizes=[]")
    generator = np.random.default_rng(0)
    np.save(folder / "rows.npy", generator.normal(3, 2, (5, 4)).astype(np.float32))
    return folder


def test_attributions_of_a_linear_model_are_weights_times_inputs(iris, tmp_path):
    source, output = iris / "rows.npy", tmp_path / "out.csv"
    assert predict.main([str(iris), str(source), "--output", str(output), "--explain"]) == 0
    model = load(iris).model
    inputs = torch.from_numpy(np.load(source))
    found = rows_of(output)
    names = [name for name in found[0] if name.startswith("attribution_")]
    assert names == [f"attribution_{name}" for name in ("sepal length", "sepal width", "petal length", "petal width")]
    (layer,) = model.network.layers
    for row, normalized, logits in zip(found, model.normalized(inputs), model(inputs), strict=True):
        first, second = logits.topk(2).indices.tolist()
        expected = normalized * (layer.weight[first] - layer.weight[second]) / model.temperature
        np.testing.assert_allclose([float(row[name]) for name in names], expected.numpy(), rtol=1e-3, atol=1e-5)


def test_attributions_add_up_to_the_log_odds(iris, tmp_path):
    predictor = load(iris)
    (part,) = predictor.open(iris / "rows.npy").parts
    baseline = predictor.model.input_mean[None]
    for row in range(5):
        logits = predictor.logits(part.inputs[row : row + 1])[0] - predictor.logits(baseline)[0]
        first, second = predictor.logits(part.inputs[row : row + 1])[0].topk(2).indices.tolist()
        total = float(explain_row(predictor, part, row).attributions.sum())
        assert total == pytest.approx(float(logits[first] - logits[second]), rel=1e-3)


@pytest.mark.needs("table")
def test_a_threshold_turns_the_attributions_of_the_less_probable_class(tmp_path):
    files.write_table(tmp_path / "all.csv", 300)
    header, *rows = (tmp_path / "all.csv").read_text(encoding="utf-8").splitlines()
    names = sorted({row.rpartition(",")[2] for row in rows})[:2]
    two = [row for row in rows if row.rpartition(",")[2] in names]
    (tmp_path / "two.csv").write_text("\n".join([header, *two]) + "\n", encoding="utf-8")
    data = [f"data.train={tmp_path}/two.csv", "data.target=label", "callbacks.early_stopping=null"]
    folder = run(tmp_path / "runs", "--config", "configs/table_mlp.yaml", *data, *QUICK, "model.hidden_sizes=[16]")
    (tmp_path / "few.csv").write_text("\n".join([header, *two[:8]]) + "\n", encoding="utf-8")
    found = []
    for name, options in (("plain", []), ("turned", ["--threshold", "0.999"])):
        output = tmp_path / f"{name}.csv"
        assert (
            predict.main([str(folder), str(tmp_path / "few.csv"), "--output", str(output), "--explain", *options]) == 0
        )
        found.append(rows_of(output))
    columns = [name for name in found[0][0] if name.startswith("attribution_")]
    assert columns == [f"attribution_{name}" for name in ("height", "colour", "noise", "member")]
    signs = set()
    for plain, turned in zip(*found, strict=True):
        signs.add(sign := 1 if plain["predicted"] == turned["predicted"] else -1)
        values = np.array([[float(row[name]) for name in columns] for row in (plain, turned)])
        np.testing.assert_array_equal(values[0] * sign, values[1])
    assert signs == {1, -1}


@pytest.mark.needs("text", "bert")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_attributions_of_texts_are_lists_of_tokens(suffix, small_data, tmp_path):
    data = [f"data.train={small_data}/text/train.tsv", "data.vocab_size=200", f"data.cache={tmp_path}/cache"]
    model = ["model.hidden_size=16", "model.num_layers=1", "model.num_heads=2"]
    folder = run(tmp_path / "runs", "--config", "configs/text_bert.yaml", *data, *model, *QUICK)
    (tmp_path / "texts.txt").write_text("a great film\nawful\n", encoding="utf-8")
    output = tmp_path / f"out{suffix}"
    assert predict.main([str(folder), str(tmp_path / "texts.txt"), "--output", str(output), "--explain"]) == 0
    if suffix == ".csv":
        pairs = [json.loads(row["attributions"]) for row in rows_of(output)]
    else:
        lines = output.read_text(encoding="utf-8").splitlines() if suffix == ".jsonl" else []
        rows = [json.loads(line) for line in lines] or pq.read_table(output).to_pylist()
        pairs = [[[pair["token"], pair["attribution"]] for pair in row["attributions"]] for row in rows]
    assert "".join(token for token, _ in pairs[1]).replace("##", "").replace("Ġ", "").count("awful") == 1
    assert all(isinstance(value, float) for row in pairs for _, value in row)
    assert any(value for row in pairs for _, value in row)


def test_attributions_of_images_are_pictures(small_data, tmp_path):
    data = [f"data.root={small_data}", "data.batch_size=64", "model.hidden_sizes=[8]"]
    folder = run(tmp_path / "runs", "--config", "configs/mnist_mlp.yaml", *data, *QUICK)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    Image.fromarray(images[0, 0]).save(tmp_path / "nine.png")
    for source, names in (("images.npy", ["000001.png", "000002.png"]), ("nine.png", ["000001_nine.png"])):
        output = tmp_path / f"{source}.csv"
        assert predict.main([str(folder), str(tmp_path / source), "--output", str(output), "--explain"]) == 0
        pictures = sorted((tmp_path / f"{source}.csv.explanations").iterdir())
        assert [path.name for path in pictures] == names
        with Image.open(pictures[0]) as picture:
            assert picture.size == (448, 224)
            left = np.asarray(picture)[:224:8, :224:8, 0]
        np.testing.assert_array_equal(left, images[0, 0])
    with pytest.raises(
        UserError, match="--explain: writes a picture for each row beside the output; add --output FILE"
    ):
        predict.main([str(folder), str(tmp_path / "nine.png"), "--explain"])


def test_a_row_that_cannot_be_read_has_no_explanation(iris, tmp_path):
    (tmp_path / "rows.csv").write_text("sepal length,sepal width,petal length,petal width\n5,3,1,x\n5,3,1,1\n")
    output = tmp_path / "out.csv"
    argv = [str(iris), str(tmp_path / "rows.csv"), "--output", str(output), "--explain", "--skip-broken"]
    assert predict.main(argv) == 0
    broken, whole = rows_of(output)
    assert (broken["attribution_petal width"], broken["predicted"]) == ("", "")
    assert float(whole["attribution_petal width"])
