"""Training and predictions on a CUDA GPU. These tests run on machines with a GPU only: `pytest -m gpu`."""

import csv
import json
import threading
import urllib.request

import numpy as np
import pytest
import torch

import evaluate
import export
import predict
import serve
import train
from datamodules.parts.batches import TensorBatches
from engine.inference.predictor import load
from engine.training.epoch_loop import EpochLoop
from lit_models.classifier import LitClassifier
from tests import files
from tests.exactness import differences, signalled, start
from tests.runs import WITHOUT_PICTURES, figures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
    # of Lightning and torch, on machines with many cores and for operations without a deterministic version
    pytest.mark.filterwarnings("default"),
]
CONFIGS = [
    "iris_mlp",
    "iris_bert",
    "mnist_mlp",
    "mnist_cnn",
    "mnist_bert",
    "cifar10_cnn",
    "cifar10_cnn_fast",
    "text_bert",
]
SMALL = {
    "iris_mlp": [],
    "iris_bert": ["model.hidden_size=32"],
    "mnist_mlp": ["data.batch_size=64"],
    "mnist_cnn": ["model.widths=[8, 16]", "data.batch_size=64"],
    "mnist_bert": ["model.hidden_size=32", "model.num_layers=1", "model.num_heads=2", "data.batch_size=64"],
    "cifar10_cnn": ["model.widths=[8, 16, 16]", "data.batch_size=64"],
    "cifar10_cnn_fast": ["model.widths=[8, 16, 16]", "data.batch_size=64"],
    "text_bert": [
        "model.hidden_size=32",
        "model.num_layers=1",
        "model.num_heads=2",
        "data.text_column=text",
        "data.test=null",
        "optimizer.lr=0.01",
    ],
}


