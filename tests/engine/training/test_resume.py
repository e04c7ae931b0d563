"""A run that was stopped and resumed is bitwise identical to a run that was not stopped."""

import os
import signal
import time
from itertools import count
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

import train
from tests import files
from tests.exactness import CLOCK, differences, signalled, start
from tests.runs import IRIS, WITHOUT_PICTURES

CNN = [
    "--config", "configs/mnist_cnn.yaml", "model.widths=[8, 8, 8]", "data.batch_size=64", "trainer.max_epochs=3",
    "trainer.precision=32-true", "schedule={name: plateau}", "trainer.log_every_n_steps=1",
]  # fmt: skip
SPEED = [
    "--config", "configs/cifar10_cnn.yaml", "model.widths=[8, 8, 8]", "data.batch_size=64", "trainer.max_epochs=3",
    "trainer.precision=32-true", "trainer.log_every_n_steps=1",
]  # fmt: skip
BERT = [
    "--config", "configs/text_bert.yaml", "model.hidden_size=16", "model.num_layers=1", "model.num_heads=2",
    "model.dropout=0.1", "data.max_tokens=400", "trainer.max_epochs=3", "trainer.log_every_n_steps=2", "data.test=null",
    "data.text_column=text",
]  # fmt: skip

EMA = "callbacks.ema_weight_averaging={decay: 0.9}"
DOUBLE = "trainer.precision=64-true"


