"""The cores that a process may use, and how threads wait for each other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import threads
from engine.config.signatures import PROJECT
from engine.threads import WAIT_VARIABLES, available_cores, limit_spinning
from tests import conftest

CORES = 8  # of the machine in these tests


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with 8 cores, without SLURM and torchrun."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)), raising=False)
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in ("RANK", "LOCAL_RANK")]:
        monkeypatch.delenv(name)


def write_cgroup(root: Path, lines: str, **limits: str) -> Path:
    """A root folder with /proc/self/cgroup and files of limits, by path below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for path, text in limits.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("lines", "limits", "cores"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, CORES),
        ("0::/\n", {"cpu.max": "390000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, CORES),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "200000 100000"}, 2),
        ("0::/../../outside\n", {"cpu.max": "300000 100000"}, 3),
        ("0::/of the host\n", {"cpu.max": "300000 100000"}, 3),
        ("4:cpu,x:/a\n0::/\n", {"cpu,x/a/cpu.cfs_quota_us": "400000", "cpu,x/a/cpu.cfs_period_us": "100000"}, 4),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CORES),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "200000\n"}, CORES),
        ("3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}, CORES),
        ("0::/\n", {"cpu.max": "100000 0\n"}, CORES),
        ("0::/\n", {"cpu.max": "\n"}, CORES),
        ("garbage\n", {"cpu.max": "100000 100000\n"}, CORES),
        ("", {}, CORES),
    ],
)  # fmt: skip
def test_limit_of_the_cgroup(lines, limits, cores, tmp_path):
    assert available_cores(root=write_cgroup(tmp_path, lines, **limits)) == cores


def test_a_system_without_proc(tmp_path):
    assert available_cores(root=tmp_path) == CORES


def test_a_system_without_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(root=tmp_path) == 1


@pytest.mark.parametrize(
    ("variables", "num_processes", "cores"),
    [
        ({}, 1, 8),
        ({}, 2, 4),
        ({}, 3, 2),
        ({}, 8, 1),
        ({}, 9, 0),
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_NTASKS": "1"}, 1, 4),
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_NTASKS": "1"}, 2, 2),
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "4", "SLURM_NTASKS": "2"}, 2, 2),
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_NTASKS": "4"}, 4, 1),
        ({"SLURM_CPUS_ON_NODE": "1", "SLURM_NTASKS": "4"}, 4, 1),  # srun has started them, so they are not refused
        ({"SLURM_CPUS_PER_TASK": "6", "SLURM_NTASKS": "2", "RANK": "0"}, 2, 3),  # torchrun in each task
        ({"SLURM_CPUS_PER_TASK": "64"}, 1, 8),
        ({"SLURM_CPUS_ON_NODE": "0"}, 1, 8),
        ({"SLURM_CPUS_ON_NODE": "-4"}, 1, 8),
        ({"SLURM_CPUS_ON_NODE": "4(x2)", "SLURM_NTASKS": "2(x3)"}, 1, 8),
        ({"SLURM_CPUS_ON_NODE": "9" * 5000}, 1, 8),
    ],
)
def test_processes_share_what_slurm_allots(variables, num_processes, cores, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert available_cores(num_processes, tmp_path) == cores


@pytest.mark.parametrize("name", WAIT_VARIABLES)
@pytest.mark.parametrize("value", ["7", ""])
def test_the_user_chooses_how_threads_wait(name, value, monkeypatch):
    for other in WAIT_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    limit_spinning()
    assert dict(os.environ) == before


FINDER = """
import os, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder())
"""


MODULES = sorted(path.stem for path in PROJECT.glob("*.py"))
if (PROJECT / "benchmarks").exists():
    MODULES.append("benchmarks.__main__")


@pytest.mark.parametrize("module", MODULES)
def test_every_command_sets_the_variable_before_torch_is_imported(module):
    environment = {name: value for name, value in os.environ.items() if name not in WAIT_VARIABLES}
    command = [sys.executable, "-c", f"{FINDER}\nimport {module}, torch"]
    options = {"cwd": PROJECT, "env": environment, "timeout": 60, "check": True}
    printed = subprocess.run(command, capture_output=True, text=True, **options).stdout
    assert printed == f"{threads.SPIN_COUNT}\n"


def test_conftest_sets_the_number_of_threads_before_torch_is_imported():
    """A warning class of another package in pyproject.toml would import torch earlier."""
    assert not conftest.WAS_TORCH_IMPORTED
