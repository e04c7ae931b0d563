"""Exports: files that agree with the checkpoint, broken files that are refused, the code beside them, and mistakes."""

import ast
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

import export
from engine.config.signatures import PROJECT
from engine.contracts import UserError
from engine.inference import export as formats
from engine.inference import model_card, quantization
from engine.inference.predictor import load
from engine.inference.quantization import Measurement
from engine.inference.trained_run import find_trained_run
from tests import files
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

QUICK = ["trainer.max_epochs=1", "trainer.precision=32-true", *WITHOUT_PICTURES]
FORMATS = {"onnx": "model.onnx", "torch_export": "model.pt2", "safetensors": "model.safetensors"}


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    os.chdir(PROJECT)
    return run(tmp_path_factory.mktemp("iris"), "--config", IRIS, *QUICK, "trainer.max_epochs=20")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A run of an ensemble on a table with missing values."""
    os.chdir(PROJECT)
    root = tmp_path_factory.mktemp("table")
    files.write_table(root / "train.csv", 300)
    data = [f"data.train={root}/train.csv", "data.target=label", "callbacks.early_stopping=null"]
    model = ["model.hidden_sizes=[16]", "model.num_members=2"]
    return run(root / "runs", "--config", "configs/table_mlp.yaml", *data, *QUICK, *model)


@pytest.fixture
def mnist(small_data, tmp_path):
    """A convolutional network that was trained in bf16."""
    options = [f"data.root={small_data}", "model.widths=[32, 32]", "trainer.max_epochs=1", *WITHOUT_PICTURES]
    return run(tmp_path / "runs", "--config", "configs/mnist_cnn.yaml", *options, "trainer.precision=bf16-mixed")


@pytest.fixture
def texts(small_data, tmp_path):
    data = [f"data.train={small_data}/text/train.tsv", "data.vocab_size=200", f"data.cache={tmp_path}/cache"]
    model = ["model.hidden_size=16", "model.num_layers=1", "model.num_heads=2"]
    return run(tmp_path / "runs", "--config", "configs/text_bert.yaml", *data, *model, *QUICK)


@pytest.fixture
def copied(iris, tmp_path):
    """A copy of the run, so that a test may change it."""
    return shutil.copytree(iris, tmp_path / "iris_mlp/copy")


def exported(folder: Path, to: str = "onnx", *options: str) -> Path:
    """Export a run. Returns the file."""
    assert export.main([str(folder), "--to", to, *options]) == 0
    return folder / "exports" / FORMATS[to]


def logits_of(path: Path, model: torch.nn.Module, inputs: object) -> torch.Tensor:
    with torch.no_grad():
        return formats.read(path, model)(inputs)


def run_code(page: Path, monkeypatch, capsys) -> list[str]:
    """Run the code of a page in its folder. Returns the classes that it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(page.parent)
    capsys.readouterr()
    exec(code, {})
    return eval(capsys.readouterr().out)


def model_of(folder: Path) -> torch.nn.Module:
    return formats.load_model(find_trained_run(str(folder)))


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_has_the_logits_of_the_checkpoint_for_every_batch_size(to, copied, capsys):
    path, model = exported(copied, to), model_of(copied)
    for size in (1, 2, 5, 64):
        inputs = 5 * torch.rand(size, 4)
        expected = model(inputs)
        assert logits_of(path, model, inputs).dtype == torch.float32
        torch.testing.assert_close(logits_of(path, model, inputs), expected, atol=1e-5, rtol=0)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.json", f"{path.name}.md"]
    out = capsys.readouterr().out
    assert re.search(r"30 rows, largest difference of logits \S+, equal classes 100.00%, accuracy", out)
    comparison = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))["comparison"][path.name]
    assert comparison["accuracy"] == pytest.approx(figures(copied)["test/accuracy"])
    assert comparison["num_rows"] == 30


