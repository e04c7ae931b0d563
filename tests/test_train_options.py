"""The effect of each option of `trainer` and `callbacks`, options that the machine or the data refuse, the last lines."""

import errno
import io
import re
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

import train
from engine.contracts import UserError
from engine.runs import run_record
from engine.runs.run_folder import write_json
from engine.terminal import prepare_output, print_line
from engine.training.loggers import event_files
from tests.runs import IRIS, WITHOUT_PICTURES, curve, events, figures, run


def test_seed_changes_the_run_and_the_progress_line_does_not(tmp_path):
    short = ["--config", IRIS, "trainer.max_epochs=2", "data.split_seed=0"]
    first = run(tmp_path / "1", *short)
    quiet = run(tmp_path / "2", *short, "trainer.enable_progress_bar=false", "trainer.num_sanity_val_steps=2")
    other = run(tmp_path / "3", *short, "seed=1")
    assert curve(first, "train/loss") == curve(quiet, "train/loss") != curve(other, "train/loss")


def test_early_stopping_and_rate_monitor_from_yaml(tmp_path, capsys):
    options = [
        "callbacks.early_stopping={monitor: val/loss, patience: 1, min_delta: 10.0}",
        "callbacks.learning_rate_monitor={logging_interval: epoch}",
    ]
    folder = run(tmp_path / "runs", "--config", IRIS, *options)
    assert figures(folder)["epochs"] == 2
    assert any(name.startswith("lr-Adam") for name in events(folder).Tags()["scalars"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_bounds_what_a_step_changes(tmp_path, precision):
    """Plain SGD at rate 1: a step is as long as the clipped gradient."""
    options = [
        "optimizer={name: sgd, lr: 1.0}",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "schedule.name=constant",
    ]
    vectors = []
    for clip in ("trainer.gradient_clip_val=0.01", "trainer.gradient_clip_val=0.02"):
        folder = run(tmp_path / clip, "--config", IRIS, f"trainer.precision={precision}", clip, *options)
        state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        vectors.append(torch.cat([weight.flatten() for weight in state.values()]))
    assert (vectors[1] - vectors[0]).norm().item() == pytest.approx(0.01, rel=0.02)


def test_accumulating_gradients_makes_fewer_steps(tmp_path):
    options = ["trainer.max_epochs=2", "trainer.accumulate_grad_batches=3"]
    assert figures(run(tmp_path, "--config", IRIS, *options))["steps"] == 2


def test_the_profiler_and_the_summary_are_shown(tmp_path, caplog):
    options = ["trainer.max_epochs=1", "trainer.profiler=simple", "callbacks.model_summary={max_depth: 2}"]
    run(tmp_path, "--config", IRIS, *options)
    assert "FIT Profiler Report" in caplog.text
    assert "Total params" in caplog.text
    assert "GPU available" not in caplog.text


def trained(tmp_path: Path, *options: str) -> Path:
    """The folder of a run of the Iris example, which has 3 training batches."""
    return run(tmp_path / "runs", "--config", IRIS, *options)


def names_of_checkpoints(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("checkpoints/*")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_fast_dev_run_takes_one_step_and_writes_no_checkpoint(tmp_path):
    folder = trained(tmp_path, "trainer.fast_dev_run=true")
    assert (figures(folder)["steps"], figures(folder)["best_checkpoint"]) == (1, None)
    assert names_of_checkpoints(folder) == set()


def test_overfit_batches_limits_an_epoch(tmp_path):
    folder = trained(tmp_path, "trainer.overfit_batches=1", "trainer.max_epochs=2")
    assert (figures(folder)["epochs"], figures(folder)["steps"]) == (2, 2)


def test_max_steps_ends_the_training_within_an_epoch(tmp_path):
    folder = trained(tmp_path, "trainer.max_epochs=null", "trainer.max_steps=4")
    assert figures(folder)["steps"] == 4


def test_without_a_logger_no_curves_are_written(tmp_path):
    with_curves = trained(tmp_path / "with", "trainer.max_epochs=1")
    without = trained(tmp_path / "without", "trainer.max_epochs=1", "trainer.logger=false")
    assert event_files(with_curves)
    assert event_files(without) == []


def test_without_checkpoints_the_last_weights_are_tested(tmp_path):
    folder = trained(tmp_path, "trainer.max_epochs=1", "trainer.enable_checkpointing=false")
    assert names_of_checkpoints(folder) == set()
    assert figures(folder)["best_checkpoint"] is None
    assert figures(folder)["test/accuracy"] > 0


def test_without_validation_there_is_no_best_checkpoint(tmp_path):
    folder = trained(tmp_path, "trainer.max_epochs=1", "trainer.limit_val_batches=0")
    assert names_of_checkpoints(folder) == {"last.ckpt"}
    assert not [name for name in figures(folder) if name.startswith("val/")]
    assert figures(folder)["best_checkpoint"] is None


def test_bf16_mixed_rounds_activations_and_keeps_weights_in_32_bits(tmp_path):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        folder = trained(tmp_path / precision, "trainer.max_epochs=1", f"trainer.precision={precision}")
        assert {weight.dtype for weight in weights(folder).values() if weight.is_floating_point()} == {torch.float32}
        losses[precision] = curve(folder, "val/loss")
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.05)
    assert losses["bf16-mixed"] != losses["32-true"]


def test_64_true_trains_weights_in_64_bits(tmp_path):
    options = ["trainer.max_epochs=1", "trainer.precision=64-true", "model.class_weights=[1, 2, 3]"]
    folder = trained(tmp_path, *options)
    assert {weight.dtype for weight in weights(folder).values() if weight.is_floating_point()} == {torch.float64}


@pytest.mark.slow
@pytest.mark.parametrize("option", ["trainer.max_time='00:00:00:01'", "callbacks.timer={duration: '00:00:00:01'}"])
def test_a_duration_ends_the_training(tmp_path, option):
    folder = trained(tmp_path, "trainer.max_epochs=1000000", option)
    assert 0 < figures(folder)["epochs"] < 1_000_000


def test_null_switches_callbacks_off(tmp_path, capsys):
    folder = trained(tmp_path / "on", "trainer.max_epochs=1")
    assert "confusion_matrix" in pictures(folder)
    assert "epoch 1/1" in capsys.readouterr().out
    off = ["callbacks.confusion_matrix=null", "callbacks.progress_line=null"]
    folder = trained(tmp_path / "off", "trainer.max_epochs=1", *off)
    assert "confusion_matrix" not in pictures(folder)
    assert "epoch 1/1" not in capsys.readouterr().out


def pictures(folder: Path) -> str:
    return " ".join(events(folder, "test").Tags()["images"])


@pytest.mark.parametrize(
    ("option", "count"),
    [
        ("trainer.val_check_interval=1.0", 2),
        ("trainer.val_check_interval=0.5", 6),
        ("trainer.check_val_every_n_epoch=2", 1),
    ],
)
def test_the_number_of_validations(tmp_path, option, count):
    assert len(curve(trained(tmp_path, "trainer.max_epochs=2", option), "val/loss")) == count


def test_plateau_counts_validations(tmp_path):
    """Without improvement, the second validation, at the end of epoch 4, divides the learning rate by 2."""
    options = ["schedule={name: plateau, patience: 0, factor: 0.5}", "trainer.check_val_every_n_epoch=2"]
    steps = ["trainer.max_epochs=6", "trainer.log_every_n_steps=1"]
    folder = trained(tmp_path, "optimizer={name: sgd, lr: 1.0e-6}", *options, *steps)
    assert curve(folder, "train/lr") == pytest.approx([1e-6] * 12 + [0.5e-6] * 6)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_barebones_measures_nothing(tmp_path, capsys):
    off = ["trainer.logger=false", "trainer.enable_checkpointing=false", "trainer.log_every_n_steps=null"]
    run(tmp_path, "--config", IRIS, "trainer.max_epochs=1", "trainer.barebones=true", *off)
    assert "test         not measured" in capsys.readouterr().out


def test_without_a_test_the_validation_metrics_are_kept(tmp_path, capsys):
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1", "trainer.limit_test_batches=0")
    assert "val/accuracy" in figures(folder)
    assert "test/accuracy" not in figures(folder)
    assert "test         not measured" in capsys.readouterr().out


def test_one_batch_is_overfitted(tmp_path):
    options = ["trainer.overfit_batches=1", "trainer.max_epochs=100", "optimizer.lr=0.02"]
    folder = run(tmp_path / "runs", "--config", IRIS, *options)
    assert curve(folder, "train/accuracy")[0] < 0.9  # more than one class is in it
    assert curve(folder, "train/accuracy")[-1] == 1.0
    assert curve(folder, "train/loss")[-1] < 0.05


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["trainer.accelerator=gpu"], "command line: trainer.accelerator: No supported gpu backend found; this machine"),
        (["trainer.accelerator=tpu"], "command line: trainer.accelerator: "),
        (["trainer.devices=[0]"], "command line: trainer.devices: `devices` selected with `CPUAccelerator`"),
        (["trainer.devices=4096"], "command line: trainer.devices: devices: 4096 processes need at least 4096 CPU cores"),
        (["trainer.strategy=foo"], "command line: trainer.strategy: You selected an invalid strategy name"),
        (["trainer.profiler=foo"], "command line: trainer.profiler: When passing string value"),
        (["trainer.val_check_interval=100"], "command line: trainer.val_check_interval: `val_check_interval` (100) must be"),
        (["callbacks.timer={duration: 1h}"], "command line: callbacks.timer.duration: '1h' is not a duration"),
        (["optimizer={name: sgd, nesterov: true}"], "command line: optimizer.nesterov: needs a momentum"),
        (["model.class_weights=[1]"], "command line: model.class_weights: 1 weights for 3 classes"),
        (["data.val_fraction=0.999"], "command line: data.val_fraction: 0.999 of 120 samples leaves sets of 0 and"),
        (["run.name=a/b"], "command line: run.name: 'a/b' is not the name of a folder; leave out slashes"),
        (["run.name=.."], "command line: run.name: '..' is not the name of a folder; leave out slashes"),
    ],
)  # fmt: skip
@pytest.mark.skipif(torch.cuda.is_available(), reason="the messages are those of a machine without a GPU")
def test_options_that_the_machine_or_the_data_refuses(options, expected, tmp_path, capsys):
    assert train.main(["--config", IRIS, f"run.root={tmp_path}", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {expected}")
    assert said.count("\n") == 1
    assert list(tmp_path.glob("*/*")) == []  # nothing of a run that never began


def test_batch_normalization_of_single_samples(tmp_path, capsys):
    options = ["model.normalization=batch", "data.batch_size=1"]
    assert train.main(["--config", IRIS, f"run.root={tmp_path}", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: batch normalization needs at least two samples in each batch; raise data.batch_size")
    assert said.count("\n") == 1


@pytest.mark.parametrize("sizes", ["[9223372036854775807]", "[3037000500, 3037000500]", "[1000000000000]"])
def test_a_model_beyond_any_memory(sizes, tmp_path, capsys):
    assert train.main(["--config", IRIS, f"run.root={tmp_path}", f"model.hidden_sizes={sizes}"]) == 1
    assert capsys.readouterr().err.startswith("error: out of memory; lower data.batch_size")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": "abc"}, "RANK=abc is not a whole number; unset it"),
        ({"RANK": ""}, "RANK= is not a whole number"),
        ({"RANK": "1"}, "RANK=1 needs a larger WORLD_SIZE (missing)"),
        ({"RANK": "0"}, "RANK=0 needs a larger WORLD_SIZE (missing)"),
        ({"RANK": "3", "WORLD_SIZE": "2"}, "RANK=3 needs a larger WORLD_SIZE (2)"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two is not a whole number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 is not a whole number"),
        ({"NODE_RANK": "1.0"}, "NODE_RANK=1.0 is not a whole number"),
        ({"SLURM_NTASKS": "2(x3)"}, "SLURM_NTASKS=2(x3) is not a whole number"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1\n"}, "SLURM_PROCID=1\\n is not a whole number"),
        ({"SLURM_NTASKS": "9" * 5000}, "is not a whole number"),
    ],
)
def test_variables_of_a_launcher(variables, expected, tmp_path, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert train.main(["--config", IRIS, f"run.root={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: environment: ")
    assert expected in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_two_nodes_says_what_it_waits_for(tmp_path, monkeypatch, capsys):
    def fit(*_: object, **__: object) -> None:
        raise UserError("it waits here")

    monkeypatch.setattr(Trainer, "fit", fit)
    assert train.main(["--config", IRIS, f"run.root={tmp_path}", "trainer.num_nodes=2", "run.timeout_minutes=90"]) == 2
    assert re.search(
        r"waiting for 2 processes on 2 nodes at [\w.]+:\d+, at most 1 h 30 min$", capsys.readouterr().out, re.M
    )


def test_the_disk_is_full_after_the_test(tmp_path, monkeypatch, capsys):
    def full(path: Path, content: object) -> None:
        if path.name == "metrics.json":
            raise OSError(errno.ENOSPC, "No space left on device", path.name)
        write_json(path, content)

    monkeypatch.setattr(run_record, "write_json", full)
    assert train.main(["--config", IRIS, f"run.root={tmp_path}", "trainer.max_epochs=1"]) == 2
    said = capsys.readouterr().err
    assert said == "error: cannot write metrics.json: No space left on device; files written before are still good\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_names_in_an_output_of_another_encoding(encoding, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", output)
    prepare_output()
    print_line("run \u2603 \u00e4")
    assert output.buffer.getvalue().decode(encoding).startswith("run \u2603" if encoding == "utf-8" else "run \\u2603")


def test_a_closed_output(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    prepare_output()
    print_line("run")
    sys.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["trainer.max_time", "callbacks.timer.duration"])
@pytest.mark.parametrize("value", ["'00:01:30:00'", "{minutes: 90}"])
def test_a_run_with_a_duration_is_repeated_and_resumed(key, value, tmp_path):
    folder = run(tmp_path / "first", "--config", IRIS, f"{key}={value}", *WITHOUT_PICTURES, "trainer.max_epochs=1")
    again = run(tmp_path / "again", "--config", str(folder / "config.yaml"))
    assert curve(again, "val/loss") == curve(folder, "val/loss")
    (folder / "metrics.json").unlink()
    assert train.main(["--resume", str(folder)]) == 0
    assert figures(folder)["test/loss"] == figures(again)["test/loss"]


def test_missing_data_is_one_line(tmp_path, capsys):
    assert train.main(["--config", "configs/mnist_mlp.yaml", f"run.root={tmp_path}", f"data.root={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz is not in" in said
    assert said.count("\n") == 1


def test_a_run_folder_is_never_shared(tmp_path, capsys):
    run(tmp_path, "--config", IRIS, "trainer.max_epochs=1", "run.name=mine")
    before = (tmp_path / "iris_mlp/mine/metrics.json").read_bytes()
    assert train.main(["--config", IRIS, f"run.root={tmp_path}", "run.name=mine"]) == 2
    assert "run.name: " in capsys.readouterr().err
    assert (tmp_path / "iris_mlp/mine/metrics.json").read_bytes() == before
    (tmp_path / "file").touch()
    assert train.main(["--config", IRIS, f"run.root={tmp_path / 'file'}"]) == 2
    assert "run.root: cannot write to" in capsys.readouterr().err


def test_the_summary_at_the_end(tmp_path, capsys):
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=2")
    said = capsys.readouterr().out
    for part in ("test         accuracy 0.", "validation   accuracy 0.", "2 epochs, 6 steps", str(folder)):
        assert part in said
    assert f"tensorboard --logdir {tmp_path}" in said
    assert re.search(r"^epoch 2/2  [\d.]+ s  train/loss", said, re.M)
