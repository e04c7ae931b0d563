"""Predictions of new data: the classes of the run's test, the order of the input, and mistakes in one line."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import predict
from engine.config.signatures import PROJECT
from engine.contracts import UserError
from engine.inference.output import Output
from engine.inference.predictor import load
from tests import files
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

QUICK = ["trainer.max_epochs=1", "trainer.precision=32-true", *WITHOUT_PICTURES]


def split_table(root: Path) -> Path:
    """Divide the small table into two files. Returns the second one."""
    header, *rows = (root / "table/train.csv").read_text(encoding="utf-8").splitlines()
    for name, part in (("train", rows[:200]), ("test", rows[200:])):
        (root / f"table/{name}.csv").write_text("\n".join([header, *part]) + "\n", encoding="utf-8")
    return root / "table/test.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A run on a table, and the file of its test."""
    os.chdir(PROJECT)
    root = tmp_path_factory.mktemp("table")
    files.write_table(root / "table/train.csv", 300)
    test = split_table(root)
    data = [f"data.train={root}/table/train.csv", f"data.test={test}", "data.target=label"]
    options = ["--config", "configs/table_mlp.yaml", *data, *QUICK, "model.hidden_sizes=[16]", "model.num_members=2"]
    return run(root / "runs", *options, "callbacks.early_stopping=null"), test


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.needs("table")
def test_a_table_gets_the_classes_of_the_test(table, tmp_path):
    folder, test = table
    assert predict.main([str(folder), str(test), "--output", str(tmp_path / "out.csv")]) == 0
    found, given = rows_of(tmp_path / "out.csv"), rows_of(test)
    assert [row["row"] for row in found] == [str(i + 1) for i in range(len(given))]
    hits = [row["predicted"] == one["label"] for row, one in zip(found, given, strict=True)]
    assert np.float32(np.mean(hits)) == np.float32(figures(folder)["test/accuracy"])
    names = [name for name in found[0] if name.startswith("probability_")]
    assert sorted({one["label"] for one in given}) == [name.removeprefix("probability_") for name in names]
    np.testing.assert_allclose([sum(float(row[name]) for name in names) for row in found], 1, rtol=1e-6)
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.needs("table")
def test_all_formats_have_the_same_predictions(suffix, table, tmp_path):
    folder, test = table
    for name in ("out.csv", f"out{suffix}"):
        assert predict.main([str(folder), str(test), "--output", str(tmp_path / name)]) == 0
    expected = rows_of(tmp_path / "out.csv")
    if suffix == ".parquet":
        found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    else:
        found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["predicted"] for one in found] == [one["predicted"] for one in expected]
    assert [np.float32(one["probability"]) for one in found] == [np.float32(one["probability"]) for one in expected]


@pytest.mark.needs("table")
def test_columns_may_have_another_order_and_unknown_categories(table, tmp_path):
    folder, test = table
    rows = rows_of(test)
    predictor = load(folder)
    expected = predictor.predict(test).probabilities
    reversed_rows = [dict(reversed(row.items())) | {"more": "x"} for row in rows]
    np.testing.assert_array_equal(predictor.predict(reversed_rows).probabilities, expected)
    name = next(name for name, kinds in predictor.model.hparams["columns"].items() if kinds)
    unknown, missing = ([row | {name: value} for row in rows] for value in ("never seen", ""))
    np.testing.assert_array_equal(predictor.predict(unknown).probabilities, predictor.predict(missing).probabilities)


@pytest.mark.parametrize("kind", ["list", "columns", "arrow", "path", "text"])
@pytest.mark.needs("table")
def test_a_table_in_memory_is_predicted_as_its_file(kind, table):
    import pyarrow.csv

    folder, test = table
    rows = rows_of(test)
    values = {
        "list": rows,
        "columns": {name: [row[name] for row in rows] for name in rows[0]},
        "arrow": pyarrow.csv.read_csv(test),
        "path": test,
        "text": str(test),
    }
    predictor = load(folder / "checkpoints/best.ckpt")
    found = predictor.predict(values[kind])
    np.testing.assert_array_equal(found.probabilities, predictor.predict(test).probabilities)
    assert len(found.classes) == len(rows)