def metadata_of(path: Path) -> dict:
    if path.suffix == ".onnx":
        texts = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            texts = file.metadata()
    else:
        contents = {"metadata.json": ""}
        torch.export.load(path, extra_files=contents)
        return json.loads(contents["metadata.json"])
    return {key: json.loads(text) if text[0] in "[{" else text for key, text in texts.items()}


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch.export.load of torch 2.9
@pytest.mark.parametrize("to", FORMATS)
def test_the_metadata_is_in_the_file_and_beside_it(to, copied):
    path = exported(copied, to)
    inside, beside = metadata_of(path), json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    assert {key: beside[key] for key in inside if key != "model_arguments"} == {
        key: value for key, value in inside.items() if key != "model_arguments"
    }
    assert inside["class_names"] == ["setosa", "versicolor", "virginica"]
    assert inside["run"] == "iris_mlp/copy"
    assert inside["inputs"][0]["shape"] == ["batch", 4]
    assert inside["feature_names"][0] == "sepal length"
    assert inside["normalization"]["mean"] == pytest.approx(model_of(copied).input_mean.tolist())
    assert inside["test_metrics"]["test/accuracy"] == figures(copied)["test/accuracy"]
    version = torch.__version__.partition("+")[0]  # PyPI's package of 2.9.0+cu128 has the version 2.9.0
    assert inside["versions"]["torch"].partition("+")[0] == version


@pytest.mark.parametrize("to", FORMATS)
def test_the_code_beside_a_file_runs(to, copied, monkeypatch, capsys):
    path = exported(copied, to)
    model = model_of(copied)
    expected = model(torch.zeros(2, 4)).argmax(1).tolist()
    found = run_code(path.with_name(f"{path.name}.md"), monkeypatch, capsys)
    assert found == [model.class_names[number] for number in expected]


@pytest.mark.needs("table")
@pytest.mark.parametrize("to", FORMATS)
def test_a_table_takes_raw_rows(to, table, monkeypatch, capsys):
    path, predictor = exported(table, to), load(table)
    columns = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))["columns"]
    inputs = torch.full((4, len(columns)), torch.nan)  # missing values
    inputs[1] = 1
    inputs[2] = 1e30
    inputs[3] = -7  # no category has this code
    torch.testing.assert_close(logits_of(path, predictor.model, inputs), predictor.model(inputs), atol=1e-5, rtol=0)
    row = {column["name"]: next(iter(column["categories"]), 1.5) for column in columns[:3]}
    others = {column["name"]: "" for column in columns[3:]}
    expected = predictor.predict([{**{name: str(value) for name, value in row.items()}, **others}]).classes
    assert run_code(path.with_name(f"{path.name}.md"), monkeypatch, capsys) == expected


@pytest.mark.needs("table")
@pytest.mark.slow
def test_the_code_has_any_names_of_columns(table):
    path = exported(table)
    description = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    columns = [{"name": "price in $", "categories": []}, {"name": 'a "b"\n', "categories": ["$5", "\\"]}]
    page = model_card.page(model_of(table), description | {"columns": columns}, path.name)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (row,) = re.findall(r"row = (.*)  #", code)
    assert ast.literal_eval(row) == {"price in $": 1.5, 'a "b"\n': "$5"}
    ast.parse(code)


@pytest.mark.parametrize("to", FORMATS)
def test_pictures_are_uint8_and_the_precision_is_32_bits(to, mnist, monkeypatch, capsys):
    path, model = exported(mnist, to), model_of(mnist)
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(logits_of(path, model, images), model(images), atol=1e-5, rtol=0)
    if to == "onnx":
        (value,) = onnxruntime.InferenceSession(path).get_inputs()
        assert (value.name, value.type, value.shape) == ("inputs", "tensor(uint8)", ["batch", 1, 28, 28])
    assert len(run_code(path.with_name(f"{path.name}.md"), monkeypatch, capsys)) == 2


@pytest.mark.needs("text", "bert")
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.slow
def test_texts_have_any_length_and_come_from_the_tokenizer_beside_the_file(to, texts, monkeypatch, capsys):
    path, predictor = exported(texts, to), load(texts)
    for shape in ((1, 3), (2, 17), (5, 5)):
        inputs = {"input_ids": torch.randint(5, 100, shape), "attention_mask": torch.ones(shape, dtype=torch.int64)}
        inputs["attention_mask"][0, -1] = 0
        expected = predictor.model(inputs)
        torch.testing.assert_close(logits_of(path, predictor.model, inputs), expected, atol=1e-5, rtol=0)
    if to == "onnx":
        shapes = {value.name: value.shape for value in onnxruntime.InferenceSession(path).get_inputs()}
        assert shapes == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}
    expected = predictor.predict(["a text", "a longer text"]).classes
    assert run_code(path.with_name(f"{path.name}.md"), monkeypatch, capsys) == expected


@pytest.mark.needs("bert")
@pytest.mark.parametrize("config", ["iris_bert", "mnist_bert"])
@pytest.mark.slow
def test_bert_on_features_and_pictures(config, small_data, tmp_path):
    model = ["model.hidden_size=16", "model.num_layers=1", "model.num_heads=2"]
    data = [f"data.root={small_data}"] if config == "mnist_bert" else []
    exported(run(tmp_path / "runs", "--config", f"configs/{config}.yaml", *QUICK, *model, *data))


