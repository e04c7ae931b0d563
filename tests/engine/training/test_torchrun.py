"""torchrun: two agents stand for two nodes, and a group of processes in which one was killed goes on by itself."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from engine.config.signatures import PROJECT
from tests.exactness import differences
from tests.processes import EXACT, TORCHRUN, environment, run
from tests.runs import IRIS, figures

PLACES = ("trainer.devices", "trainer.num_nodes")  # the only differences between one node and two
NODES = [
    "--config", IRIS, "trainer.accelerator=cpu", "trainer.max_epochs=20", "data.batch_size=16", "run.name=x",
    "run.checkpoint_every_steps=10",
]  # fmt: skip
RENDEZVOUS = {
    "static": ("--master-addr=127.0.0.1", "--master-port={port}", "--node-rank={node}"),
    "c10d": ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two"),
}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def start():
    """Starts agents. At the end of the test, none of them is left, and no process that they have started."""
    agents = []

    def started(launcher: tuple[str, ...], *argv: str) -> subprocess.Popen:
        agent = subprocess.Popen(
            [*TORCHRUN, *launcher, "train.py", *argv],
            cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        agents.append(agent)
        return agent

    yield started
    for agent in agents:
        if agent.poll() is None:
            for pid in workers(agent).values():
                os.kill(pid, signal.SIGKILL)
            agent.kill()
            agent.communicate()


def trained(root: Path, option: str) -> Path:
    """The folder of a run on one node."""
    done = run(*NODES, option, f"run.root={root}")
    assert done.returncode == 0, done.stderr
    return root / "iris_mlp/x"


@pytest.fixture(scope="module")
def one_node(tmp_path_factory) -> Path:
    """A run of two processes on one node."""
    return trained(tmp_path_factory.mktemp("one_node"), "trainer.devices=2")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """A run of one process with the same number of samples per step."""
    return trained(tmp_path_factory.mktemp("one_process"), "data.batch_size=32")


def files_of(folder: Path) -> list[str]:
    """The files of a run, event files without their time."""
    names = (str(path.relative_to(folder)).split(".tfevents.")[0] for path in folder.rglob("[!.]*") if path.is_file())
    return sorted(names)


@pytest.mark.slow
@pytest.mark.faults(
    "two nodes (two torchrun agents)", "bitwise identical to two processes on one node; one log and one set of files"
)
@pytest.mark.parametrize("rendezvous", RENDEZVOUS)
def test_two_nodes(rendezvous, one_node, one_process, tmp_path, start):
    port = free_port()
    agents = []
    for node in range(2):
        options = (option.format(port=port, node=node) for option in RENDEZVOUS[rendezvous])
        launcher = ("--nnodes=2", "--nproc-per-node=1", *options)
        agents.append(start(launcher, *NODES, "trainer.num_nodes=2", f"run.root={tmp_path}"))
    printed = [agent.communicate(timeout=240) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert sorted(output.count("run folder:") for output, _ in printed) == [0, 1]
    # the library Gloo of torch 2.9 prints a line in every process
    lines = [[line for line in output.splitlines() if not line.startswith("[Gloo]")] for output, _ in printed]
    assert sorted(map(bool, lines)) == [False, True]
    folder = tmp_path / "iris_mlp/x"
    assert files_of(folder) == files_of(one_node)
    assert [place for place in differences(one_node, folder) if not any(name in place for name in PLACES)] == []
    names = [name for name in figures(folder) if name.startswith(("test", "val")) or name == "temperature"]
    assert {name: figures(folder)[name] for name in names} == pytest.approx(
        {name: figures(one_process)[name] for name in names}, rel=1e-4
    )


def workers(agent: subprocess.Popen) -> dict[int, int]:
    """The processes that an agent has started, by their rank."""
    found = {}
    for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(value[5:]): int(pid) for value in variables if value.startswith(b"RANK=")}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs of two processes in which none was killed, by their precision."""
    known = {}

    def trained(precision: str) -> Path:
        if precision not in known:
            root = tmp_path_factory.mktemp("whole")
            done = run(*EXACT, f"trainer.precision={precision}", f"run.root={root}", "run.name=x")
            assert done.returncode == 0, done.stderr
            known[precision] = root / "iris_mlp/x"
        return known[precision]

    return trained


@pytest.mark.slow
@pytest.mark.faults(
    "one of two processes is killed under torchrun --max-restarts",
    "the run goes on by itself from its last checkpoint; the result is bitwise identical",
)
@pytest.mark.parametrize(
    ("rank", "precision", "options"),
    [(0, "32-true", ("run.name=x",)), (1, "32-true", ()), (1, "64-true", ())],
    ids=str,
)
def test_a_killed_process_is_replaced(rank, precision, options, whole, tmp_path, start):
    launcher = ("--standalone", "--nproc-per-node=2", "--max-restarts=1")
    agent = start(launcher, *EXACT, f"trainer.precision={precision}", f"run.root={tmp_path}", *options)
    while not list(tmp_path.glob("*/*/checkpoints/previous.ckpt")):  # the last checkpoint comes after some steps
        assert agent.poll() is None, agent.communicate()[1]
        time.sleep(0.05)
    os.kill(workers(agent)[rank], signal.SIGKILL)
    output, printed = agent.communicate(timeout=240)
    assert agent.returncode == 0, printed
    assert "Traceback" not in printed
    (folder,) = tmp_path.glob("*/*")
    assert f"resuming {folder}\n" in output
    assert "resuming in epoch" in output
    assert "resuming in epoch 1, after 0" not in output
    assert differences(whole(precision), folder) == []
