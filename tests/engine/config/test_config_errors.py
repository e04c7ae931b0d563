"""A mistake in a config is reported in one line with its place and how to fix it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import runs
from engine.command_line import parse
from engine.config import components, schema, signatures
from engine.config.components import component_names, find_component
from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.contracts import ConfigError, DataError, OptionError

# a project can have other models
MODELS = component_names("model")
FEATURE_MODELS = [name for name in MODELS if "features" in find_component("model", name).constants["accepts"]]
GOOD = """\
seed: 3
data:
  name: iris
  batch_size: 16
model:
  name: mlp
  hidden_sizes: [8, 8]
optimizer:
  name: sgd
schedule:
  name: constant
trainer:
  max_epochs: 2
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


OVERRIDES = [
    ("nonsense=1", "nonsense: unknown key; sections:"),
    ("optimiser={name: sgd}", "optimiser: unknown key; did you mean optimizer?"),
    ("trainer.limit_train_batches=0", "trainer.limit_train_batches: 0 is out of range"),
    ("lr=1", "lr: unknown key; did you mean optimizer.lr?"),
    ("max_epochs=3", "max_epochs: unknown key; did you mean trainer.max_epochs?"),
    ("schedule={name: cosine, warmup: 1}", "schedule.warmup: unknown key; did you mean warmup_fraction?"),
    ("optimzer.lr=1", "optimzer: unknown key; did you mean optimizer?"),
    ("model.hidden_size=[4]", "model.hidden_size: unknown key; did you mean hidden_sizes?"),
    ("model.nam=mlp", "model.nam: unknown key; did you mean name?"),
    ("model.name=mlpp", "model.name: unknown name 'mlpp'; did you mean mlp?"),
    ("model.name=classifier", "classifier.py: LitClassifier cannot be chosen in a config"),
    ("model.name=../mlp", "model.name: unknown name '../mlp'"),
    ("model.name=null", f"model.name: is not a name; available: {', '.join(MODELS)}"),
    (
        "model.name=cnn",
        f"model.name: cnn takes image, and iris is features; models that fit: {', '.join(FEATURE_MODELS)}",
    ),
    ("data=iris", "data: is a section, not 'iris'; write data.name=iris"),
    ("trainer=5", "trainer: is a section, not 5"),
    ("data.name.x=1", "data.name.x: data.name is 'iris' ("),
    ("seed=abc", "seed: 'abc' is not accepted; accepts int, >= 0, <= 4294967295"),
    ("seed=-1", "seed: -1 is out of range; accepts int, >= 0, <= 4294967295"),
    ("seed=4294967296", "seed: 4294967296 is out of range"),
    ("seed=123456789012345678901234567890123", "seed: 1.2345678901234569e+32 is not accepted"),
    ("seed=1.0", "seed: 1.0 is not accepted; accepts int"),
    ("seed='7'", "seed: '7' is not accepted; accepts int"),
    ("seed=true", "seed: true is not accepted; accepts int"),
    ("seed=null", "seed: null is not accepted; accepts int"),
    ("seed=010", "seed: 010 is read differently by different versions of YAML"),
    ("seed=1:30", "seed: 1:30 is read differently by different versions of YAML"),
    ("seed=1_000", "seed: 1_000 is read differently by different versions of YAML"),
    ("seed=0x10", "seed: 0x10 is read differently by different versions of YAML"),
    ("optimizer.lr=yes", "optimizer.lr: yes can be a boolean or a word; write true, or 'yes' in quotes"),
    ("run.name=no", "run.name: no can be a boolean or a word; write false, or 'no' in quotes"),
    ("run.name=010", "run.name: 010 is read differently"),
    ("run.name=true", "run.name: true is not accepted; accepts str | null"),
    ("optimizer.lr=0", "optimizer.lr: 0 is out of range; accepts float, > 0"),
    ("optimizer.lr=.nan", "optimizer.lr: nan is out of range; accepts float, > 0"),
    ("optimizer.lr=.inf", "optimizer.lr: inf is out of range; accepts float, > 0"),
    ("optimizer.momentum=1", "optimizer.momentum: 1 is out of range; accepts float, >= 0, < 1"),
    ("optimizer.nesterov=1", "optimizer.nesterov: 1 is not accepted; accepts bool"),
    ("model.dropout=1.5", "model.dropout: 1.5 is out of range; accepts float, >= 0, < 1"),
    ("model.hidden_sizes=5", "model.hidden_sizes: 5 is not accepted; accepts list[int], >= 1"),
    ("model.hidden_sizes=[5, x]", "model.hidden_sizes: [5, 'x'] is not accepted; accepts list[int], >= 1"),
    ("model.hidden_sizes=[5, 0]", "model.hidden_sizes: [5, 0] is out of range"),
    ("model.hidden_sizes=[5, 010]", "model.hidden_sizes[1]: 010 is read differently"),
    ("model.hidden_sizes={a: 1}", "model.hidden_sizes: {'a': 1} is not accepted"),
    ("model.activation=rel", "model.activation: 'rel' is not accepted; did you mean relu?"),
    ("model.activation=7", "model.activation: 7 is not accepted; accepts relu | gelu | silu | tanh"),
    ("data.batch_size=0", "data.batch_size: 0 is out of range; accepts int, >= 1"),
    ("data.val_fraction=1.0", "data.val_fraction: 1.0 is out of range; accepts float, > 0, < 1"),
    ("model.num_classes=4", "model.num_classes: unknown key"),
    ("schedule.name=cosin", "schedule.name: unknown name 'cosin'; did you mean cosine?"),
    ("trainer.max_epoch=2", "trainer.max_epoch: unknown key; did you mean max_epochs?"),
    ("trainer.max_epochs=0", "trainer.max_epochs: 0 is out of range; accepts int | null, >= 1"),
    ("trainer.max_epochs=null", "trainer.max_epochs: nothing ends this run; set max_epochs, max_steps or max_time"),
    ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches: 0 is out of range"),
    ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val: -1 is out of range"),
    ("trainer.deterministic=yess", "trainer.deterministic: 'yess' is not accepted"),
    ("trainer.precision=bf17", "trainer.precision: 'bf17' is not accepted"),
    ("trainer.limit_test_batches=1.5", "1.5 is out of range; a number with a decimal point is a fraction"),
    ("trainer.overfit_batches=2.0", "at most 1.0; for batches write 2"),
    ("trainer.max_time=1h", "trainer.max_time: '1h' is not a duration; write days, hours, minutes and seconds"),
    ("trainer.devices=0", "trainer.devices: no device is requested; write 1 or auto"),
    ("trainer.devices=-2", "trainer.devices: -2 is out of range"),
    ("trainer.fast_dev_run=-1", "trainer.fast_dev_run: -1 is out of range"),
    ("trainer.callbacks=[]", "trainer.callbacks: cannot be set in a config; write it under callbacks:"),
    ("trainer.plugins=[]", "trainer.plugins: cannot be set in a config; it takes a Python object"),
    ("callbacks.early_stoping={}", "callbacks.early_stoping: unknown name 'early_stoping'; did you mean early_stopping?"),
        ("callbacks.early_stopping=3", "callbacks.early_stopping: is a section, not 3; write early_stopping: {}, or null"),
    ("callbacks.early_stopping={}", "callbacks.early_stopping.monitor: is missing; accepts str"),
    ("callbacks.early_stopping={monitor: val/acc}", "metric 'val/acc' is not logged; did you mean val/accuracy?"),
    ("callbacks.early_stopping={monitor: val/accuracy}", "min does not fit val/accuracy; set callbacks.early_s"),
    ("callbacks.early_stopping={monitor: acc}", "metric 'acc' is not logged; logged metrics: train/accuracy"),
    ("callbacks.early_stopping={monitor: accepts}", "metric 'accepts' is not logged"),
    ("callbacks.early_stopping={monitor: val/loss, patience: -1}", "early_stopping.patience: -1 is out of range"),
    ("callbacks.early_stopping={monitor: val/loss, min_delta: -0.1}", "early_stopping.min_delta: -0.1 is out of range"),
    ("callbacks.ema_weight_averaging={update_every_n_steps: 0}", "update_every_n_steps: 0 is out of range"),
    ("callbacks.ema_weight_averaging={decay: 1.0}", "ema_weight_averaging.decay: 1.0 is out of range"),
    ("callbacks.ema_weight_averaging={decay: 2}", "ema_weight_averaging.decay: 2 is out of range"),
    ("callbacks.ema_weight_averaging={decay: -0.1}", "ema_weight_averaging.decay: -0.1 is out of range"),
    ("callbacks.ema_weight_averaging={update_starting_at_step: -1}", "update_starting_at_step: -1 is out of range"),
    ("callbacks.ema_weight_averaging={update_starting_at_epoch: -1}", "update_starting_at_epoch: -1 is out of range"),
    ("callbacks.model_summary={max_depth: -2}", "model_summary.max_depth: -2 is out of range"),
    ("run.monitor=val/los", "run.monitor: metric 'val/los' is not logged; did you mean val/loss?"),
    ("run.name=${oc.env:HOME}", "run.name: ${oc.env:HOME} is refused; only references to keys"),
    ("run.name=a${oc.env:HOME}b", "is refused; only references to keys"),
    ("run.name=${a${b}}", "is refused; only references to keys"),
    ("data.batch_size=${data.nope}", "data.batch_size: ${data.nope} has no value; refer to a key that is written"),
    ("data.batch_size=${data.batch_size}", "data.batch_size: ${data.batch_size} has no value"),
    ("data.batch_size=${trainer}", "data.batch_size: ${trainer} refers to a section"),
    ("data.batch_size=${model.name}", "data.batch_size: 'mlp' is not accepted; accepts int, >= 1"),
    ("lr", "lr: is not an override; write lr=VALUE"),
    ("--lr=3", "--lr: unknown option; write lr=3, without dashes"),
    ("optimizer.lr=", "optimizer.lr: has no value; write optimizer.lr=VALUE or optimizer.lr=null"),
    ("=3", ": is not a key"),
    ("a..b=3", "a..b: is not a key"),
    ("seed=[1", "quote the whole argument for the shell"),
    ("run.name=!!python/name:os.system x", "has the YAML tag"),
    ("model.hidden_sizes=!!omap [a: 1]", "model.hidden_sizes: has the YAML tag !!omap; a config has plain values only"),
    ("seed=!!int '3'", "seed: has the YAML tag !!int"),
    ("seed=!mine 3", "seed: has the YAML tag !mine"),
    ("model.hidden_sizes=[[64]]", "model.hidden_sizes: [[64]] is not accepted; accepts list[int], >= 1"),
    ("model.hidden_sizes=[{a: 1}]", "model.hidden_sizes: [{'a': 1}] is not accepted"),
    ("model.hidden_sizes=[[]]", "model.hidden_sizes: [[]] is not accepted"),
    ("optimizer={name: adam, betas: [[0.9], [0.999]]}", "optimizer.betas: [[0.9], [0.999]] is not accepted"),
    ("model.class_weights=[[1], [1], [1]]", "model.class_weights: [[1], [1], [1]] is not accepted"),
    ("trainer.devices=[[0]]", "trainer.devices: [[0]] is not accepted"),
    ("trainer.logger=[[csv]]", "trainer.logger: [['csv']] is not accepted"),
    ("trainer.max_time={days: [1]}", "trainer.max_time: {'days': [1]} is not accepted"),
    ('run.name="a\\0b"', "run.name: has a character that UTF-8 text cannot have"),
    ('run.root="/tmp/a\\0b"', "run.root: has a character that UTF-8 text cannot have"),
    ("run.name=\udc80", "run.name: is not valid YAML"),
    ("a" + ".b" * 10_000 + "=1", "is too long; --help lists the keys"),
    ("a" * 10_000 + "=1", "is too long; --help lists the keys"),
    *((f"model.hidden_sizes={'[' * depth}{']' * depth}", "is nested too deeply") for depth in (60, 300, 3000)),
    *((f"model.hidden_sizes={'{a: ' * depth}1{'}' * depth}", "is nested too deeply") for depth in (60, 300)),
    ("run.timeout_minutes=1e300", "run.timeout_minutes: 1e+300 is out of range"),
    ("run.checkpoint_every_minutes=1e300", "run.checkpoint_every_minutes: 1e+300 is out of range"),
    ("model.hidden_sizes=[9223372036854775808]", "model.hidden_sizes: [9223372036854775808] is out of range"),
    ("trainer.max_epochs=9223372036854775808", "trainer.max_epochs: 9223372036854775808 is out of range"),
    ("trainer.num_nodes=1000000", "trainer.num_nodes: 1000000 is out of range"),
    ("trainer.strategy=ddp_notebook", "trainer.strategy: ddp_notebook is for notebooks"),
    ("trainer.strategy=ddp_spawn", "trainer.strategy: ddp_spawn is for notebooks"),
    ("trainer={strategy: fsdp, gradient_clip_val: 1.0}", "gradient_clip_val: Lightning's FSDP cannot clip gradients"),
    ("trainer.logger=tensorboard,csv", "unknown logger 'tensorboard,csv'; write a list: '[tensorboard, csv]'"),
    *(
        (f"{key}={value}", f"{key}: {said}")
        for key in ("trainer.max_time", "callbacks.timer.duration")
        for value, said in [
            ("00:00:00:00", "00:00:00:00 is read differently"),
            ("'00:00:00:00'", "'00:00:00:00' is out of range; it must be above 0"),
            ("'1000000000:00:00:00'", "'1000000000:00:00:00' is not a duration"),
            ("'999999999:00:00:00'", "'999999999:00:00:00' is out of range"),
            ("{days: 1000000000}", "{'days': 1000000000} is out of range"),
            ("{days: -1}", "{'days': -1} is out of range"),
            ("{days: 0}", "{'days': 0} is out of range"),
            ("{hour: 1}", "{'hour': 1} is not a duration"),
            ("{}", "{} is not a duration"),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), OVERRIDES)
def test_override(good, override, expected):
    text = message(good, override)
    assert expected in text
    assert text.startswith("command line: ") or "nothing ends this run" in text


@pytest.mark.parametrize(("old", "new"), schema.RENAMED.items())
def test_an_old_key_is_answered_with_its_new_name(good, old, new):
    assert message(good, f"{old}=1") == f"command line: {old}: was renamed to {new}"
    section, _, key = new.rpartition(".")
    if section == "callbacks":
        assert key in components.component_names("callbacks")
    elif section.startswith("callbacks."):
        assert key in components.find_component("callbacks", section.removeprefix("callbacks.")).parameters
    else:
        choices = [components.find_component(section, name) for name in components.component_names(section)]
        assert any(key in choice.parameters for choice in choices)


def test_an_old_key_in_a_file_is_answered_with_its_line(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(GOOD + "callbacks:\n  class_accuracy: null\n", encoding="utf-8")
    assert message(path) == f"{path}:15: callbacks.class_accuracy: was renamed to callbacks.confusion_matrix"


TOGETHER = [
    (["trainer.precision=bf16-true"], "bf16-true is not for features; features would be rounded before"),
    (["trainer.max_epochs=null", "callbacks.timer={interval: step}"], "nothing ends this run"),
    (
        ["schedule.name=plateau", "trainer.limit_val_batches=0"],
        "schedule.monitor: val/loss is not measured; trainer.limit_val_batches is 0",
    ),
    (["callbacks.early_stopping={monitor: val/loss}", "trainer.limit_val_batches=0"], "val/loss is not measured"),
    (["trainer.max_epochs=null", "callbacks.progress_line=null"], "nothing ends this run"),
    (["run.name=$", "run.root='${run.name}{seed}'"], "run.root: ${run.name}{seed} results in another reference"),
    (["run.name='${run.root}'", "run.root='${run.name}'"], "${run.name} has no value"),
    (
        [f"callbacks.x.k{i}='{f'${{callbacks.x.k{i + 1}}}' * 2}'" for i in range(40)] + ["callbacks.x.k40=0123456789"],
        "is read differently",
    ),
    (
        [f"callbacks.x.k{i}='{f'${{callbacks.x.k{i + 1}}}' * 2}'" for i in range(40)] + ["callbacks.x.k40=long"],
        "its references give more than 100,000 characters",
    ),
    (
        [f"callbacks.x.k{i}='${{callbacks.x.k{i + 1}}}'" for i in range(1500)] + ["callbacks.x.k1500=1"],
        "more than 100 keys form a chain of references",
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), TOGETHER)
def test_overrides_that_do_not_fit_each_other(good, overrides, expected):
    assert expected in message(good, *overrides)


BROKEN = [
    ("def broken(:\n", "lit_models/mine.py:1: is not valid Python"),
    ("class LitMine(LitClassifier):\n    def __init__(self, width: Annotated[int, 'positive'] = 1): pass\n",
     "lit_models/mine.py:2: width: has the bounds ['positive']; write them as in"),
    ("class LitMine(LitClassifier):\n    def __init__(self, width: Literal[SIZES] = 1): pass\n",
     "lit_models/mine.py:2: width: has an annotation that cannot be read without running the file; write"),
    ("class LitMine(LitClassifier): pass\nclass LitOther(LitClassifier): pass\n",
     "lit_models/mine.py has 2 classes that derive from LitClassifier: LitMine, LitOther; keep one"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "expected"), BROKEN)
def test_an_own_model_with_a_mistake_in_it(good, tmp_path, monkeypatch, source, expected):
    for folder in ("lit_models", "datamodules"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    (tmp_path / "lit_models/mine.py").write_text(source + "# LitClassifier\n", encoding="utf-8")
    monkeypatch.setattr(components, "PROJECT", tmp_path)
    monkeypatch.setattr(signatures, "PROJECT", tmp_path)
    assert expected in message(good, "model.name=mine")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "--config: is missing; write python train.py --config configs/iris_mlp.yaml"),
        (["configs/mnist_mlp.yaml"], "--config: is missing; write python train.py --config configs/mnist_mlp.yaml"),
        (["--config"], "argument --config: expected one argument"),
        (
            ["--config", "configs/iris_mlp.yaml", "--explain", "optimizer.l"],
            "configs/iris_mlp.yaml has no key 'optimizer.l'",
        ),
        (["--config", "configs/iris_mlp.yaml", "--explain", "optimizr.lr"], "did you mean optimizer.lr?"),
        (["--config", "configs/iris_mlp.yaml", "--resum", "x"], "--resum: unknown option"),
        (["--config", "configs/iris_mlp.yaml", "--config", "configs/mnist_mlp.yaml"], "--config is given twice"),
        (["--resume=~nobody-here/x"], "--resume: '~nobody-here/x' is not the folder of a run"),
        (["--resume", "a" * 5000], "is not the folder of a run"),
        (["--resume", "a", "--resume=b"], "--resume is given twice"),
        (["--config", "configs/iris_mlp.yaml", "--explain", "seed", "--explain", "run"], "--explain is given twice"),
    ],
)
def test_command_line(argv, expected):
    with pytest.raises(ConfigError, match="command line") as caught:
        parse(argv, "")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "override", ["model.nam=1", "trainer.max_epochs=x", "run.name=${oc.env:HOME}", "model.name=cnn"]
)
def test_answered_in_one_line_before_torch_is_imported(override):
    """Through the real command; `-X importtime` lists every import."""
    command = [sys.executable, "-X", "importtime", "train.py", "--config", "configs/iris_mlp.yaml", override]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert not any(heavy in line for line in imports for heavy in (" torch", " lightning", " numpy"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OptionError("optimizer.nesterov: needs a momentum"), "command line: optimizer.nesterov: needs a momentum"),
        (OptionError("schedule: needs an end"), "{file}:11: schedule: needs an end"),
        (OptionError("model.dropout: is too large"), "{file}: model.dropout: is too large"),
        (OptionError("does not fit"), "{file}: trainer: does not fit; the hardware"),
        (DataError("{file}:3: is broken"), "{file}:3: is broken"),
        (DataError("{file}: is broken"), "{file}: is broken"),
        ("`val_check_interval` (100) must be less; set `limit_val_batches`", "command line: trainer.val_check_interval: "),
        ("No supported gpu backend found", "{file}: trainer: No supported gpu backend found; the hardware"),
    ],
)  # fmt: skip
def test_the_error_of_a_component_is_placed_at_the_key_that_caused_it(good, error, expected):
    config = load_config(
        good, ["trainer.limit_val_batches=1.0", "trainer.val_check_interval=100", "optimizer.nesterov=true"]
    )
    if isinstance(error, Exception):
        error = type(error)(str(error).format(file=good))
    assert str(config.option_error("trainer", error, "the hardware")).startswith(expected.format(file=good))


