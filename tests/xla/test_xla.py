"""Training, evaluation and predictions on an XLA device. The device is the CPU, with the same compiler as for a TPU."""

import csv
import json
import signal
import subprocess
import sys

import pytest
import torch_xla.debug.metrics as xla_metrics
from lightning.pytorch import Callback

import evaluate
import predict
import train
from engine.contracts import UserError
from tests import files
from tests.exactness import differences, signalled, start
from tests.runs import WITHOUT_PICTURES, figures

pytestmark = pytest.mark.filterwarnings("default")  # of Lightning and torch_xla
BERT = ["model.hidden_size=32", "model.num_layers=1", "model.num_heads=2"]
# XLA compiles a graph again when 1 - lr * weight_decay rounds to 1, near the end of a schedule that goes to 0
WITHOUT_DECAY = ["optimizer.weight_decay=0"]
CONFIGS = {
    "iris_mlp": [],
    "iris_bert": ["model.hidden_size=32"],
    "table_mlp": [*WITHOUT_DECAY, "model.hidden_sizes=[16]", "model.num_members=2", "callbacks.early_stopping=null"],
    "mnist_mlp": ["data.batch_size=64"],
    "mnist_cnn": ["model.widths=[8, 16]", "data.batch_size=64"],
    "mnist_bert": [*BERT, "data.batch_size=64"],
    "pictures_cnn": ["model.widths=[8]", "data.image_size=16", "data.batch_size=16"],
    "cifar10_cnn": ["model.widths=[8, 16]", "model.convs_per_stage=1", "data.batch_size=64"],
    "cifar10_cnn_fast": ["model.widths=[8, 16]", "model.convs_per_stage=1", "data.batch_size=64"],
    "cifar10_bert": [*BERT, "data.batch_size=64"],
    "text_bert": [*BERT, "data.test=null", "data.text_column=text", "data.max_length=32"],
    "sst2_bert": [
        *WITHOUT_DECAY,
        "data.dataset=null",
        "data.test=null",
        "data.text_column=text",
        "data.val_fraction=0.1",
    ],
}
FEW = ["iris_mlp", "mnist_cnn", "text_bert"]
PLAIN = ["trainer.precision=32-true", "optimizer={name: adam, lr: 0.001}", *WITHOUT_PICTURES]


@pytest.fixture
def arguments(written_data, tmp_path, monkeypatch):
    """The command line of a config with small files, for two epochs on the XLA device."""
    files.expect_small_files(monkeypatch)

    def make(name, *options):
        kind = "text" if name in ("text_bert", "sst2_bert") else name.split("_")[0].replace("cifar10", "cifar")
        data = [f"data.{key}={value}" for key, value in files.options(kind, written_data).items() if key != "cache"]
        data += [f"data.cache={tmp_path}/cache"] if kind in ("text", "pictures") else []
        data += [f"model.pretrained={files.write_bert(tmp_path / 'bert')}"] if name == "sst2_bert" else []
        argv = ["--config", f"configs/{name}.yaml", *CONFIGS[name], "trainer.max_epochs=2", "trainer.accelerator=tpu"]
        return [*argv, *data, *options]

    return make


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_tests_resumes_evaluates_and_predicts(name, arguments, written_data, tmp_path, monkeypatch):
    argv = arguments(name, *WITHOUT_PICTURES)
    _, whole = start(tmp_path / "whole", *argv)
    assert 0 < figures(whole)["test/loss"] < 10
    assert json.loads((whole / "environment.json").read_text(encoding="utf-8"))["device"] == "xla: CPU"
    with signalled(monkeypatch, lambda trainer: trainer.training and trainer.global_step == 3):
        code, folder = start(tmp_path / "stopped", *argv)
    assert code == 128 + signal.SIGTERM
    assert train.main(["--resume", str(folder)]) == 0
    assert differences(whole, folder) == []
    assert evaluate.main([str(whole)]) == 0
    found = json.loads((whole / "evaluations/test.json").read_text(encoding="utf-8"))
    expected = {key: value for key, value in figures(whole).items() if key.startswith("test/")}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("name", FEW)