@pytest.mark.needs("table")
def test_a_text_in_a_column_of_numbers_is_a_problem(table, tmp_path):
    folder, test = table
    rows = rows_of(test)
    predictor = load(folder)
    name = next(name for name, kinds in predictor.model.hparams["columns"].items() if not kinds)
    values = {3: "20 EUR", 5: "", 6: "NA", 7: "inf"}
    changed = [row | ({name: values[i]} if i in values else {}) for i, row in enumerate(rows)]
    with (tmp_path / "changed.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, changed[0])
        writer.writeheader()
        writer.writerows(changed)
    problem = f"'20 EUR' in column '{name}' is not a number"
    with pytest.raises(UserError, match=f"INPUT: 4: {problem}; --skip-broken leaves its class empty"):
        predict.main([str(folder), str(tmp_path / "changed.csv")])
    with pytest.raises(UserError, match=f"INPUT: 4: {problem}; skip_broken=True leaves its class empty"):
        predictor.predict(changed)
    found = predictor.predict(changed, skip_broken=True)
    assert found.problems == {3: problem}
    assert found.classes[3] == ""
    missing = predictor.predict([row | ({name: ""} if i in values else {}) for i, row in enumerate(rows)])
    np.testing.assert_array_equal(found.probabilities[4:], missing.probabilities[4:])


@pytest.mark.needs("table")
@pytest.mark.parametrize("block", [1 << 9, 1 << 24], ids=["many blocks", "one block"])
def test_rows_with_too_many_or_too_few_columns(block, table, tmp_path, monkeypatch):
    folder, test = table
    header, *rows = test.read_text(encoding="utf-8").splitlines()
    broken = {0, 7, 8, 9, 50, len(rows) - 1}
    lines = [f"{row},more" if i in broken else row for i, row in enumerate(rows)]
    lines[8] = "1"
    (tmp_path / "broken.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    monkeypatch.setattr("datamodules.parts.table_files.BLOCK_BYTES", block)
    with pytest.raises(UserError, match="INPUT: 1: 6 columns; the file has 5; --skip-broken leaves its class empty"):
        predict.main([str(folder), str(tmp_path / "broken.csv")])
    found = {}
    for source, options in ((test, []), (tmp_path / "broken.csv", ["--skip-broken"])):
        output = tmp_path / f"{source.stem}_out.csv"
        assert predict.main([str(folder), str(source), "--output", str(output), *options]) == 0
        found[source] = rows_of(output)
    for i, (whole, row) in enumerate(zip(*found.values(), strict=True)):
        assert row["row"] == str(i + 1)
        assert row["problem"] == (f"{1 if i == 8 else 6} column{'s' * (i != 8)}; the file has 5" if i in broken else "")
        assert row["predicted"] == ("" if i in broken else whole["predicted"])


@pytest.mark.needs("table")
@pytest.mark.slow
def test_several_processes_keep_the_order(table, tmp_path, monkeypatch):
    folder, test = table
    header, *rows = test.read_text(encoding="utf-8").splitlines()
    (tmp_path / "many.csv").write_text("\n".join([header, *rows * 100]) + "\n", encoding="utf-8")
    monkeypatch.setattr("datamodules.parts.table_files.BLOCK_BYTES", 1 << 14)
    for processes in ("1", "2"):
        argv = ["--output", str(tmp_path / f"{processes}.csv"), "--processes", processes]
        assert predict.main([str(folder), str(tmp_path / "many.csv"), *argv]) == 0
    one, two = (rows_of(tmp_path / f"{processes}.csv") for processes in "12")
    assert [row["row"] for row in two] == [str(number) for number in range(1, 100 * len(rows) + 1)]
    for left, right in zip(one, two, strict=True):
        assert left["predicted"] == right["predicted"]
        assert float(left["probability"]) == pytest.approx(float(right["probability"]), abs=1e-6)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.needs("table")
def test_an_interrupted_prediction_goes_on(suffix, table, tmp_path, monkeypatch, capsys):
    folder, test = table
    np.save(tmp_path / "rows.npy", next(load(folder).open(test).parts).inputs)
    monkeypatch.setattr("datamodules.parts.new_inputs.ARRAY_BYTES", 200)
    options = [str(folder), str(tmp_path / "rows.npy"), "--output"]
    assert predict.main([*options, str(tmp_path / f"whole{suffix}")]) == 0
    written, original = [], Output.write

    def write(self, found):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(len(found))
        original(self, found)

    path = tmp_path / f"out{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", write)
        assert predict.main([*options, str(path)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted after {sum(written)} rows; go on with --resume"
    assert not path.exists()
    with (tmp_path / f"out{suffix}.part").open("ab") as file:
        file.write(b"half of a row")  # of a process that was killed while it wrote
    assert predict.main([*options, str(path), "--resume"]) == 0
    assert path.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    with pytest.raises(UserError, match=r"--resume: there is no interrupted .*part; leave it out"):
        predict.main([*options, str(path), "--resume"])


@pytest.mark.needs("table")
def test_a_prediction_of_another_input_does_not_go_on(table, tmp_path, monkeypatch):
    folder, test = table
    source, path = tmp_path / "new.csv", tmp_path / "out.csv"
    shutil.copy(test, source)
    with monkeypatch.context() as patch:
        patch.setattr(Output, "_finish", lambda self: None)
        assert predict.main([str(folder), str(source), "--output", str(path)]) == 0
    with source.open("a", encoding="utf-8") as file:
        file.write(test.read_text(encoding="utf-8").splitlines()[-1] + "\n")
    with pytest.raises(UserError, match="was begun with another input, model or option"):
        predict.main([str(folder), str(source), "--output", str(path), "--resume"])


def test_features_are_read_by_name_or_from_an_array(tmp_path):
    folder = run(tmp_path / "runs", "--config", IRIS, *QUICK)
    predictor = load(folder)
    found = predictor.predict(PROJECT / "datamodules/iris.csv")
    assert len(found) == 150
    (inputs, _), _ = predictor.datamodule.load()
    rows = rows_of(PROJECT / "datamodules/iris.csv")
    flowers = np.array([[float(value) for value in list(row.values())[:4]] for row in rows])
    np.testing.assert_array_equal(predictor.predict(flowers).probabilities, found.probabilities)
    np.testing.assert_array_equal(predictor.predict(torch.tensor(flowers)).probabilities, found.probabilities)
    assert inputs.shape[1:] == flowers.shape[1:]
    with torch.no_grad():
        expected = predictor.model(torch.tensor(flowers).float()).softmax(1)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


@pytest.mark.needs("text", "bert")
def test_texts_are_predicted_in_the_order_of_the_file(small_data, tmp_path, capsys):
    files.write_texts(small_data / "text/test.tsv", 60, seed=1)
    data = [f"data.train={small_data}/text/train.tsv", f"data.test={small_data}/text/test.tsv", "data.vocab_size=200"]
    model = ["model.hidden_size=16", "model.num_layers=1", "model.num_heads=2", f"data.cache={tmp_path}/cache"]
    folder = run(tmp_path / "runs", "--config", "configs/text_bert.yaml", *data, *model, *QUICK)
    rows = [line.split("\t") for line in (small_data / "text/test.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    predictor = load(folder)
    found = predictor.predict(small_data / "text/test.tsv")
    column = predictor.datamodule.columns.text
    assert np.float32(np.mean([a == b[-1] for a, b in zip(found.classes, rows, strict=True)])) == np.float32(
        figures(folder)["test/accuracy"]
    )
    texts = [row[0] for row in rows]
    np.testing.assert_allclose(predictor.predict(texts).probabilities, found.probabilities, atol=1e-6)
    np.testing.assert_allclose(predictor.predict(texts[7:8]).probabilities, found.probabilities[7:8], atol=1e-6)
    lines = [json.dumps(row) for row in ({column: "fine"}, {"other": 1}, {column: ""})]
    (tmp_path / "new.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"^INPUT: 2: .*has no column"):
        predict.main([str(folder), str(tmp_path / "new.jsonl")])
    assert (
        predict.main([str(folder), str(tmp_path / "new.jsonl"), "--skip-broken", "--output", f"{tmp_path}/new.csv"])
        == 0
    )
    first, second, third = rows_of(tmp_path / "new.csv")
    assert [bool(row["predicted"]) for row in (first, second, third)] == [True, False, False]
    assert not first["problem"]
    assert "has no column" in second["problem"]
    assert "no text in column" in third["problem"]


@pytest.mark.needs("pictures")
def test_pictures_are_predicted_by_file(small_data, tmp_path):
    data = [f"data.train={small_data}/pictures", "data.image_size=16", f"data.cache={tmp_path}/cache"]
    folder = run(
        tmp_path / "runs",
        "--config",
        "configs/pictures_cnn.yaml",
        *data,
        *QUICK,
        "model.widths=[8]",
        "data.batch_size=16",
    )
    (small_data / "pictures/cat/0000-broken.png").write_bytes(b"no picture")
    output = tmp_path / "out.csv"
    with pytest.raises(UserError, match=r"0000-broken.png: cannot identify image file; --skip-broken leaves its class"):
        predict.main([str(folder), str(small_data / "pictures"), "--output", str(output)])
    assert not output.exists()
    assert predict.main([str(folder), str(small_data / "pictures"), "--output", str(output), "--skip-broken"]) == 0
    found = rows_of(output)
    assert [row["file"] for row in found] == sorted(row["file"] for row in found)
    assert len(found) == 121
    assert [row["predicted"] == "" for row in found] == ["broken" in row["file"] for row in found]
    predictor = load(folder)
    predictor.datamodule.cache = tmp_path / "cache"
    one = next(row for row in found if "broken" not in row["file"])
    expected = predictor.predict([one["file"]])
    assert expected.classes == [one["predicted"]]
    assert np.float32(one["probability"]) == pytest.approx(expected.probabilities.max(), abs=1e-6)
    (tmp_path / "list.txt").write_text(f"{one['file']}\n\n", encoding="utf-8")
    assert predictor.predict(tmp_path / "list.txt").classes == expected.classes


MISTAKES = [
    (["RUN", "missing.csv"], "INPUT: missing.csv does not exist"),
    (["RUN"], "the following arguments are required: INPUT"),
    (["no_such_run", "TEST"], "matches no run below"),
    (["RUN/checkpoints/none.ckpt", "TEST"], "none.ckpt: does not exist; give RUN/checkpoints/best.ckpt"),
    (["RUN", "TEST", "--output", "a.xlsx"], "--output: a.xlsx has an unknown format; use .csv, .jsonl, .parquet"),
    (["RUN", "TEST", "--output", "no/folder/a.csv"], "--output: the folder no/folder does not exist"),
    (["RUN", "TEST", "--output", "TEST"], "is the input"),
    (["RUN", "TEST", "--top", "0"], "--top: 0 is below 1"),
    (["RUN", "TEST", "--top", "two"], "argument --top: invalid int value: 'two'"),
    (["RUN", "TEST", "--processes", "0"], "--processes: 0 is not from 1 to 256"),
    (["RUN", "TEST", "--resume"], "--resume: needs a file as INPUT and --output"),
    (["RUN", "TEST", "--device", "gpu7"], "--device: gpu7 is not a device of this machine"),
    (["RUN", "FOLDER"], "is a folder; give a .csv"),
    (["RUN", "COLUMNS"], "has no column"),
    (["RUN", "EMPTY"], "is empty"),
    (["RUN", "BINARY"], "is not a text file"),
    (["RUN", "SHAPE"], "has the shape (3, 99); the model takes (N, "),
    (["RUN", "PICKLE"], "is not an array that numpy.save has written"),
    (["RUN", "TEXTS"], "has values of type <U1; numbers are needed"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
@pytest.mark.needs("table")
def test_a_mistake_is_one_line(arguments, message, table, tmp_path, monkeypatch):
    folder, test = table
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(b"a,b\n\0\0\n")
    np.save(tmp_path / "shape.npy", np.zeros((3, 99)))
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04}.")
    np.save(tmp_path / "texts.npy", np.full((3, len(load(folder).spec.feature_names)), "a"))
    names = {"RUN": folder, "TEST": test, "FOLDER": tmp_path}
    for name in ("columns.csv", "empty.csv", "binary.csv", "shape.npy", "pickle.npy", "texts.npy"):
        names[name.partition(".")[0].upper()] = tmp_path / name
    argv = [str(names.get(word, word.replace("RUN/", f"{folder}/"))) for word in arguments]
    with pytest.raises(UserError) as caught:
        predict.main(argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert test.read_text(encoding="utf-8")


@pytest.mark.needs("table")
@pytest.mark.slow
def test_the_command_reads_the_standard_input(table):
    folder, test = table
    command = [sys.executable, "predict.py", str(folder), "-", "--top", "1"]
    done = subprocess.run(command, input=test.read_bytes(), capture_output=True, cwd=PROJECT, check=True)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "row,predicted,probability"
    assert len(lines) == len(rows_of(test)) + 1
    assert done.stderr == b""


@pytest.mark.needs("table")
def test_a_mistake_of_the_command_ends_with_code_2(table):
    done = subprocess.run([sys.executable, "predict.py", str(table[0]), "missing"], capture_output=True, cwd=PROJECT)
    assert done.returncode == 2
    assert done.stderr == b"error: command line: INPUT: missing does not exist\n"
