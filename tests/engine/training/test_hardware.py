"""The number of threads and processes of a run."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator

import train
from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.contracts import ConfigError, OptionError
from engine.training import hardware
from engine.training.hardware import check_processes, describe_hardware, set_threads
from tests.exactness import signalled, start
from tests.runs import IRIS, run

SHORT = ["--config", IRIS, "trainer.max_epochs=1"]


@pytest.fixture(autouse=True)
def restored_threads(monkeypatch):
    """Every test has one thread again at its end."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch) -> SimpleNamespace:
    """A machine with 8 cores where the user has set no variable."""
    machine = SimpleNamespace(cores=8)
    monkeypatch.setattr(hardware, "ARE_THREADS_SET", False)
    monkeypatch.setattr(hardware, "TORCH_THREADS", 8)
    monkeypatch.setattr(hardware, "available_cores", lambda num_processes=1: machine.cores // num_processes)
    return machine


def threads_of(folder) -> int:
    return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["threads"]


@pytest.mark.parametrize(
    ("wanted", "num_processes", "earlier", "cores", "threads"),
    [
        (None, 1, None, 8, 8),
        (None, 2, None, 8, 4),
        (None, 3, None, 8, 2),
        (None, 4, None, 2, 1),  # more processes than cores
        (None, 1, None, 64, 8),  # torch counts physical cores
        (3, 1, None, 8, 3),
        (3, 2, None, 8, 3),
        (16, 1, None, 8, 16),  # as the user wants
        (3, 1, 5, 8, 3),
        (None, 1, 5, 8, 5),
        (None, 1, 8, 8, 8),
        (None, 2, 5, 8, 4),  # then the resumption is refused, because 5 threads need more cores
        (None, 1, 0, 8, 8),
    ],
)
def test_order_of_precedence(wanted, num_processes, earlier, cores, threads, machine):
    machine.cores = cores
    set_threads(wanted, num_processes, earlier)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("wanted", "threads"), [(None, 6), (2, 2)])
def test_the_variable_of_the_user_counts_unless_the_config_has_a_number(wanted, threads, machine, monkeypatch):
    monkeypatch.setattr(hardware, "ARE_THREADS_SET", True)
    monkeypatch.setattr(hardware, "TORCH_THREADS", 6)
    set_threads(wanted, 1, earlier=4)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("num_processes", "variable"), [(1, None), (2, "4")])
def test_processes_that_the_run_starts_have_as_many_threads(num_processes, variable, machine, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_threads(None, num_processes)
    assert os.environ.get("OMP_NUM_THREADS") == variable
    set_threads(None, 1)  # the next run of this process takes no notice
    assert torch.get_num_threads() == 8
    os.environ.pop("OMP_NUM_THREADS", None)


def test_threads_of_the_config(tmp_path, capsys):
    folder = run(tmp_path / "first", *SHORT, "run.threads=2")
    assert threads_of(folder) == torch.get_num_threads() == 2
    assert ", 2 threads, " in capsys.readouterr().out
    assert threads_of(run(tmp_path / "next", *SHORT)) == 1  # and the next run has its own


def test_check_uses_the_threads_of_the_config(capsys):
    assert train.main([*SHORT, "--check", "run.threads=2"]) == 0
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "auto", "1025", "[2]", "true", "1e3"])
def test_wrong_numbers_of_threads_are_refused(value):
    with pytest.raises(ConfigError, match=r"run\.threads"):
        load_config(IRIS, [f"run.threads={value}"])


def stopped(tmp_path, monkeypatch, *options: str):
    with signalled(monkeypatch, lambda trainer: trainer.training and trainer.global_step == 4):
        _, folder = start(tmp_path, "--config", IRIS, "trainer.max_epochs=3", *options)
    return folder


def test_a_resumed_run_keeps_its_number_of_threads(tmp_path, machine, monkeypatch):
    machine.cores = 2
    folder = stopped(tmp_path, monkeypatch)
    assert threads_of(folder) == 2
    machine.cores = 8  # a larger machine
    assert train.main(["--resume", str(folder)]) == 0
    assert torch.get_num_threads() == threads_of(folder) == 2


def test_a_run_is_not_resumed_with_fewer_cores_than_threads(tmp_path, machine, monkeypatch, capsys):
    machine.cores = 3
    folder = stopped(tmp_path, monkeypatch)
    machine.cores = 2
    assert train.main(["--resume", str(folder)]) == 2
    assert "threads was 3 and is 2: the number of threads changes the order of sums; set OMP_NUM_THREADS=3" in (
        capsys.readouterr().err
    )


def test_a_run_with_another_key_is_another_run(tmp_path, monkeypatch, capsys):
    folder = stopped(tmp_path, monkeypatch, "run.threads=1")
    assert train.main(["--resume", str(folder), "run.threads=2"]) == 2
    assert "run.threads: is 2 in this command, but 1 in" in capsys.readouterr().err
    assert train.main(["--resume", str(folder)]) == 0


def test_processes_need_cores_that_they_may_use(machine):
    machine.cores = 2
    check_processes(CPUAccelerator(), 2, 2)
    with pytest.raises(OptionError, match="3 processes need at least 3 CPU cores"):
        check_processes(CPUAccelerator(), 3, 3)


def test_hardware_is_described_with_the_cores_that_the_process_may_use(machine, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert describe_hardware().startswith("this machine has 8 CPU cores, ")
    machine.cores = 2
    assert describe_hardware().startswith("this machine has 8 CPU cores (this process may use 2), ")


@pytest.mark.slow
@pytest.mark.parametrize(("options", "threads"), [([], 1), (["run.threads=2"], 2)])
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_processes_share_the_cores(options, threads, tmp_path):
    unset = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "train.py", *SHORT, *options, "trainer.accelerator=cpu", f"run.root={tmp_path}"]
    command += ["trainer.devices=2", "data.batch_size=16"]
    subprocess.run(command, cwd=PROJECT, env=environment, check=True, capture_output=True, timeout=120)
    (folder,) = tmp_path.glob("*/*")
    if options or len(os.sched_getaffinity(0)) == 2:
        assert threads_of(folder) == threads


@pytest.mark.parametrize("text", ["flags : avx2 avx512_bf16\nmodel name : A CPU\n", None])
def test_features_that_torch_does_not_name(text, tmp_path, monkeypatch):
    """torch 2.9 names no features, so they are read from Linux. Other systems have no such file."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(hardware, "Path", lambda path: tmp_path / path.lstrip("/").replace("/", "_"))
    if text is not None:
        (tmp_path / "proc_cpuinfo").write_text(text, encoding="utf-8")
    expected = {"avx2": True, "avx512_bf16": True, "cpu_name": "A CPU"}
    assert hardware.cpu_features() == (expected if text is not None else {})