def test_a_run_is_that_of_the_cpu(name, arguments, tmp_path):
    # the same lengths of texts on both devices, because the batches depend on them
    options = [*PLAIN, *(["model.dropout=0.0", "data.pad_to_multiple_of=8"] if "bert" in name else [])]
    losses = []
    for accelerator in ("cpu", "tpu"):
        _, folder = start(tmp_path / accelerator, *arguments(name, *options, f"trainer.accelerator={accelerator}"))
        losses.append(figures(folder)["test/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("name", FEW)
def test_predictions_of_a_run(name, arguments, written_data, tmp_path):
    _, folder = start(tmp_path / "runs", *arguments(name, *WITHOUT_PICTURES))
    source = files.new_inputs(name, written_data, tmp_path, 3)
    assert predict.main([str(folder), str(source), "--output", str(tmp_path / "found.csv")]) == 0
    with (tmp_path / "found.csv").open(encoding="utf-8") as file:
        assert all(0 < float(row["probability"]) <= 1 for row in csv.DictReader(file))
    with pytest.raises(UserError, match="--device: xla is not a device of this machine"):
        predict.main([str(folder), str(source), "--device", "xla"])


@pytest.mark.parametrize("name", FEW)
def test_check_finds_no_problem(name, arguments, tmp_path, capsys):
    assert train.main([*arguments(name), "--check", f"run.root={tmp_path}/runs"]) == 0
    printed = capsys.readouterr().out
    assert "WRONG" not in printed
    assert "CPU, precision 32-true" in printed


def test_a_single_core_of_a_tpu_is_used(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch_xla._internal.tpu.num_available_devices", lambda: 8)
    code, folder = start(tmp_path / "runs", *arguments("iris_mlp", *WITHOUT_PICTURES))
    assert code == 0
    assert json.loads((folder / "environment.json").read_text(encoding="utf-8"))["num_devices"] == 1
    assert train.main([*arguments("iris_mlp"), "trainer.devices=8", f"run.root={tmp_path}/more"]) == 2
    assert "error: command line: trainer.devices: " in capsys.readouterr().err


def test_a_killed_run_resumes(arguments, tmp_path):
    argv = arguments("iris_mlp", *WITHOUT_PICTURES, "run.checkpoint_every_steps=1")
    _, whole = start(tmp_path / "whole", *argv)
    kill = "import os, signal, train; from engine.training.epoch_loop import EpochLoop as E; advance = E.advance\n"
    kill += "def killed(self, f): self.trainer.global_step == 4 and os.kill(os.getpid(), 9); advance(self, f)\n"
    kill += "E.advance = killed; import tests.xla.conftest; train.main(__import__('sys').argv[1:])"
    command = [sys.executable, "-c", kill, *argv, f"run.root={tmp_path}/killed"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "killed").glob("*/*")
    assert train.main(["--resume", str(folder)]) == 0
    assert differences(whole, folder) == []


class Counts(Callback):
    """Counts transfers from the device in training steps and in evaluation batches, and compilations before each epoch."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.evaluations: list[int] = []
        self.compilations: list[int] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._before = transfers()
        if batch_idx == 0:
            self.compilations.append(count("CompileTime"))

    def on_train_batch_end(self, *_):
        self.steps.append(transfers() - self._before)

    def on_validation_batch_start(self, *_):
        self._before = transfers()

    def on_validation_batch_end(self, trainer, *_):
        self.evaluations.append(transfers() - self._before)

    def on_train_end(self, *_):
        self.compilations.append(count("CompileTime"))


def count(name: str) -> int:
    data = xla_metrics.metric_data(name)
    return data[0] if data else 0


def transfers() -> int:
    return count("TransferFromDeviceTime") + (xla_metrics.counter_value("aten::_local_scalar_dense") or 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_do_not_wait_and_nothing_is_compiled_later(name, arguments, tmp_path, monkeypatch):
    """A transfer from the device makes a step wait for the one before. A compilation takes seconds."""
    counts, make_trainer = Counts(), train.make_trainer

    def with_counts(*arguments):
        trainer = make_trainer(*arguments)
        trainer.callbacks.append(counts)
        return trainer

    monkeypatch.setattr(train, "make_trainer", with_counts)
    options = ["trainer.log_every_n_steps=1000", "trainer.max_epochs=5", "trainer.enable_checkpointing=false"]
    code, _ = start(tmp_path / "runs", *arguments(name, *WITHOUT_PICTURES, *options, "data.batch_size=8"))
    assert code == 0
    assert len(counts.steps) > 50
    assert sum(counts.steps[1:]) == 0  # the first step is logged
    assert sum(counts.evaluations) == 0
    assert len(counts.compilations) == 6
    assert counts.compilations[2] == counts.compilations[-1]  # nothing after the second epoch