def at(epoch, batch, validating=False):
    """Whether training is at this batch of this epoch, or at its validation."""

    def when(trainer):
        if validating:
            return trainer.validating and not trainer.sanity_checking and trainer.current_epoch == epoch
        return trainer.training and trainer.current_epoch == epoch and trainer.fit_loop.batch_idx + 1 == batch

    return when


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Trains runs without a stop, once for each list of options."""
    known = {}

    def run(options):
        key = tuple(options)
        if key not in known:
            code, known[key] = start(tmp_path_factory.mktemp("whole"), *options)
            assert code == 0
        return known[key]

    return run


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def options_of(model, data, cache):
    if model == "iris":
        return ["--config", IRIS, "model.dropout=0.1", "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]
    if model == "speed":
        return [*SPEED, f"data.root={data}"]
    texts = [f"data.train={data}/text/train.tsv", f"data.cache={cache}"]
    return [*CNN, f"data.root={data}"] if model == "cnn" else [*BERT, *texts]


VARIANTS = [
    ("cnn", [], [(1, 3)]),
    ("text_bert", [], [(1, 3)]),
    ("iris", [DOUBLE], [(1, 2)]),
]
# other options that change the loop, left out of a plain `pytest`
MORE_VARIANTS = [
    ("cnn", [], [(1, 0, True)]),
    ("cnn", [], [(1, 2), (1, 2, False), (1, 5)]),
    ("cnn", ["callbacks.ema_weight_averaging={decay: 0.9}"], [(1, 0, True)]),
    ("iris", [DOUBLE, EMA, "optimizer={name: sgd, lr: 0.1, momentum: 0.9}"], [(1, 1)]),
    ("text_bert", [], [(2, 0, True)]),
    ("cnn", ["trainer.max_epochs=null", "trainer.max_steps=20"], [(0, 0), (1, 0)]),
    ("cnn", ["trainer.accumulate_grad_batches=3"], [(0, 4)]),
    ("cnn", [], [(0, 0)]),
    ("cnn", [], [(1, 8)]),
    ("speed", [], [(0, 2)]),
    ("speed", [], [(1, 3), (1, 0, True)]),
    ("cnn", ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3"], [(0, 0, True)]),
    ("cnn", ["trainer.val_check_interval=3"], [(1, 0, True), (1, 4)]),
    ("cnn", ["trainer.num_sanity_val_steps=2", "trainer.check_val_every_n_epoch=2"], [(2, 1)]),
    ("cnn", ["callbacks.ema_weight_averaging={decay: 0.9}"], [(1, 3)]),
    ("cnn", ["callbacks.early_stopping={monitor: val/loss, patience: 1, min_delta: 10.0}"], [(0, 0, True)]),
    ("cnn", ["optimizer={name: sgd, lr: 0.1, momentum: 0.9}", "schedule={name: one_cycle}"], [(2, 7)]),
    ("cnn", ["trainer.precision=bf16-mixed"], [(1, 3)]),
    ("iris", [DOUBLE], [(0, 0, True), (2, 1)]),
    ("iris", [DOUBLE, EMA, "model.normalization=batch"], [(2, 0, True)]),
    ("iris", [DOUBLE, "trainer.accumulate_grad_batches=2", "callbacks.early_stopping={monitor: val/loss}"], [(1, 2)]),
    ("iris", [EMA, "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=1"], [(1, 2)]),
    ("cnn", ["trainer.precision=bf16-true"], [(1, 3)]),
    ("cnn", ["callbacks.quantization={epochs: 2}", "trainer.precision=bf16-mixed"], [(1, 0), (1, 0, True), (2, 3)]),
    ("text_bert", ["callbacks.quantization={epochs: 2}", EMA], [(1, 0), (2, 3)]),
    ("cnn", [DOUBLE], [(1, 3)]),
    ("text_bert", [DOUBLE, EMA], [(1, 3)]),
    ("cnn", ["trainer.max_epochs=null", "trainer.max_steps=20"], [(2, 1)]),
    ("cnn", ["trainer.max_epochs=null", "trainer.max_steps=18"], [(1, 0, True)]),
    ("cnn", ["trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=4"], [(1, 0, True), (2, 3)]),
    ("cnn", ["trainer.limit_train_batches=5", "trainer.accumulate_grad_batches=2"], [(1, 3)]),
    ("cnn", ["trainer.overfit_batches=2"], [(1, 1)]),
    ("cnn", ["trainer.reload_dataloaders_every_n_epochs=1"], [(1, 3)]),
    ("cnn", ["trainer.limit_val_batches=0", "schedule.name=constant"], [(1, 3)]),
    ("cnn", ["trainer.logger=false"], [(1, 0, True)]),
    ("cnn", ["trainer.val_check_interval=4"], [(1, 8)]),  # the schedule reads a validation from before the stop
    ("cnn", ["trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=7"], [(1, 7)]),
    (
        "cnn",
        ["callbacks.early_stopping={monitor: val/loss, patience: 1, min_delta: 10.0}", "trainer.min_steps=24"],
        [(2, 3)],
    ),
]


@pytest.mark.slow
def test_results_do_not_depend_on_the_speed_of_the_machine(finished, written_data, cache, tmp_path, monkeypatch):
    """On a slow machine pictures are drawn of every validation. Checkpoints, metrics and curves are the same."""
    files.expect_small_files(monkeypatch)
    options = options_of("cnn", written_data, cache)
    fast = finished(options)
    seconds = count(step=1000.0)
    monkeypatch.setattr("callbacks.evaluation.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    assert differences(fast, start(tmp_path, *options)[1]) == []


@pytest.mark.parametrize(
    ("model", "changes", "stops"),
    [*VARIANTS, *(pytest.param(*variant, marks=pytest.mark.slow) for variant in MORE_VARIANTS)],
    ids=str,
)
def test_stopped_by_a_signal_and_resumed(model, changes, stops, written_data, cache, finished, tmp_path, monkeypatch):
    files.expect_small_files(monkeypatch)
    options = [*options_of(model, written_data, cache), *changes, *(WITHOUT_PICTURES if changes else [])]
    first = True
    for stop in stops:
        with signalled(monkeypatch, at(*stop)):
            if first:
                code, folder = start(tmp_path / "runs", *options)
            else:
                code = train.main(["--resume", str(folder)])
        assert code == 128 + signal.SIGTERM
        assert not (folder / "metrics.json").exists()
        first = False
    assert train.main(["--resume", str(folder)]) == 0
    assert differences(finished(options), folder) == []


def read_curves(folder):
    """The curves as TensorBoard reads them: the files of a folder in the order of their names."""
    curves = {}
    for stage in ("", "val"):
        events = EventAccumulator(str(folder / stage), size_guidance={"scalars": 0}).Reload()
        curves |= {
            (stage, tag): [(point.step, point.value) for point in events.Scalars(tag)]
            for tag in sorted({*events.Tags()["scalars"]} - CLOCK)
        }
    return curves


@pytest.mark.parametrize("shifts", [[-86400], [0], pytest.param([-86400, -172800], marks=pytest.mark.slow)], ids=str)
def test_curves_are_in_order_when_the_clock_was_set_back(shifts, finished, tmp_path, monkeypatch):
    """TensorBoard reads files in the order of their names, which begin with a time and a process id (here 9, 10, 11)."""
    options = [*options_of("iris", None, None), *WITHOUT_PICTURES]
    now, folder = time.time(), tmp_path
    for i, shift in enumerate([0, *shifts]):
        monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda shift=shift: now + shift))
        system = SimpleNamespace(path=os.path, getpid=lambda i=i: 9 + i)
        monkeypatch.setattr(event_file_writer, "os", system)
        if i == len(shifts):
            assert train.main(["--resume", str(folder)]) == 0
        else:
            with signalled(monkeypatch, at(i, 2)):
                if i == 0:
                    _, folder = start(tmp_path / "runs", *options)
                else:
                    assert train.main(["--resume", str(folder)]) == 143
    curves = read_curves(folder)
    assert curves == read_curves(finished(options))
    assert len(curves["", "metrics/loss"]) == 3
