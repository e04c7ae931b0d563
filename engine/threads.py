"""How many cores a process may use, how its threads wait for each other, and how it starts processes.

This module does not import torch.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path

# How many rounds an idle thread spins. With libgomp's default, 300,000, a process is ten times slower if other processes use
# its cores. Measured by `python -m benchmarks busy`, docs/speed.md.
SPIN_COUNT = 3000
WAIT_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

# read now, because `set_threads` later changes a variable for the processes that a run starts
ARE_THREADS_SET = any(os.environ.get(name) for name in THREAD_VARIABLES)


def limit_spinning() -> None:
    """Let idle threads sleep early, unless the user has chosen how threads wait. Call this before torch is imported."""
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def available_cores(num_processes: int = 1, root: Path = Path("/")) -> int:
    """Return the number of cores for each of the `num_processes` processes of a run on this machine.

    The affinity mask, the CPU limit of the cgroup (rounded down) and the allotment of SLURM limit the cores. The processes
    share them. The result is 0 if there are more processes than cores.

    Args:
        num_processes: Number of processes.
        root: Folder that contains ``proc`` and ``sys``.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # Linux only
    cores = min([affinity or 1, *(max(1, int(limit)) for limit in _cgroup_limits(root))])
    per_task, on_node = _number("SLURM_CPUS_PER_TASK"), _number("SLURM_CPUS_ON_NODE")
    if _number("SLURM_NTASKS") > 1 and not {"RANK", "LOCAL_RANK"} & os.environ.keys():  # srun has started the processes
        return max(1, min(cores, per_task or (on_node or cores) // num_processes))
    return min(cores, per_task or on_node or cores) // num_processes


def _cgroup_limits(root: Path) -> Iterator[float]:
    """Yield the CPU limits, in cores, of the cgroups of this process. Both versions of cgroups are read."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)  # version 2 has no controllers
            if controllers and "cpu" not in controllers.split(","):
                continue
            group = Path(path.lstrip("/"))
            for folder in (group, *group.parents):
                for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
                    with suppress(OSError, ValueError, ZeroDivisionError):
                        files = (root / "sys/fs/cgroup" / controllers / folder / name for name in names)
                        quota, period = map(int, " ".join(file.read_text(encoding="ascii") for file in files).split())
                        if quota > 0:  # -1 and "max" mean no limit
                            yield quota / period


def _number(name: str) -> int:
    """Return the number in an environment variable; 0 if it is not set or not a number."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the ``with`` block. Processes that are started in the block never receive it.

    They inherit the mask. A handler would be too late, because a new process first imports modules.
    """
    resource_tracker.ensure_running()  # its start, with the first process, would unblock the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
