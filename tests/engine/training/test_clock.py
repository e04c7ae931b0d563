"""The measurement of where the time of a run goes."""

import time

import pytest

from engine.training.clock import TRAINING, Clock, process_seconds
from tests.runs import IRIS, figures, run


def test_activities_add_up_to_the_training(tmp_path, capsys):
    folder = run(tmp_path, "--config", IRIS, "trainer.max_epochs=20", "trainer.log_every_n_steps=1")
    seconds = figures(folder)["seconds"]
    assert sum(seconds[name] for name in TRAINING) == pytest.approx(figures(folder)["train_seconds"], abs=0.05)
    assert all(seconds[name] > 0 for name in ("start", *TRAINING, "test"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time")]
    assert "training" in line
    assert "step" in line


def test_a_slow_activity_is_named_with_the_key_that_reduces_it():
    clock = Clock()
    clock.seconds |= {"step": 50.0, "data": 1.0, "validation": 40.0, "checkpoints": 0.0, "logging": 0.0}
    _, advice = clock.summary()
    assert advice.startswith("44% of the training went into validation: raise trainer.check_val_every_n_epoch")


def test_a_short_training_gets_no_advice():
    clock = Clock()
    clock.seconds |= {"step": 1.0, "validation": 4.0}
    assert len(clock.summary()) == 1


def test_a_block_that_fails_is_measured():
    clock = Clock()
    with pytest.raises(KeyError), clock.measure("data"):
        raise KeyError
    assert clock.seconds["data"] > 0


def test_an_activity_within_another_is_counted_once():
    clock = Clock()
    clock.begin("validation")
    with clock.measure("logging"), clock.measure("data"):
        time.sleep(0.1)
    clock.end("validation")
    assert clock.seconds["data"] == pytest.approx(0.1, abs=0.05)
    assert clock.seconds["logging"] + clock.seconds["validation"] < 0.05


def test_the_age_of_the_process():
    age = process_seconds()
    assert 0 < age < 36_000
    assert process_seconds() >= age


def test_a_run_with_only_the_test_left_has_no_training():
    clock = Clock()
    clock.test_end()
    (line,) = clock.summary()
    assert line.startswith("start 0.0 s, training 0.0 s, test")
