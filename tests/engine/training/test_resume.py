"""A run that was stopped and resumed ends as one that never was, to the bit."""

import signal

import pytest

import train
from tests.exactness import differences, signalled, start

CNN = [
    "--config", "configs/mnist_cnn.yaml", "model.widths=[8, 8, 8]", "data.batch_size=64", "trainer.max_epochs=3",
    "trainer.precision=32-true", "schedule={name: plateau}", "trainer.log_every_n_steps=1",
]  # fmt: skip
SPEED = [
    "--config", "configs/cifar10_cnn.yaml", "model.widths=[8, 8, 8]", "data.batch_size=64", "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
]  # fmt: skip
BERT = [
    "--config", "configs/text_bert.yaml", "model.hidden_size=16", "model.num_layers=1", "model.num_heads=2",
    "model.dropout=0.1", "data.max_tokens=400", "trainer.max_epochs=3", "trainer.log_every_n_steps=2", "data.test=null",
    "data.text_column=text",
]  # fmt: skip


def at(epoch, batch, validating=False):
    """When training has come to this batch of this epoch, or to its validation."""

    def when(trainer):
        if validating:
            return trainer.validating and not trainer.sanity_checking and trainer.current_epoch == epoch
        return trainer.training and trainer.current_epoch == epoch and trainer.fit_loop.batch_idx + 1 == batch

    return when


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs that were never stopped, one for each list of options."""
    known = {}

    def run(options):
        key = tuple(options)
        if key not in known:
            code, known[key] = start(tmp_path_factory.mktemp("whole"), *options)
            assert code == 0
        return known[key]

    return run


def options_of(model, small_data):
    if model == "speed":
        return [*SPEED, f"data.root={small_data}"]
    texts = [f"data.train={small_data}/text/train.tsv", f"data.cache={small_data}/cache"]
    return [*CNN, f"data.root={small_data}"] if model == "cnn" else [*BERT, *texts]


VARIANTS = [
    ("speed", [], [(0, 2)]),
    ("speed", [], [(1, 3), (1, 0, True)]),
    ("cnn", [], [(0, 0)]),
    ("cnn", [], [(1, 3)]),
    ("cnn", [], [(1, 8)]),
    ("cnn", [], [(1, 0, True)]),
    ("cnn", [], [(1, 2), (1, 2, False), (1, 5)]),
    ("cnn", ["trainer.accumulate_grad_batches=3"], [(0, 4)]),
    ("cnn", ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3"], [(0, 0, True)]),
    ("cnn", ["trainer.val_check_interval=3"], [(1, 0, True), (1, 4)]),
    ("cnn", ["trainer.num_sanity_val_steps=2", "trainer.check_val_every_n_epoch=2"], [(2, 1)]),
    ("cnn", ["callbacks.ema_weight_averaging={decay: 0.9}"], [(1, 3)]),
    ("cnn", ["callbacks.ema_weight_averaging={decay: 0.9}"], [(1, 0, True)]),
    ("cnn", ["callbacks.early_stopping={monitor: val/loss, patience: 1, min_delta: 10.0}"], [(0, 0, True)]),
    ("cnn", ["optimizer={name: sgd, lr: 0.1, momentum: 0.9}", "schedule={name: one_cycle}"], [(2, 7)]),
    ("cnn", ["trainer.precision=bf16-mixed"], [(1, 3)]),
    ("cnn", ["trainer.max_epochs=null", "trainer.max_steps=20"], [(2, 1)]),
    ("cnn", ["trainer.max_epochs=null", "trainer.max_steps=20"], [(0, 0), (1, 0)]),
    ("cnn", ["trainer.max_epochs=null", "trainer.max_steps=18"], [(1, 0, True)]),
    ("cnn", ["trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=4"], [(1, 0, True), (2, 3)]),
    ("cnn", ["trainer.limit_train_batches=5", "trainer.accumulate_grad_batches=2"], [(1, 3)]),
    ("cnn", ["trainer.overfit_batches=2"], [(1, 1)]),
    ("cnn", ["trainer.reload_dataloaders_every_n_epochs=1"], [(1, 3)]),
    ("cnn", ["trainer.limit_val_batches=0", "schedule.name=constant"], [(1, 3)]),
    ("cnn", ["trainer.logger=false"], [(1, 0, True)]),
    ("cnn", ["trainer.val_check_interval=4"], [(1, 8)]),  # plateau looks at a validation from before the stop
    ("cnn", ["trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=7"], [(1, 7)]),
    (
        "cnn",
        ["callbacks.early_stopping={monitor: val/loss, patience: 1, min_delta: 10.0}", "trainer.min_steps=24"],
        [(2, 3)],
    ),
    ("bert", [], [(1, 3)]),
    ("bert", [], [(2, 0, True)]),
]


@pytest.mark.parametrize(("model", "changes", "stops"), VARIANTS, ids=str)
def test_stopped_by_a_signal_and_resumed(model, changes, stops, small_data, finished, tmp_path, monkeypatch):
    options = [*options_of(model, small_data), *changes]
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