@pytest.mark.needs("text", "bert")
@pytest.mark.slow
def test_pairs_of_texts_have_token_types(small_data, tmp_path):
    rows = [f"first {i}\tsecond {i % 7}\t{i % 2}" for i in range(80)]
    source = small_data / "pairs.tsv"
    source.write_text("\n".join(["text\tpair\tlabel", *rows]) + "\n", encoding="utf-8")
    data = [f"data.train={source}", "data.text_pair_column=pair", "data.vocab_size=100", f"data.cache={tmp_path}/cache"]
    model = ["model.hidden_size=16", "model.num_layers=1", "model.num_heads=2"]
    folder = run(tmp_path / "runs", "--config", "configs/text_bert.yaml", *data, *model, *QUICK)
    inputs = onnxruntime.InferenceSession(exported(folder)).get_inputs()
    assert {value.name for value in inputs} == {"input_ids", "attention_mask", "token_type_ids"}


def shifted(write):
    """A writer of a model with another normalization."""

    def write_wrong(model, *others):
        wrong = copy.deepcopy(model)
        wrong.input_mean += 0.01
        write(wrong, *others)

    return write_wrong


@pytest.mark.parametrize("to", FORMATS)
def test_a_wrong_file_is_refused_and_nothing_is_left(to, copied, monkeypatch):
    before = sorted(copied.rglob("*"))
    suffix = Path(FORMATS[to]).suffix
    monkeypatch.setitem(formats.WRITERS, suffix, shifted(formats.WRITERS[suffix]))
    message = r"does not agree with the checkpoint: logits differ by up to 0\.\d+ \(tolerance 0.0001\), .* 30 test rows"
    with pytest.raises(UserError, match=message):
        export.main([str(copied), "--to", to])
    assert sorted(copied.rglob("*")) == before


def test_a_wrong_file_does_not_replace_an_earlier_one(copied, monkeypatch):
    path = exported(copied)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    monkeypatch.setitem(formats.WRITERS, ".onnx", shifted(formats.WRITERS[".onnx"]))
    with pytest.raises(UserError, match="does not agree"):
        export.main([str(copied), "--to", "onnx"])
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.parametrize("size", [1, 7])
def test_a_file_that_is_wrong_for_one_batch_size_is_refused(size, copied, monkeypatch):
    def read(path, model):
        return lambda inputs: model(inputs) + 0.01 * (len(inputs) == size)

    monkeypatch.setitem(formats.READERS, ".onnx", read)
    with pytest.raises(UserError, match=r"differ by up to 0\.01 .* 100.00% of 30 test rows have the same class"):
        export.main([str(copied), "--to", "onnx"])


@pytest.mark.parametrize("rows", [slice(None, 1), slice(-1, None)])
def test_the_first_and_the_last_row_count(rows, copied, monkeypatch):
    def read(path, model):
        def logits(inputs):
            found = model(inputs)
            if len(inputs) == 30:
                found[rows] += 0.01
            return found

        return logits

    monkeypatch.setitem(formats.READERS, ".onnx", read)
    with pytest.raises(UserError, match=r"differ by up to 0\.01"):
        export.main([str(copied), "--to", "onnx"])


def test_logits_that_are_not_numbers_are_refused(copied, monkeypatch):
    monkeypatch.setitem(formats.READERS, ".onnx", lambda path, model: lambda inputs: model(inputs) * torch.nan)
    with pytest.raises(UserError, match="logits differ by up to nan"):
        export.main([str(copied), "--to", "onnx", "--tolerance", "inf"])


def test_tied_classes_may_change_places():
    expected = torch.tensor([[1.0, 1.0], [3.0, 0.0]])
    found = torch.tensor([[1.0, 1.00001], [3.0, 0.0]])
    batches = [(torch.arange(2), torch.tensor([0, 0]))]
    result = formats.compare(lambda rows: expected[rows], lambda rows: found[rows], batches, 1e-4)
    assert (result.equal_classes, result.num_wrong, result.checkpoint_accuracy, result.accuracy) == (0.5, 0, 1, 0.5)
    formats.check_agreement(result, 1e-4)
    strict = formats.compare(lambda rows: expected[rows], lambda rows: found[rows], batches, -1.0)
    assert strict.num_wrong == 1
    with pytest.raises(UserError, match=r"50\.00% of 2 test rows have the same class"):
        formats.check_agreement(strict, 1e-4)


