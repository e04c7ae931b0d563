"""Loading a correct config: defaults, overrides, types, help texts."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from engine.command_line import parse
from engine.config.components import component_names, section_schema
from engine.config.config import load_config
from engine.config.signatures import PROJECT, read_component
from engine.config.yaml_reader import Value, read_override
from tests.engine.config.test_config_errors import GOOD
from tests.files import shipped_configs

SHIPPED = shipped_configs()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_defaults_come_from_the_constructors(good):
    config = load_config(good)
    assert config["model"]["activation"] == "relu"
    assert config["data.val_fraction"] == 0.1
    assert config["optimizer"] == {
        "name": "sgd", "lr": 0.01, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "fused": None,
    }  # fmt: skip
    assert config["run"] == {
        "root": "runs", "name": None, "monitor": "val/accuracy", "mode": None, "calibrate": True,
        "checkpoint_every_minutes": 10.0,
        "checkpoint_every_steps": None, "timeout_minutes": 10.0, "threads": None,
    }  # fmt: skip


def test_last_override_wins_and_is_remembered(good):
    config = load_config(good, ["optimizer.lr=1", "optimizer.lr=1e-3", "model.hidden_sizes=[3]"])
    assert config["optimizer.lr"] == 0.001
    assert config["model.hidden_sizes"] == [3]
    assert config.where("optimizer.lr") == "command line"
    assert config.where("seed") == f"{good}:1"


def test_a_mapping_is_merged(good):
    config = load_config(
        good, ["callbacks={early_stopping: {monitor: val/loss}}", "callbacks.early_stopping.patience=9"]
    )
    assert config["callbacks"]["early_stopping"]["patience"] == 9
    assert config["callbacks"]["early_stopping"]["monitor"] == "val/loss"


def test_another_name_drops_the_keys_of_the_section(tmp_path):
    """The keys in the file were written for the component that the file names."""
    path = tmp_path / "good.yaml"
    path.write_text(GOOD.replace("name: sgd", "name: sgd\n  momentum: 0.5\n  lr: 7"), encoding="utf-8")
    for overrides in (["optimizer.name=adam"], ["optimizer={name: adam}"]):
        assert load_config(path, overrides)["optimizer.lr"] == 0.001
    assert load_config(path, ["optimizer.lr=2", "optimizer.name=adam"])["optimizer.lr"] == 2
    assert load_config(path, ["optimizer.name=sgd"])["optimizer.lr"] == 7
    assert load_config(path, ["optimizer={lr: 3}"])["optimizer.momentum"] == 0.5
    assert load_config(path, ["optimizer.name=adam", "optimizer.name=sgd"])["optimizer.lr"] == 7
    assert load_config(path, ["optimizer=null", "optimizer.name=sgd"])["optimizer.lr"] == 0.01


def test_null_switches_a_callback_off(good):
    config = load_config(good, ["callbacks.confusion_matrix=null"])
    assert config["callbacks"]["confusion_matrix"] is None
    assert config["callbacks"]["progress_line"] == {"live": None}
    assert config["callbacks"]["pr_curves"] == {"max_classes": 20, "every_seconds": 10.0}  # inherited keys, too
    assert "histograms" not in config["callbacks"]  # only on request


def test_integers_become_floats_and_nothing_else_changes(good):
    config = load_config(good, ["optimizer.lr=1", "run.name=7", "trainer.limit_val_batches=1"])
    assert (config["optimizer.lr"], type(config["optimizer.lr"])) == (1.0, float)
    assert config["run.name"] == "7"
    assert (config["trainer.limit_val_batches"], type(config["trainer.limit_val_batches"])) == (1, int)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1e-3", 1e-3), ("1.", 1.0), (".5", 0.5), ("-2", -2), ("+3", 3), ("0", 0), ("1E5", 1e5), ("true", True), ("~", None),
     ("'yes'", "yes"), ("2026-01-01", "2026-01-01"), ("a=b", "a=b"), ("[1, [2]]", [1, [2]])],
)  # fmt: skip
def test_plain_scalars(text, expected):
    key, node = read_override(f"x.y={text}")
    assert key == "x.y"
    assert isinstance(node, Value)
    assert (node.data, type(node.data)) == (expected, type(expected))


def test_yes_is_a_boolean_for_a_boolean_key(good):
    assert load_config(good, ["optimizer.nesterov=yes"])["optimizer.nesterov"] is True
    assert load_config(good, ["optimizer.nesterov=off"])["optimizer.nesterov"] is False


def test_references_to_other_keys(good):
    config = load_config(good, ["data.split_seed=${seed}", "run.name=lr-${optimizer.lr}", "optimizer.lr=0.5"])
    assert config["data.split_seed"] == 3
    assert config["run.name"] == "lr-0.5"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_resolved_config_is_read_back_without_changes(path, tmp_path):
    config = load_config(path, ["run.name='yes'", "callbacks.confusion_matrix=null"])
    again = tmp_path / "config.yaml"
    again.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(again).values == config.values


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_config_is_short_and_opens_with_its_command(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# python train.py --config configs/{path.name}"
    assert lines[1].startswith("# test accuracy 0.")
    assert len(lines) <= 40


def test_every_trainer_argument_is_a_key_or_takes_an_object():
    parameters = section_schema("trainer").parameters
    import lightning

    source = Path(lightning.__file__).parent / "pytorch/trainer/trainer.py"
    (init,) = [
        item
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Trainer"
        for item in node.body
        if isinstance(item, ast.FunctionDef) and item.name == "__init__"
    ]
    assert set(parameters) == {argument.arg for argument in init.args.kwonlyargs}
    assert {name for name, parameter in parameters.items() if parameter.type is None} == {"callbacks", "plugins"}
    ours = read_component(PROJECT / "engine/config/schema.py", "Trainer").parameters
    assert set(ours) <= set(parameters)


def test_explain(good, capsys):
    assert parse(["--config", str(good), "--explain", "optimizer.lr", "optimizer.lr=0.1"], "") is None
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "optimizer.lr"
    assert [line.split(None, 1) for line in said[1:]] == [
        ["value", "0.1"],
        ["from", "command line"],
        ["means", load_config(good).parameters["optimizer.lr"].meaning],
        ["accepts", "float, > 0"],
        ["default", "0.01"],
    ]
    parse(["--config", str(good), "--explain", "model.dropout"], "")
    assert "default (lit_models/mlp.py:" in capsys.readouterr().out
    parse(["--config", str(good), "--explain", "model.name"], "")
    assert ", ".join(component_names("model")) in capsys.readouterr().out


def test_help_lists_every_key_with_its_meaning(good, capsys):
    assert parse(["--help"], "What it is.") is None
    said = capsys.readouterr().out
    assert "What it is." in said
    assert all(
        name in said
        for section in ("data", "model", "optimizer", "schedule", "callbacks")
        for name in component_names(section)
    )
    assert parse(["--help", "--config", str(good)], "") is None
    said = capsys.readouterr().out
    config = load_config(good)
    assert all(f"  {key}=" in said for key in config.parameters)
    undocumented = [key for key, parameter in config.parameters.items() if not parameter.meaning]
    assert undocumented == []


def test_print_config_is_the_resolved_config(good, capsys):
    assert parse(["--config", str(good), "--print-config", "seed=5"], "") is None
    assert capsys.readouterr().out == load_config(good, ["seed=5"]).to_yaml()


@pytest.mark.parametrize(
    "command", [["train.py", "--config", "configs/mnist_cnn.yaml", "--help"], ["runs.py", "--help"]]
)
def test_help_imports_no_slow_package(command):
    done = subprocess.run([sys.executable, "-X", "importtime", *command], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported >= {"engine", "argparse"}
    assert not imported & {"torch", "lightning", "torchmetrics", "numpy", "filelock", "tensorboard"}
