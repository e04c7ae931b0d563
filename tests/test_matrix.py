"""Every model with every data set: trained for some steps where they fit, else refused before torch is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import train
from engine.config.components import component_names, find_component
from engine.config.signatures import PROJECT
from tests import files
from tests.runs import figures, run

FITS = {
    "mlp": {"iris", "mnist", "cifar", "pictures", "table"},
    "cnn": {"mnist", "cifar", "pictures"},
    "bert": {"iris", "mnist", "cifar", "pictures", "table", "text"},
}
SMALLER = {  # at its own size BERT takes seconds for three steps
    "bert": ["model.hidden_size=32", "model.num_layers=1", "model.num_heads=2"],
    "cnn": ["model.widths=[8, 8]"],
}
PATCHES = {"mnist": ["model.patch_size=14"], "cifar": ["model.patch_size=16"], "pictures": ["model.patch_size=16"]}
# a project may have dropped some of them
FITS = {model: {data for data in fits if (PROJECT / f"datamodules/{data}.py").exists()} for model, fits in FITS.items()}
FITS = {model: fits for model, fits in FITS.items() if (PROJECT / f"lit_models/{model}.py").exists()}
PAIRS = [(model, data) for model in sorted(FITS) for data in sorted(set.union(*FITS.values()))]


def config(root: Path, model: str, data: str) -> Path:
    """A file that says no more than what is to be put together."""
    path = root / f"{data}_{model}.yaml"
    options = "".join(f"  {key}: {value}\n" for key, value in files.options(data, root / "data").items())
    rest = "trainer:\n  max_steps: 3\n  limit_train_batches: 3\n  precision: 32-true\n"
    text = f"data:\n  name: {data}\n{options}model:\n  name: {model}\n"
    path.write_text(f"{text}optimizer:\n  name: adam\nschedule:\n  name: constant\n{rest}", encoding="utf-8")
    return path


def test_the_table_is_what_the_classes_say():
    for model in FITS:
        accepts = find_component("model", model).constants["accepts"]
        fitting = {data for _, data in PAIRS if find_component("data", data).constants["modality"] in accepts}
        assert fitting == FITS[model]


@pytest.mark.parametrize(("model", "data"), [pair for pair in PAIRS if pair[1] in FITS[pair[0]]])
def test_pairs_that_fit_train(model, data, small_data, tmp_path):
    smaller = [*SMALLER.get(model, []), *(PATCHES.get(data, []) if model == "bert" else [])]
    done = run(tmp_path / "runs", "--config", str(config(tmp_path, model, data)), *smaller)
    assert figures(done)["steps"] == 3
    assert 0 <= figures(done)["test/accuracy"] <= 1
    assert (done / "checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize(("model", "data"), [pair for pair in PAIRS if pair[1] not in FITS[pair[0]]])
def test_pairs_that_do_not_fit_are_one_line_that_lists_what_would(model, data, tmp_path, capsys):
    path = config(tmp_path, model, data)
    assert train.main(["--config", str(path)]) == 2
    message = capsys.readouterr().err
    takes = " or ".join(find_component("model", model).constants["accepts"])
    modality = find_component("data", data).constants["modality"]
    fitting = ", ".join(
        one for one in component_names("model") if modality in find_component("model", one).constants["accepts"]
    )
    line = 4 + len(files.options(data, tmp_path))
    problem = f"{model} takes {takes}, and {data} is {modality}; models that fit: {fitting}"
    assert message == f"error: {path}:{line}: model.name: {problem}\n"


def test_refusals_come_before_torch_is_imported(tmp_path):
    refused = [str(config(tmp_path, model, data)) for model, data in PAIRS if data not in FITS[model]]
    script = (
        "import json, sys, train; codes = [train.main(['--config', one]) for one in json.loads(sys.argv[1])];"
        "sys.exit(codes != [2] * len(codes) or bool({'torch', 'transformers', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(refused)], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(refused) > 0