def test_the_rest_of_a_killed_export_disappears(copied):
    rest = copied / "exports/model.onnx.part/model.onnx"
    rest.parent.mkdir(parents=True)
    rest.write_bytes(b"half")
    assert not exported(copied).with_name("model.onnx.part").exists()


@pytest.fixture
def speeds(monkeypatch):
    """The speeds that are measured: of PyTorch, fp32 and int8."""
    measured = [1.0, 2.0, 3.0]
    original = quantization.rows_per_second

    def rows_per_second(*arguments):
        assert min(original(*arguments)) > 0
        return measured

    monkeypatch.setattr(quantization, "rows_per_second", rows_per_second)
    return measured


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_convolutions_are_quantized_statically(mnist, speeds, capsys):
    path = exported(mnist, "onnx", "--int8", "--max-loss", "100")
    int8 = path.with_name("model.int8.onnx")
    assert "QuantizeLinear" in operators(int8)
    assert int8.stat().st_size < path.stat().st_size
    assert metadata_of(int8) | metadata_of(path) == metadata_of(int8)  # the quantization adds its own
    found = json.loads(int8.with_name(f"{int8.name}.json").read_text(encoding="utf-8"))
    assert [*found["measurements"]] == ["PyTorch", "model.onnx", "model.int8.onnx"]
    assert [values["rows_per_second"] for values in found["measurements"].values()] == speeds
    assert found["measurements"]["model.int8.onnx"]["num_bytes"] == int8.stat().st_size
    assert re.search(r"model.int8.onnx +\d+\.\d+% +0\.\d\d +3\n", capsys.readouterr().out)
    names = {f"{name}{suffix}" for name in (path.name, int8.name) for suffix in ("", ".json", ".md")}
    assert {file.name for file in path.parent.iterdir()} == names


def test_other_networks_are_quantized_dynamically(copied, speeds):
    int8 = exported(copied, "onnx", "--int8", "--max-loss", "100").with_name("model.int8.onnx")
    assert "DynamicQuantizeLinear" in operators(int8)


def test_a_slow_quantized_file_is_refused_and_the_other_file_stays(copied, speeds):
    exported(copied, "onnx", "--int8", "--max-loss", "100")
    speeds[2] = 1.9
    with pytest.raises(
        UserError, match=r"--int8: the int8 model is slower on this machine \(2 rows per second, and fp32 has 2\)"
    ):
        export.main([str(copied), "--to", "onnx", "--int8", "--max-loss", "100"])
    names = [file.name for file in (copied / "exports").iterdir()]
    assert sorted(names) == ["model.onnx", "model.onnx.json", "model.onnx.md"]


def test_an_inexact_quantized_file_is_refused(copied, speeds, monkeypatch):
    def quantize(source, path, batches):
        wrong = model_of(copied)
        wrong.input_mean += 100
        formats.write(wrong, torch.zeros(2, 4), path, {})

    monkeypatch.setattr(quantization, "quantize", quantize)
    with pytest.raises(
        UserError, match=r"--int8: the int8 model loses \d+\.\d\d percentage points of accuracy, and --max-loss is 0.5"
    ):
        export.main([str(copied), "--to", "onnx", "--int8"])
    assert not (copied / "exports/model.int8.onnx").exists()


def test_the_bounds_of_a_quantized_file():
    fp32 = Measurement(0.9, 100, 50.0)
    assert quantization.refusal(fp32, Measurement(0.896, 50, 50.0), 0.5) is None
    assert quantization.refusal(fp32, Measurement(0.896, 50, 49.9), 0.5)
    assert quantization.refusal(fp32, Measurement(0.894, 50, 50.0), 0.5)
    assert quantization.refusal(fp32, replace(fp32, accuracy=0.95), 0.0) is None


def test_training_rows_for_int8_are_not_augmented_and_depend_on_the_seed(mnist):
    run = find_trained_run(str(mnist))
    datamodule = formats.load_data(run)
    known = {bytes(row.numpy()) for row in datamodule.training_inputs()}
    batches = list(quantization.calibration_inputs(quantization.training_batches(datamodule, 0)))
    rows = np.concatenate([batch["inputs"] for batch in batches])
    assert min(quantization.CALIBRATION_ROWS, len(known)) <= len(rows) + 256
    assert {bytes(row) for row in rows} <= known
    again = list(quantization.calibration_inputs(quantization.training_batches(datamodule, 0)))
    np.testing.assert_array_equal(np.concatenate([batch["inputs"] for batch in again]), rows)