def test_an_error_about_devices_is_placed_at_the_option_that_was_written(good):
    config = load_config(good, ["trainer.accelerator=gpu"])
    error = config.option_error("trainer", "No supported gpu backend found", "this machine has 2 CPU cores")
    assert str(error) == (
        "command line: trainer.accelerator: No supported gpu backend found; this machine has 2 CPU cores"
    )


def test_a_config_that_can_be_read_only_once_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero"), Path("/dev/stdin")):
        if not path.is_file():
            assert message(path).endswith("is not a regular file; write the config to a file first")


@pytest.mark.parametrize("path", ["~nobody-here/x.yaml", "a" * 300, "a" * 5000])
def test_a_path_that_cannot_be(path):
    with pytest.raises(ConfigError, match=r"file not found|cannot be read \(File name too long\)"):
        parse([f"--config={path}"], "")


def test_the_home_folder_is_expanded_in_every_path(good, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse([f"--config=~/{good.name}", "run.root=~/runs", "trainer.default_root_dir=~/x", "run.name=~"], "")
    assert config.path == good
    assert (config["run.root"], config["trainer.default_root_dir"]) == (f"{tmp_path}/runs", f"{tmp_path}/x")
    assert config["run.name"] is None
    text = load_config(good, ["run.root=a~/b", "run.monitor=val/loss", 'run.name="~"', "data.batch_size=8"])
    assert (text["run.root"], text["run.name"]) == ("a~/b", "~")
    with pytest.raises(ConfigError, match=f"'{tmp_path}/runs/none' is not the folder of a run"):
        parse(["--resume=~/runs/none"], "")
    arguments = runs.make_parser().parse_args(["list", "--root=~/runs"])
    assert arguments.root == tmp_path / "runs"
