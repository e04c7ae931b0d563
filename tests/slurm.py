"""A real SLURM on this machine: one node, in a folder, next to any other SLURM. It ends with the ``with`` block."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
PATH = f"{os.environ['PATH']}:/usr/sbin"


def missing() -> list[str]:
    """The commands of SLURM that this machine does not have."""
    return [name for name in COMMANDS if shutil.which(name, path=PATH) is None]


class Slurm:
    """The commands of a running SLURM."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.variables = variables

    def run(self, *command: str, **options: object) -> str:
        done = subprocess.run(command, env=self.variables, capture_output=True, text=True, timeout=60, **options)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows about a job, such as its JobState."""
        words = self.run("scontrol", "show", "job", number, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """Start SLURM with its files in `folder`, which must be empty. The processes end with the block."""
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key, config, log = folder / "munge.key", folder / "slurm.conf", folder / "log"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    with socket.socket() as first, socket.socket() as second:
        for server in (first, second):
            server.bind(("127.0.0.1", 0))
        ports = [server.getsockname()[1] for server in (first, second)]
    values = {
        "host": socket.gethostname().split(".")[0],
        "user": getpass.getuser(),
        "cores": max(2, os.cpu_count() or 1),
    }
    config.write_text(CONFIG.format(folder=folder, ports=ports, **values), encoding="utf-8")
    # a job of SLURM must not take this process for one of its tasks
    variables = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    variables |= {"SLURM_CONF": str(config), "PATH": PATH}
    slurm = Slurm(variables)
    munged = (
        "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log",
    )  # fmt: skip
    with ExitStack() as stack, log.open("wb") as output:
        stack.callback(lambda: _stop(processes))
        processes: list[subprocess.Popen] = []
        for command in (munged, ("slurmctld", "-D"), ("slurmd", "-D", "-N", values["host"])):
            processes.append(subprocess.Popen(command, env=variables, stdout=output, stderr=output))
            if command is munged:
                _wait((folder / "munge.socket").exists, processes, log)
        _wait(lambda: _is_idle(slurm), processes, log)
        yield slurm


def _is_idle(slurm: Slurm) -> bool:
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=slurm.variables, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() == "idle"


def _wait(is_ready: Callable[[], bool], processes: list[subprocess.Popen], log: Path) -> None:
    until = time.monotonic() + 60
    while not is_ready():
        text = log.read_text(encoding="utf-8", errors="replace")
        assert time.monotonic() < until, text
        assert all(process.poll() is None for process in processes), text
        time.sleep(0.2)


def _stop(processes: list[subprocess.Popen]) -> None:
    for process in reversed(processes):  # munged last, because the others need it to end
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
