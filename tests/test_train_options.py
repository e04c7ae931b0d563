"""What `trainer:` and `callbacks:` change, what only the machine or the data can refuse, and how a run ends."""

import re

import pytest
import torch

import train
from tests.runs import IRIS, curve, events, figures, run


def test_seed_changes_the_run_and_the_progress_line_does_not(tmp_path):
    short = ["--config", IRIS, "trainer.max_epochs=2", "data.split_seed=0"]
    one = run(tmp_path / "1", *short)
    quiet = run(tmp_path / "2", *short, "trainer.enable_progress_bar=false", "trainer.num_sanity_val_steps=2")
    other = run(tmp_path / "3", *short, "seed=1")
    assert curve(one, "train/loss") == curve(quiet, "train/loss") != curve(other, "train/loss")


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
    weights = []
    for clip in ("trainer.gradient_clip_val=0.01", "trainer.gradient_clip_val=0.02"):
        folder = run(tmp_path / clip, "--config", IRIS, f"trainer.precision={precision}", clip, *options)
        state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        weights.append(torch.cat([one.flatten() for one in state.values()]))
    assert (weights[1] - weights[0]).norm().item() == pytest.approx(0.01, rel=0.02)


def test_accumulating_gradients_makes_fewer_steps(tmp_path):
    options = ["trainer.max_epochs=2", "trainer.accumulate_grad_batches=3"]
    assert figures(run(tmp_path, "--config", IRIS, *options))["steps"] == 2


def test_the_profiler_and_the_summary_are_shown(tmp_path, caplog):
    options = ["trainer.max_epochs=1", "trainer.profiler=simple", "callbacks.model_summary={max_depth: 2}"]
    run(tmp_path, "--config", IRIS, *options)
    assert "FIT Profiler Report" in caplog.text
    assert "Total params" in caplog.text
    assert "GPU available" not in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.fast_dev_run=true"],
        ["trainer.overfit_batches=1", "trainer.max_epochs=2"],
        ["trainer.max_epochs=null", "trainer.max_steps=4"],
        ["trainer.max_epochs=1", "trainer.logger=false"],
        ["trainer.max_epochs=1", "trainer.enable_checkpointing=false"],
        ["trainer.max_epochs=1", "trainer.limit_val_batches=0"],
        ["trainer.max_epochs=1", "trainer.precision=bf16-mixed"],
        ["trainer.max_epochs=1", "trainer.precision=64-true", "model.class_weights=[1, 2, 3]"],
        ["trainer.max_epochs=1", "trainer.max_time='00:01:00:00'"],
        ["trainer.max_epochs=1", "callbacks.confusion_matrix=null", "callbacks.progress_line=null"],
        ["trainer.max_epochs=2", "trainer.val_check_interval=0.5"],
        ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2"],
        ["trainer.max_epochs=2", "schedule={name: plateau}", "trainer.check_val_every_n_epoch=2"],
        ["trainer.max_epochs=1", "callbacks.timer={duration: '00:01:00:00'}"],
    ],
    ids=" ".join,
)
def test_trainer_options(options, tmp_path):
    folder = run(tmp_path / "runs", "--config", IRIS, *options)
    assert "test/accuracy" in figures(folder)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_barebones_measures_nothing_and_says_so(tmp_path, capsys):
    off = ["trainer.logger=false", "trainer.enable_checkpointing=false", "trainer.log_every_n_steps=null"]
    run(tmp_path, "--config", IRIS, "trainer.max_epochs=1", "trainer.barebones=true", *off)
    assert "test         not measured" in capsys.readouterr().out


def test_without_a_test_the_validation_figures_are_kept(tmp_path, capsys):
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1", "trainer.limit_test_batches=0")
    assert "val/accuracy" in figures(folder)
    assert "test/accuracy" not in figures(folder)
    assert "test         not measured" in capsys.readouterr().out


def test_overfitting_one_batch_learns_it_by_heart(tmp_path):
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
        (["trainer.devices=4096"], "command line: trainer.devices: devices: 4096 processes on the CPU; this machine has"),
        (["trainer.strategy=foo"], "command line: trainer.strategy: You selected an invalid strategy name"),
        (["trainer.profiler=foo"], "command line: trainer.profiler: When passing string value"),
        (["trainer.val_check_interval=100"], "command line: trainer.val_check_interval: `val_check_interval` (100) must be"),
        (["callbacks.timer={duration: 1h}"], "command line: callbacks.timer.duration: `Timer(duration='1h')`"),
        (["optimizer={name: sgd, nesterov: true}"], "command line: optimizer.nesterov: needs a momentum"),
        (["model.class_weights=[1]"], "command line: model.class_weights: 1 weights for 3 classes"),
        (["data.val_fraction=0.999"], "command line: data.val_fraction: 0.999 of 120 samples leaves 0 and 120"),
        (["run.name=a/b"], "command line: run.name: 'a/b' is not a folder's name"),
    ],
)  # fmt: skip
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_what_only_the_machine_or_the_data_can_refuse(options, expected, tmp_path, capsys):
    assert train.main(["--config", IRIS, f"run.root={tmp_path}", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {expected}")
    assert said.count("\n") == 1
    assert list(tmp_path.glob("*/*")) == []  # nothing of a run that never began


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


def test_the_end_tells_a_person_what_they_want_to_know(tmp_path, capsys):
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=2")
    said = capsys.readouterr().out
    for part in ("test         accuracy 0.", "validation   accuracy 0.", "2 epochs, 6 steps", str(folder)):
        assert part in said
    assert f"tensorboard --logdir {tmp_path}" in said
    assert re.search(r"^epoch 2/2  [\d.]+ s  train/loss", said, re.M)
