"""Threads of a training that waits for cores are bound to a core each."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import engine.training.spread_threads as module
from engine.training.spread_threads import SpreadThreads, release_threads, spread_threads, thread_cpu_seconds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are bound only on Linux")
CORES = os.sched_getaffinity(0) if sys.platform == "linux" else set()
MAIN = os.getpid()


@pytest.fixture
def machine(monkeypatch):
    """The time and the waiting of the main thread; a test sets both. torch has as many threads as there are cores."""
    now = SimpleNamespace(seconds=1000.0, waited=7.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr(module, "core_waiting_seconds", lambda: now.waited)
    threads = torch.get_num_threads()
    torch.set_num_threads(len(CORES))
    yield now
    torch.set_num_threads(threads)
    release_threads(dict.fromkeys(bound_threads(), CORES))


def trainer(device: str = "cpu", **loaders: Any) -> Any:
    loaders = {"train_dataloader": None, "val_dataloaders": None} | loaders
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), **loaders)


def bound_threads() -> dict[int, set[int]]:
    """The cores of the threads of this process that may not use all cores."""
    masks = {thread: os.sched_getaffinity(thread) for thread in thread_cpu_seconds()}
    return {thread: cores for thread, cores in masks.items() if cores != CORES}


def train(machine: SimpleNamespace, waiting: list[float], device: str = "cpu", **loaders: Any) -> SpreadThreads:
    """A training that computes and waits for a core for each of `waiting` seconds in turn, of one second each."""
    callback: Any = SpreadThreads()
    callback.on_train_start(trainer(device, **loaders), None)
    callback.on_train_batch_end(trainer(device), None, None, None, 0)
    for number, seconds in enumerate(waiting, 1):
        machine.seconds += 1.0
        machine.waited += seconds
        for _ in range(20):
            torch.randn(512, 512) @ torch.randn(512, 512)
        callback.on_train_batch_end(trainer(device), None, None, None, number)
    return callback


@pytest.mark.parametrize("end", ["teardown", "on_exception"])
def test_a_training_that_waits_has_each_thread_on_its_own_core_until_it_ends(end, machine):
    callback = train(machine, [0.1, 0.0, 0.5, 0.5])
    bound = bound_threads()
    if len(CORES) > 1:
        assert MAIN in bound
        assert sorted(map(sorted, bound.values())) == [[core] for core in sorted(CORES)]
    getattr(callback, end)(None, None, "fit")
    assert not bound_threads()


@pytest.mark.parametrize(
    ("waiting", "device"),
    [([0.1, 0.15, 0.19], "cpu"), ([], "cpu"), ([0.9, 0.9], "cuda")],
)
def test_other_trainings_are_left_alone(waiting, device, machine):
    train(machine, waiting, device)
    assert not bound_threads()


def test_fewer_threads_than_cores_are_not_bound(machine):
    torch.set_num_threads(max(1, len(CORES) - 1))
    train(machine, [0.5])
    assert not bound_threads()


def test_a_system_that_does_not_tell_how_long_a_thread_waits(machine, monkeypatch):
    monkeypatch.setattr(module, "core_waiting_seconds", lambda: None)
    train(machine, [0.5])
    assert not bound_threads()


@pytest.mark.parametrize("split", ["train_dataloader", "val_dataloaders"])
def test_threads_are_not_bound_beside_workers_of_a_dataloader(split, machine):
    train(machine, [0.5], **{split: {"a": DataLoader([0], num_workers=1)}})
    assert not bound_threads()


@pytest.mark.parametrize(
    ("siblings", "num_threads", "expected"),
    [
        (["0,2", "1,3", "0,2", "1,3"], 2, [{0, 2}, {1, 3}]),  # a thread per core
        (["0-1", "0-1", "2-3", "2-3"], 4, [{0}, {1}, {2}, {3}]),  # a thread per logical CPU
        (["0-1", "0-1", "2-3", "2-3"], 3, []),
        ([], 4, [{0}, {1}, {2}, {3}]),  # a system without this information
    ],
)
def test_cores_with_two_logical_cpus(siblings, num_threads, expected, tmp_path, monkeypatch):
    for cpu, text in enumerate(siblings):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{text}\n")
    bound: dict[int, set[int]] = {}
    monkeypatch.setattr(module, "CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", bound.__setitem__)
    former = spread_threads(list(range(11, 11 + num_threads)))
    assert list(bound.values()) == expected
    release_threads(former)
    assert all(cores == {0, 1, 2, 3} for cores in bound.values())


def test_a_thread_that_has_ended_is_no_error():
    ended = 2**22 + 1  # larger than the largest thread ID of Linux
    release_threads(spread_threads([ended] * len(CORES)))
    assert not bound_threads()
