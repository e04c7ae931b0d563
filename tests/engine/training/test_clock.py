"""The measurement of where the time of a run goes."""

import time
from types import SimpleNamespace

import pytest

from engine.training import clock as module
from engine.training.clock import TRAINING, Clock, core_waiting_seconds, process_seconds
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


@pytest.fixture
def machine(monkeypatch) -> SimpleNamespace:
    """The time, and how long the main thread has waited for a core; a test sets both."""
    now = SimpleNamespace(seconds=1000.0, waited=7.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    monkeypatch.setattr(module, "process_seconds", lambda: 3.0)
    monkeypatch.setattr(module, "core_waiting_seconds", lambda: now.waited)
    return now


def spend(machine: SimpleNamespace, seconds: float, waiting: float) -> None:
    machine.seconds += seconds
    machine.waited += waiting


@pytest.mark.parametrize(
    ("seconds", "waiting", "advice"),
    [
        (10.0, 0.2, None),  # alone
        (10.0, 1.9, None),
        (10.0, 4.0, "the run waits 40% of the time for a CPU core: stop other programs"),
        (600.0, 550.0, "the run waits 92% of the time for a CPU core: stop other programs"),
        (9.9, 9.0, None),  # too short
        (3600.0, 3.0, None),  # another program that ended after seconds
        (10.0, -5.0, None),
    ],
)
def test_waiting_for_a_core(seconds, waiting, advice, machine):
    clock = Clock()
    spend(machine, 100.0, 90.0)  # before the training, which does not count
    clock.train_start()
    spend(machine, seconds, waiting)
    found = clock.waiting_advice()
    assert found is None if advice is None else str(found).startswith(advice)
    assert clock.waiting_advice() is None


def test_waiting_is_reported_when_it_begins_and_only_once(machine):
    clock = Clock()
    clock.train_start()
    spend(machine, 3600.0, 10.0)
    assert clock.waiting_advice() is None
    for _ in range(9):
        spend(machine, 1.0, 0.5)
        assert clock.waiting_advice() is None
    spend(machine, 1.0, 0.5)
    assert clock.waiting_advice() is not None
    spend(machine, 1000.0, 900.0)
    assert clock.waiting_advice() is None
    clock.train_end()
    assert not any("core" in line for line in clock.summary())


def test_waiting_is_in_the_summary_of_a_run_without_a_progress_line(machine):
    clock = Clock()
    clock.train_start()
    spend(machine, 100.0, 45.0)
    clock.train_end()
    clock.test_end()
    assert clock.summary()[1:] == [f"the run waits 45% of the time for a CPU core: {module.WAITING_HINT}"]


def test_a_system_that_does_not_tell_how_long_a_thread_waits(machine, monkeypatch):
    monkeypatch.setattr(module, "core_waiting_seconds", lambda: None)
    clock = Clock()
    clock.train_start()
    machine.seconds += 100.0
    assert clock.waiting_advice() is None
    clock.train_end()
    assert len(clock.summary()) == 1


@pytest.mark.parametrize("content", [None, "", "12", "1 x 3", "0 0 0\n", "12 3000000000 5\n"])
def test_waiting_time_of_the_kernel(content, tmp_path, monkeypatch):
    file = tmp_path / "schedstat"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(module, "Path", lambda _: file)
    expected = {"0 0 0\n": 0.0, "12 3000000000 5\n": 3.0}
    assert core_waiting_seconds() == expected.get(str(content))