@pytest.fixture
def arguments(written_data, tmp_path, monkeypatch):
    """The command line of a config with small files, for two epochs on the GPU."""
    files.expect_small_files(monkeypatch)

    def make(name, *options):
        data = [f"data.root={written_data}"]
        if name == "text_bert":
            data = [f"data.train={written_data}/text/train.tsv", f"data.cache={tmp_path}/cache"]
        elif name.startswith("iris"):
            data = []
        argv = ["--config", f"configs/{name}.yaml", *SMALL[name], "trainer.max_epochs=2", "trainer.accelerator=gpu"]
        return [*argv, "trainer.devices=1", *data, *options]

    return make


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_and_tests(name, arguments, tmp_path):
    code, folder = start(tmp_path / "runs", *arguments(name))
    assert code == 0
    assert 0 < figures(folder)["test/loss"] < 10
    assert torch.cuda.get_device_name() in (folder / "environment.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["iris_mlp", "mnist_cnn", "text_bert"])
def test_a_run_is_that_of_the_cpu(name, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = ["trainer.precision=32-true", "optimizer={name: adam, lr: 0.001}", *WITHOUT_PICTURES]
    options += ["model.dropout=0.0"] if name == "text_bert" else []
    losses = []
    for accelerator in ("cpu", "gpu"):
        _, folder = start(tmp_path / accelerator, *arguments(name, *options, f"trainer.accelerator={accelerator}"))
        losses.append(figures(folder)["test/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # convolutions of a GPU add in another order


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("name", ["iris_mlp", "mnist_cnn", "text_bert"])
def test_every_precision_learns(name, precision, arguments, tmp_path):
    if name == "iris_mlp" and precision == "bf16-true":
        return  # refused for features
    options = [f"trainer.precision={precision}", "trainer.max_epochs=20", *WITHOUT_PICTURES]
    code, folder = start(tmp_path / "runs", *arguments(name, *options))
    assert code == 0
    assert figures(folder)["test/accuracy"] > 0.6


@pytest.mark.parametrize("name", ["mnist_mlp", "mnist_cnn", "cifar10_cnn", "text_bert"])
def test_a_step_does_not_wait_for_the_gpu(name, arguments, tmp_path, monkeypatch):
    """A transfer from the GPU to the host would make each step wait for the one before."""
    advance, number = EpochLoop.advance, []

    def advance_without_waiting(self, data_fetcher):
        is_inside = self.batch_idx > 2  # the first batch of an epoch copies the indices of all its samples
        number.append(is_inside)
        torch.cuda.set_sync_debug_mode("error" if is_inside else "default")
        try:
            advance(self, data_fetcher)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(EpochLoop, "advance", advance_without_waiting)
    options = ["trainer.log_every_n_steps=1000", "data.batch_size=16", "trainer.enable_checkpointing=false"]
    code, _ = start(tmp_path / "runs", *arguments(name, *options, *WITHOUT_PICTURES))
    assert code == 0
    assert sum(number) > 20


@pytest.mark.parametrize("name", ["iris_mlp", "mnist_cnn", "cifar10_cnn", "text_bert"])
def test_an_evaluation_batch_does_not_wait_for_the_gpu(name, arguments, tmp_path, monkeypatch):
    number = []

    def start_batch(self, batch, batch_idx):
        is_inside = 0 < batch_idx < self.trainer.num_val_batches[0] - 1
        number.append(is_inside)
        torch.cuda.set_sync_debug_mode("error" if is_inside else "default")

    monkeypatch.setattr(LitClassifier, "on_validation_batch_start", start_batch)
    monkeypatch.setattr(LitClassifier, "on_validation_end", lambda _: torch.cuda.set_sync_debug_mode("default"))
    options = ["data.batch_size=4", "data.eval_batch_size=4", "trainer.enable_checkpointing=false"]
    try:
        code, _ = start(
            tmp_path / "runs", *arguments(name, *options, "trainer.limit_train_batches=4", *WITHOUT_PICTURES)
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert code == 0
    assert sum(number) > 4


@pytest.mark.parametrize("accelerator", ["gpu", "cpu"])
@pytest.mark.parametrize("name", CONFIGS)
def test_evaluate_gives_the_figures_of_the_test(name, accelerator, arguments, tmp_path):
    _, folder = start(tmp_path / "runs", *arguments(name, *WITHOUT_PICTURES))
    assert evaluate.main([str(folder), f"trainer.accelerator={accelerator}"]) == 0
    found = json.loads((folder / "evaluations/test.json").read_text(encoding="utf-8"))
    expected = {key: value for key, value in figures(folder).items() if key.startswith("test/")}
    assert {key: found[key] for key in expected} == (
        expected if accelerator == "gpu" else pytest.approx(expected, rel=0.1, abs=0.05)  # bf16 rounds differently
    )


@pytest.mark.parametrize("name", ["iris_mlp", "mnist_cnn", "text_bert"])
def test_predictions_are_those_of_the_cpu(name, arguments, written_data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    _, folder = start(tmp_path / "runs", *arguments(name, "trainer.precision=32-true", *WITHOUT_PICTURES))
    source = files.new_inputs(name, written_data, tmp_path, 50)
    found = {}
    for device, processes in (("cpu", "1"), ("cuda", "1"), ("cuda", "2")):
        output = tmp_path / f"{device}_{processes}.csv"
        argv = [str(folder), str(source), "--output", str(output), "--device", device, "--processes", processes]
        assert predict.main(argv) == 0
        with output.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found[device, processes] = [float(row["probability"]) for row in rows]
    assert len(found["cpu", "1"]) >= 50
    assert found["cuda", "1"] == pytest.approx(found["cpu", "1"], abs=2e-3)
    assert found["cuda", "2"] == pytest.approx(found["cuda", "1"], abs=1e-3)  # other batches


@pytest.mark.parametrize("name", ["iris_mlp", "mnist_cnn", "text_bert"])
def test_predictions_are_explained(name, arguments, written_data, tmp_path):
    _, folder = start(tmp_path / "runs", *arguments(name, *WITHOUT_PICTURES))
    source = files.new_inputs(name, written_data, tmp_path, 3)
    output = tmp_path / "explained.csv"
    assert predict.main([str(folder), str(source), "--explain", "--output", str(output), "--device", "cuda"]) == 0
    assert output.read_text(encoding="utf-8").count("\n") > 3


@pytest.mark.parametrize("name", ["iris_mlp", "mnist_cnn", "text_bert"])
@pytest.mark.parametrize("target", ["onnx", "torch_export", "safetensors"])
def test_a_run_of_a_gpu_is_exported(name, target, arguments, tmp_path):
    if target == "onnx":
        pytest.importorskip("onnxscript")
    _, folder = start(tmp_path / "runs", *arguments(name, *WITHOUT_PICTURES))
    assert export.main([str(folder), "--to", target]) == 0


def test_a_server_with_a_gpu(arguments, tmp_path, monkeypatch):
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    _, folder = start(tmp_path / "runs", *arguments("iris_mlp", *WITHOUT_PICTURES))
    rows, answers = [[5.1, 3.5, 1.4, 0.2]] * 3, []
    started = uvicorn.Server.startup

    async def startup(self, sockets=None):
        await started(self, sockets)

        def ask():
            url = f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}/predict"
            request = urllib.request.Request(
                url, json.dumps({"inputs": rows}).encode(), {"content-type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    answers.append(json.load(answer))
            finally:
                self.should_exit = True

        threading.Thread(target=ask).start()

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    assert serve.main([str(folder), "--device", "cuda", "--port", "0"]) == 0
    expected = load(folder, "cpu").predict(np.array(rows, np.float32)).classes
    assert [found["class"] for found in answers[0]["predictions"]] == list(expected)


def at_batch(trainer):
    return trainer.training and trainer.current_epoch == 1 and trainer.fit_loop.batch_idx + 1 == 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("name", ["iris_mlp", "mnist_cnn", "cifar10_cnn", "text_bert"])
def test_a_stopped_run_resumes_exactly(name, precision, arguments, tmp_path, monkeypatch):
    if name == "iris_mlp" and precision == "bf16-true":
        return  # refused for features
    options = [f"trainer.precision={precision}", "trainer.deterministic=true", *WITHOUT_PICTURES]
    argv = arguments(name, *options)
    _, whole = start(tmp_path / "whole", *argv)
    with signalled(monkeypatch, at_batch):
        code, folder = start(tmp_path / "stopped", *argv)
    assert code == 143
    assert train.main(["--resume", str(folder)]) == 0
    assert differences(whole, folder) == []


def test_data_in_main_memory_gives_the_same_run(arguments, tmp_path):
    options = ["trainer.deterministic=true", "trainer.precision=32-true", *WITHOUT_PICTURES]
    folders = []
    for gigabytes in (1, 0):
        argv = arguments("mnist_mlp", *options, f"data.gpu_memory_gigabytes={gigabytes}")
        folders.append(start(tmp_path / str(gigabytes), *argv)[1])
    left, right = (torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in folders)
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_data_is_copied_to_the_gpu_once(arguments, tmp_path, monkeypatch):
    devices, iterate = set(), TensorBatches.__iter__

    def note_device(self):
        devices.add(self.inputs.device.type)
        return iterate(self)

    monkeypatch.setattr(TensorBatches, "__iter__", note_device)
    assert start(tmp_path / "runs", *arguments("mnist_mlp", *WITHOUT_PICTURES))[0] == 0
    assert devices == {"cuda"}


@pytest.mark.parametrize("name", ["mnist_cnn", "text_bert"])
def test_check_says_how_much_memory_is_used(name, arguments, tmp_path, capsys):
    assert train.main([*arguments(name), "--check", f"run.root={tmp_path}/runs"]) == 0
    printed = capsys.readouterr().out
    total = torch.cuda.get_device_properties(0).total_memory / 1e9
    assert f" of {total:.0f} GB" in printed
    fused = "not fused" if name == "text_bert" else "fused"  # Lightning cannot clip gradients for a fused optimizer
    assert f"{torch.cuda.get_device_name()}, precision bf16-mixed, TF32, {fused} optimizer " in printed
    assert ("of training data in GPU memory; from main memory" in printed) == (name == "mnist_cnn")
    assert "WRONG" not in printed


def test_two_devices_where_there_is_one(arguments, tmp_path, capsys):
    if torch.cuda.device_count() > 1:
        pytest.skip("there are several GPUs")
    assert train.main([*arguments("iris_mlp"), "trainer.devices=2", f"run.root={tmp_path}/runs"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "this machine has" in error


def test_out_of_memory_is_one_line(arguments, tmp_path, capsys):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        options = ["model.hidden_sizes=[8192, 8192]", f"run.root={tmp_path}/runs"]
        assert train.main([*arguments("mnist_mlp"), *options]) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    error = capsys.readouterr().err
    assert "error: out of memory; lower data.batch_size" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["mnist_cnn", "text_bert"])
def test_a_strategy_with_one_gpu(name, strategy, arguments, tmp_path):
    options = [*WITHOUT_PICTURES, "trainer.gradient_clip_val=null"]  # Lightning's FSDP cannot clip by the norm
    code, folder = start(tmp_path / "runs", *arguments(name, f"trainer.strategy={strategy}", *options))
    assert code == 0
    assert figures(folder)["test/loss"] < 10


@pytest.mark.parametrize("name", ["mnist_mlp", "mnist_cnn"])
def test_a_slow_run_is_measured(name, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("callbacks.throughput.MIN_SECONDS", 0.0)
    code, folder = start(tmp_path / "runs", *arguments(name))
    assert code == 0
    assert 0 <= figures(folder)["peak_share"] < 1


def test_the_terminal_shows_no_messages_of_lightning(arguments, tmp_path, capfd):
    assert start(tmp_path / "runs", *arguments("iris_mlp"))[0] == 0
    assert capfd.readouterr().err == ""


def test_a_compiled_model(arguments, tmp_path):
    code, folder = start(tmp_path / "runs", *arguments("mnist_mlp", "model.compile=true", *WITHOUT_PICTURES))
    assert code == 0
    assert figures(folder)["test/accuracy"] > 0.3