EARLY = [
    (["RUN"], "the following arguments are required: --to"),
    (["RUN", "--to", "tflite"], "argument --to: invalid choice: 'tflite'"),
    (["--to", "onnx"], "the following arguments are required: RUN"),
    (["RUN", "--to", "torch_export", "--int8"], "--int8: is not possible for torch_export; use --to onnx"),
    (["RUN", "--to", "onnx", "--tolerance", "-1"], "--tolerance: -1.0 is not 0 or a positive number"),
    (["RUN", "--to", "onnx", "--tolerance", "nan"], "--tolerance: nan is not 0 or a positive number"),
    (["RUN", "--to", "onnx", "--tolerance", "small"], "argument --tolerance: invalid float value: 'small'"),
    (["RUN", "--to", "onnx", "--max-loss", "-0.1"], "--max-loss: -0.1 is not 0 or a positive number"),
    (["RUN", "--to", "onnx", "--output", "no/a.onnx"], "--output: the folder no does not exist"),
    (["RUN", "--to", "onnx", "--output", "a.pt2"], "--output: a.pt2 does not end with .onnx"),
    (["RUN", "--to", "onnx", "--output", "FOLDER"], "is a folder"),
    (["no_such_run", "--to", "onnx"], "matches no run below"),
    (["RUN/checkpoints/none.ckpt", "--to", "onnx"], "does not exist; give RUN/checkpoints/best.ckpt"),
    (["RUN", "--to", "onnx", "--in8"], "unrecognized arguments: --in8"),
]


@pytest.mark.parametrize(("arguments", "message"), EARLY, ids=[message for _, message in EARLY])
def test_a_mistake_is_one_line(arguments, message, iris, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    names = {"FOLDER": str(tmp_path / "folder.onnx")}
    with pytest.raises(UserError) as caught:
        export.main([names.get(word, word.replace("RUN", str(iris))) for word in arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(iris.rglob("*.part"))


@pytest.mark.parametrize(("to", "package"), [("onnx", "onnxscript"), ("safetensors", "safetensors")])
def test_a_missing_package_is_named_with_its_extra(to, package, iris, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == package else name)
    message = rf"--to: {to} needs the package {package}; run: pip install -e '\.\[export\]' -c constraints.txt"
    with pytest.raises(UserError, match=message):
        export.main([str(iris), "--to", to])


def test_a_damaged_checkpoint_is_refused(copied):
    path = copied / "checkpoints/best.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"best.ckpt is damaged"):
        export.main([str(copied), "--to", "onnx"])
    assert not (copied / "exports").exists()


@pytest.mark.needs("table")
def test_data_that_is_gone_is_named(table, tmp_path):
    folder = shutil.copytree(table, tmp_path / "table_mlp/copy", ignore=shutil.ignore_patterns("exports"))
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(re.sub(r"train: .*train.csv", "train: gone.csv", config), encoding="utf-8")
    with pytest.raises(UserError, match=r"data.train: .*gone.csv"):
        export.main([str(folder), "--to", "onnx"])
    assert not (folder / "exports").exists()


def test_a_folder_that_cannot_be_written(copied):
    (copied / "exports").write_text("a file")
    with pytest.raises(UserError, match=r"--output: .*exports/model.onnx cannot be written \(File exists\)"):
        export.main([str(copied), "--to", "onnx"])


@pytest.mark.slow
def test_the_command_prints_only_its_own_lines(copied, tmp_path):
    output = tmp_path / "flowers.onnx"
    command = [sys.executable, "export.py", str(copied), "--to", "onnx", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, cwd=PROJECT, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(" ")[0] for line in done.stdout.splitlines()] == ["export", "compare", "", "wrote"]
    assert output.exists()


def test_a_mistake_is_found_without_torch(iris):
    code = f"""
import sys, export
from engine.contracts import UserError
try:
    export.main(["{iris}", "--to", "safetensors", "--int8"])
except UserError:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=PROJECT, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_mistake_of_the_command_ends_with_code_2(iris):
    command = [sys.executable, "export.py", str(iris), "--to", "onnx", "--tolerance", "-1"]
    done = subprocess.run(command, capture_output=True, cwd=PROJECT)
    assert done.returncode == 2
    assert done.stderr == b"error: command line: --tolerance: -1.0 is not 0 or a positive number\n"
