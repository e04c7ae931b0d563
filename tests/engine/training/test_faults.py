"""Faults, and what happens then. `pytest -m faults` prints them as a table."""

import errno
import json
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

import train
from callbacks.finite_steps import FiniteSteps
from engine.config.signatures import PROJECT
from engine.runs.run_folder import VARIABLE
from engine.training import checkpoint_file, signals
from engine.training.checkpoint_file import BrokenCheckpointError
from engine.training.checkpoints import Checkpoints, VerifiedCheckpoints
from engine.training.exits import Stopped
from engine.training.loggers import event_files
from lit_models.classifier import LitClassifier
from lit_models.mlp import LitMLP
from tests import kills
from tests.exactness import differences, different, signalled, start
from tests.processes import results_of
from tests.runs import IRIS, WITHOUT_PICTURES, curve

SHORT = ["--config", IRIS, "trainer.max_epochs=5", "model.dropout=0.1", *WITHOUT_PICTURES]


def at_step(step: int):
    return lambda trainer: trainer.training and trainer.global_step == step


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A run of Iris that was stopped after ten steps, in its fourth epoch."""
    os.chdir(PROJECT)
    with pytest.MonkeyPatch.context() as patch, signalled(patch, at_step(10)):
        code, folder = start(tmp_path_factory.mktemp("original"), *SHORT, "run.name=stopped")
    assert code == 143
    return folder


@pytest.fixture
def stopped(original, tmp_path) -> Path:
    """A copy of the stopped run."""
    return shutil.copytree(original, tmp_path / "runs/iris_mlp/stopped")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The same run without a stop."""
    os.chdir(PROJECT)
    return start(tmp_path_factory.mktemp("whole"), *SHORT)[1]


def command(*argv: str, script: Path | str = "train.py") -> subprocess.Popen:
    """Start `train.py` in a process of its own that handles Ctrl-C, as a foreground process of a terminal does."""
    return subprocess.Popen(
        [sys.executable, str(script), *argv],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for(process: subprocess.Popen, beginning: str) -> None:
    """Wait until the process prints a line with this beginning."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return
    pytest.fail(f"it ended too early: {process.communicate()[1]}")


# Killed


@pytest.mark.slow
@pytest.mark.faults(
    "SIGKILL at 25 random and 13 chosen moments", "files, metrics and curves of the resumed run are bitwise identical"
)
def test_kills_at_random_moments(tmp_path, record_property):
    trials = results_of("tests.kills", "25", "0", str(tmp_path), timeout=400)
    equal = [trial for trial in trials if trial["different"] == [] and trial["codes"][-1] == 0]
    num_kills = sum(trial["codes"].count(-9) for trial in trials)
    record_property("happened", f"{num_kills} kills in {len(trials)} runs, {len(equal)} equal ends")
    assert [trial for trial in trials if trial not in equal] == []
    assert len(trials) == 25 + (13 if kills.HAS_TEXT else 9) <= num_kills


@pytest.mark.slow
@pytest.mark.faults(
    "SIGKILL in bf16-mixed, bf16-true and 64-true", "files, metrics and curves of the resumed run are bitwise identical"
)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "smaller"])
def test_kills_in_other_precisions_and_of_smaller_models(precision, tmp_path, record_property):
    trials = results_of("tests.kills", "3", "1", str(tmp_path), precision, timeout=400)
    equal = [trial for trial in trials if trial["different"] == [] and trial["codes"][-1] == 0]
    record_property("happened", f"{precision}: {len(equal)} equal ends in {len(trials)} runs")
    assert [trial for trial in trials if trial not in equal] == []
    assert len(trials) == 3


KILLED_WHILE_WRITING = """
import os, signal, sys, torch
from pathlib import Path
from engine.training import checkpoint_file
path = Path(sys.argv[1])
checkpoint_file.write({"weights": torch.zeros(1000)}, path)
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
checkpoint_file.write({"weights": torch.ones(1000)}, path)
"""


@pytest.mark.slow
@pytest.mark.faults(
    "SIGKILL while a checkpoint is written", "the previous one is complete; the next start deletes the partial file"
)
def test_killed_while_writing(tmp_path, stopped, whole):
    path = stopped / "checkpoints/previous.ckpt"
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], cwd=PROJECT)
    assert done.returncode == -signal.SIGKILL
    assert checkpoint_file.read(path)["weights"].sum() == 0
    assert path.with_suffix(".part").exists()
    path.unlink()
    assert train.main(["--resume", str(stopped)]) == 0
    assert not path.with_suffix(".part").exists()
    assert differences(whole, stopped) == []


@pytest.mark.faults(
    "killed before the first checkpoint", "the resumed run starts from the beginning in the same folder"
)
def test_killed_before_the_first_checkpoint(stopped, whole, capsys):
    for path in (*stopped.glob("checkpoints/*"), stopped / "environment.json"):
        path.unlink()
    assert train.main(["--resume", str(stopped)]) == 0
    assert "the run has no checkpoint yet: starting from its beginning" in capsys.readouterr().out
    assert differences(whole, stopped) == []


# Stopped


@pytest.mark.faults("Ctrl-C", "exit code 130, a checkpoint after the step; the resumed run is bitwise identical")
def test_ctrl_c(tmp_path, monkeypatch, whole, capsys):
    with signalled(monkeypatch, at_step(8), signal.SIGINT):
        code, folder = start(tmp_path / "runs", *SHORT)
    assert code == 130
    assert (
        f"interrupted in epoch 3, after 2 of 3 batches; resume with: python train.py --resume {folder}"
        in capsys.readouterr().err
    )
    assert train.main(["--resume", str(folder)]) == 0
    assert "resuming in epoch 3, after 2 of 3 batches" in capsys.readouterr().out
    assert differences(whole, folder) == []


SLOW_STEP = """
import os, sys, time
sys.path.insert(0, os.getcwd())
import train
from lit_models.classifier import LitClassifier
original = LitClassifier.training_step

def training_step(self, batch, batch_idx):
    if self.global_step == 5:
        print("a long step", flush=True)
        time.sleep(60)
    return original(self, batch, batch_idx)

LitClassifier.training_step = training_step
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.faults("Ctrl-C twice, within one step", "exit code 130 at once, the last checkpoint is complete")
def test_ctrl_c_twice(tmp_path, record_property):
    script = tmp_path / "slow.py"
    script.write_text(SLOW_STEP)
    process = command("--config", IRIS, "run.name=x", f"run.root={tmp_path}", script=script)
    wait_for(process, "a long step")
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again stops at once" in next(line for line in process.stderr if line.strip())
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, printed = process.communicate(timeout=30)
    seconds = time.monotonic() - started
    record_property("happened", f"{seconds:.1f} s")
    assert process.returncode == 130
    assert seconds < 5
    assert "Traceback" not in printed
    checkpoint_file.verify(tmp_path / "iris_mlp/x/checkpoints/last.ckpt")


@pytest.mark.slow
@pytest.mark.faults(
    "Ctrl-C also ends `tee`, which reads the run's output", "exit code 130, a checkpoint after the step"
)
def test_ctrl_c_with_a_broken_pipe(tmp_path):
    process = command("--config", IRIS, "trainer.max_epochs=100000", "run.name=x", f"run.root={tmp_path}")
    wait_for(process, "epoch")
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    steps = checkpoint_file.read(tmp_path / "iris_mlp/x/checkpoints/last.ckpt")["global_step"]
    assert steps > 0


@pytest.mark.slow
@pytest.mark.faults(
    "Ctrl-C or SIGTERM while Python starts, imports or loads data", "exit code 130 or 143, no traceback, no folder"
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.15, 0.4, 1.0, 2.0])
def test_stopped_before_training(tmp_path, seconds, signum):
    process = command("--config", IRIS, "trainer.max_epochs=1000", f"run.root={tmp_path}")
    time.sleep(seconds)
    process.send_signal(signum)
    _, printed = process.communicate(timeout=30)
    assert process.returncode in (128 + signum, -signum)  # a shell shows 128 + signum in both cases
    assert "Traceback" not in printed
    folders = list(tmp_path.glob("*/*"))
    assert folders == [] or (folders[0] / "checkpoints/last.ckpt").exists()


@pytest.mark.faults("Ctrl-C just after a DataLoader's workers have ended", "a checkpoint after the step, as always")
def test_the_end_of_children_does_not_delay_signals(monkeypatch):
    exit_codes: list[int] = []
    monkeypatch.setattr(signals, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(os, "_exit", exit_codes.append)
    before = signal.signal(signal.SIGCHLD, lambda *_: None)  # as a DataLoader with workers does
    try:
        with signals.Signals() as watch:
            watch.deferred = True
            for signum in (signal.SIGCHLD, signal.SIGCHLD, signal.SIGCHLD, signal.SIGINT):
                signal.raise_signal(signum)
            time.sleep(1)
            assert watch.received == signal.SIGINT
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert exit_codes == []


def test_workers_of_a_dataloader_ignore_ctrl_c(monkeypatch, capfd):
    """They are forks of this process, and a terminal sends Ctrl-C to all of them."""
    with signals.Signals() as handler:
        monkeypatch.setattr(handler, "_pid", -1)
        signal.raise_signal(signal.SIGINT)
        assert handler.received == 0
    assert capfd.readouterr().err == ""


class Stalling(BaseHTTPRequestHandler):
    """Sends the first bytes of a file, and then nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(100))
        self.wfile.flush()
        time.sleep(0.5)  # until the file is open
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.faults(
    "SIGTERM while data are downloaded", "exit code 143 at once, no partial file under the name of a file"
)
def test_stopped_while_downloading(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = [f"data.root={tmp_path}/data", f"data.mirrors=['http://127.0.0.1:{server.server_port}/']"]
    started = time.monotonic()
    code = train.main(["--config", "configs/mnist_mlp.yaml", *options, f"run.root={tmp_path}/runs"])
    server.shutdown()
    server.server_close()
    assert code == 143
    assert time.monotonic() - started < 20
    assert [path for path in tmp_path.rglob("*ubyte*") if path.suffix != ".part"] == []
    assert list((tmp_path / "runs").glob("*/*")) == []


@pytest.mark.faults(
    "SLURM's warning (SIGUSR1)", "a checkpoint after the step, requeued once, exit code 143; not handled without SLURM"
)
def test_slurms_warning(tmp_path, monkeypatch, capsys, whole):
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin/scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # as in an interactive job: one process
    with signalled(monkeypatch, at_step(8), signal.SIGUSR1):
        code, folder = start(tmp_path / "runs", *SHORT, "run.name=slurm-77")
    assert code == 143
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert "SLURM job 77 is requeued" in capsys.readouterr().err
    again = [*SHORT, f"run.root={tmp_path / 'runs'}", "run.name=slurm-77", "--resume", "auto"]  # as slurm.sbatch does
    assert train.main(again) == 0
    assert differences(whole, folder) == []


# Files


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 1 for byte in content[middle : middle + 16]) + content[middle + 16 :]


DAMAGES = {
    "cut off": _cut,
    "16 bits flipped": _flipped,
    "empty": lambda content: b"",
    "text": lambda content: b"epoch: 3\n" * 100,
    "without its last byte": lambda content: content[:-1],
}


@pytest.mark.faults(
    "a checkpoint is cut off, flipped, empty or text",
    "one line, exit code 2; `auto` resumes from the previous one, bitwise identical",
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(damage, stopped, whole, capsys, tmp_path):
    path = stopped / "checkpoints/last.ckpt"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert train.main(["--resume", str(stopped)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {path} is ")
    assert f"resume from it with --resume {stopped}/checkpoints/best.ckpt" in printed
    assert printed.count("\n") == 1
    with pytest.raises(BrokenCheckpointError):
        LitMLP.load_from_checkpoint(path)
    assert train.main([*SHORT, f"run.root={tmp_path / 'runs'}", "--resume", "auto"]) == 0
    assert differences(whole, stopped) == []


@pytest.mark.parametrize("writer", ["this project", "torch"])
def test_a_flipped_bit_is_never_loaded(writer, stopped, tmp_path):
    """Whichever bit is flipped, the file is refused, or its content is unchanged."""
    path, written = tmp_path / "flipped.ckpt", checkpoint_file.read(stopped / "checkpoints/last.ckpt")
    torch.save(written, path) if writer == "torch" else checkpoint_file.write(written, path)
    content, refused = path.read_bytes(), 0
    places = [*range(0, len(content), 997), *range(len(content) - 120, len(content))]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert list(different(checkpoint_file.read(path), written, "")) == []
        except BrokenCheckpointError:
            refused += 1
    assert refused > (0.9 if writer == "this project" else 0.5) * len(places)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (open, (str(self.marker), "w"))


@pytest.mark.faults("pickled code in a checkpoint", "it is not run; one line, exit code 2")
def test_pickled_code(stopped, tmp_path, capsys):
    path, marker = stopped / "checkpoints/last.ckpt", tmp_path / "marker"
    for save in (
        lambda: torch.save(Malicious(marker), path),
        lambda: checkpoint_file.write({"a": Malicious(marker)}, path),
    ):
        save()
        with pytest.raises((BrokenCheckpointError, pickle.UnpicklingError)):
            LitMLP.load_from_checkpoint(path)
        assert train.main(["--resume", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not marker.exists()


@pytest.mark.faults("a URL, or weights_only=False", "refused, so that pickled code is never loaded")
def test_no_unsafe_way(stopped):
    with pytest.raises(BrokenCheckpointError):
        LitMLP.load_from_checkpoint("https://example.org/last.ckpt")
    with pytest.raises(TypeError, match="weights_only cannot be chosen"):
        LitMLP.load_from_checkpoint(stopped / "checkpoints/last.ckpt", weights_only=False)


@pytest.mark.faults(
    "the disk is full while a checkpoint is written",
    "one line, exit code 2; the previous checkpoint is complete, no partial file is left",
)
def test_full_disk(tmp_path, monkeypatch, capsys):
    written, sync = [], os.fsync

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.ckpt")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    code, folder = start(tmp_path / "runs", *SHORT, "run.checkpoint_every_steps=1")
    printed = capsys.readouterr().err
    assert code == 2
    assert "No space left on device" in printed
    assert printed.count("\n") == 1
    checkpoint_file.verify(folder / "checkpoints/last.ckpt")
    assert list(folder.rglob("*.part")) == []


@pytest.mark.slow
@pytest.mark.faults("files may not grow (RLIMIT_FSIZE)", "reported before training, one line, exit code 2")
def test_no_room_from_the_start(tmp_path):
    done = subprocess.run(
        [sys.executable, "train.py", *SHORT, f"run.root={tmp_path}"],
        cwd=PROJECT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write")
    assert done.stderr.count("\n") == 1
    assert "epoch 1" not in done.stdout


@pytest.mark.faults("the disk has no room for four checkpoints", "reported before training, exit code 2")
def test_too_little_room(tmp_path, monkeypatch, capsys):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _ = start(tmp_path / "runs", *SHORT)
    assert code == 2
    assert "a checkpoint has " in (printed := capsys.readouterr()).err
    assert "epoch 1" not in printed.out


@pytest.mark.faults("a secret in the environment", "it is not in any file of the run")
def test_secrets(tmp_path, monkeypatch):
    secret = "hf_s3cr3tOfThisTest"
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, secret)
    _, folder = start(tmp_path, "--config", IRIS, "trainer.max_epochs=5")
    for path in folder.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()


@pytest.mark.faults(
    "another project's checkpoint in a run's folder", "one line, exit code 2; `auto` takes the previous checkpoint"
)
@pytest.mark.parametrize(
    "content", [{"weight": torch.zeros(3)}, [1, 2], torch.zeros(3)], ids=["state", "list", "tensor"]
)
def test_a_foreign_checkpoint(content, stopped, whole, tmp_path, capsys):
    path = stopped / "checkpoints/last.ckpt"
    for save in (torch.save, checkpoint_file.write):
        save(content, path)
        assert train.main(["--resume", str(path)]) == 2
        assert capsys.readouterr().err == f"error: {path} is not a checkpoint of a run of this project\n"
    torch.save(content, path)
    assert train.main([*SHORT, f"run.root={tmp_path / 'runs'}", "--resume", "auto"]) == 0
    assert differences(whole, stopped) == []


WRONG_VALUES = [7, "a word", None]


def odd_copies(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Copies of nested data, in each of which an entry is missing, has another type, or is a number that differs."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{place}.{key} is missing", {name: other for name, other in value.items() if name != key}
            for name, odd in odd_copies(item, f"{place}.{key}"):
                yield name, {**value, key: odd}
    elif isinstance(value, list | tuple) and 0 < len(value) < 100:
        yield f"{place} is cut", value[:-1]
        for i, item in enumerate(value):
            for name, odd in odd_copies(item, f"{place}[{i}]"):
                yield name, type(value)((*value[:i], odd, *value[i + 1 :]))
    if place:
        for wrong in WRONG_VALUES:
            if type(wrong) is not type(value) or isinstance(wrong, torch.Tensor) or wrong != value:
                yield f"{place} is {wrong!r}", wrong


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Any]:
    """The content of a checkpoint of a run, written while a validation was due."""
    os.chdir(PROJECT)
    options = [*SHORT, "callbacks.early_stopping={monitor: val/loss}", "callbacks.ema_weight_averaging={}"]
    return checkpoint_file.read(start(tmp_path_factory.mktemp("saved"), *options)[1] / "checkpoints/best.ckpt")


@pytest.mark.slow
def test_no_change_of_a_checkpoint_is_overlooked(saved, tmp_path, monkeypatch):
    """Whichever entry at any depth is missing or has another type, the checkpoint is refused."""
    path, copies = tmp_path / "best.ckpt", 0
    checkpoint_file.write(saved, path)
    assert VerifiedCheckpoints().load_checkpoint(path).keys() == saved.keys() - {"content_sha256"}
    for name, odd in odd_copies(saved):
        monkeypatch.setattr(checkpoint_file, "read", lambda *_, odd=odd: dict(odd))
        try:
            VerifiedCheckpoints().load_checkpoint(path)
        except BrokenCheckpointError:
            copies += 1
        else:
            pytest.fail(name)
    assert copies > 1000


@pytest.mark.faults("a checkpoint is complete, but was changed", "one line, exit code 2; nothing is changed")
@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("position", [1]), ("callbacks", "a text"), ("global_step", "ten"), ("processes", []), ("state_dict", 3),
    ],
    ids=str,
)  # fmt: skip
def test_a_changed_checkpoint(key, wrong, stopped, capsys):
    path = stopped / "checkpoints/last.ckpt"
    odd = checkpoint_file.read(path)
    (odd["position"] if key == "processes" else odd)[key] = wrong
    checkpoint_file.write(odd, path)
    before = {path: path.read_bytes() for path in stopped.rglob("*.*") if path.is_file()}
    assert train.main(["--resume", str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path} was changed after its run wrote it\n"
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("key", ["callbacks", "pytorch-lightning_version", "content_sha256"])
def test_a_checkpoint_without_an_entry(key, stopped, capsys):
    path = stopped / "checkpoints/last.ckpt"
    odd = checkpoint_file.read(path)
    del odd[key]
    checkpoint_file.write(odd, path)
    assert train.main(["--resume", str(stopped)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {path} ")
    assert printed.count("\n") == 1


def test_a_changed_best_checkpoint_is_not_tested(stopped, monkeypatch, capsys):
    """It is read when the training has ended."""
    path = stopped / "checkpoints/best.ckpt"
    with signalled(monkeypatch, lambda trainer: trainer.testing):
        assert train.main(["--resume", str(stopped)]) == 143
    checkpoint_file.write(checkpoint_file.read(path) | {"callbacks": None}, path)
    assert train.main(["--resume", str(stopped)]) == 2
    assert capsys.readouterr().err.endswith(f"error: {path} was changed after its run wrote it\n")
    assert not (stopped / "metrics.json").exists()


@pytest.mark.parametrize(
    "value", [{3, 1, 2}, {"text"}, (1, [2, (3,)]), {"x": {1: None}}, float("nan"), b"bytes"], ids=str
)
def test_a_state_of_any_plain_type_can_be_saved(value, tmp_path):
    path = tmp_path / "last.ckpt"
    io = VerifiedCheckpoints()
    io.save_checkpoint({"state": value, "sizes": torch.Size([2, 3])}, path)
    assert list(different(io.load_checkpoint(path)["state"], value, "")) == []


# Rewound, and resumed from the checkpoint before the last one


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved after it."""


def killed(*argv: str) -> None:
    with pytest.raises(Killed):
        train.main([*argv])


def kill_at_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int = 1) -> None:
    """Kill the run in place of a call, or in place of a later call of the same function."""
    original, calls = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) >= number:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


MOMENTS = {
    "the environment is written": (os, "replace", 1),
    "the checkpoint is copied": (shutil, "copyfileobj", 1),
    "the copy is synced": (os, "fsync", 2),
    "the copy is renamed": (os, "replace", 2),
    "the first curve is cut": (os, "truncate", 1),
    "the second curve is cut": (os, "truncate", 2),
    "the training starts": (Checkpoints, "on_train_start", 1),
    "a step is trained": (LitClassifier, "training_step", 1),
    "a checkpoint is written": (torch, "save", 1),
}


@pytest.mark.slow
@pytest.mark.faults("killed while or after a run goes back to best.ckpt", "bitwise identical, and no curve is cut")
@pytest.mark.parametrize(
    "moment", [moment if i % 2 else pytest.param(moment, marks=pytest.mark.slow) for i, moment in enumerate(MOMENTS)]
)
def test_killed_while_going_back(moment, stopped, whole, monkeypatch, capsys):
    best, last = (stopped / f"checkpoints/{name}.ckpt" for name in ("best", "last"))
    content, before = best.read_bytes(), last.read_bytes()
    curves = {path: path.stat().st_size for path in event_files(stopped)}
    with monkeypatch.context() as patch:
        kill_at_call(patch, *MOMENTS[moment])
        killed("--resume", str(best))
    has_gone_back = last.read_bytes() == content
    assert has_gone_back or last.read_bytes() == before
    if not has_gone_back:
        assert {path: path.stat().st_size for path in curves} == curves
    assert has_gone_back == (moment not in list(MOMENTS)[:4])
    capsys.readouterr()
    assert train.main(["--resume", str(stopped)]) == 0
    place = "epoch 3, before its validation" if has_gone_back else "epoch 4, after 1 of 3 batches"
    assert f"resuming in {place}" in capsys.readouterr().out
    assert differences(whole, stopped) == []


@pytest.mark.parametrize("name", ["best", pytest.param("last", marks=pytest.mark.slow)])
def test_a_checkpoint_of_another_run(name, tmp_path, monkeypatch, capsys):
    """Its weights fit, but the seed differs. It is neither resumed from nor tested."""
    with signalled(monkeypatch, lambda trainer: trainer.testing):
        _, folder = start(tmp_path / "runs", *SHORT)
    _, other = start(tmp_path / "other", *SHORT, "seed=1", "data.split_seed=0")
    path = folder / f"checkpoints/{name}.ckpt"
    shutil.copy(other / f"checkpoints/{name}.ckpt", path)
    capsys.readouterr()
    assert train.main(["--resume", str(folder)]) == 2
    assert capsys.readouterr().err == f"error: {path} belongs to another run: seed is 1 there and 0 here\n"
    assert not (folder / "metrics.json").exists()


def test_strategies_that_load_a_checkpoint_late(stopped, whole, monkeypatch):
    """FSDP and DeepSpeed load it after `on_fit_start`."""
    monkeypatch.setattr(SingleDeviceStrategy, "restore_checkpoint_after_setup", True)
    for path in event_files(stopped):
        with path.open("ab") as file:
            file.write(path.read_bytes())
    assert train.main(["--resume", str(stopped)]) == 0
    assert differences(whole, stopped) == []


def test_a_run_whose_last_checkpoint_was_deleted_is_not_started_again(tmp_path, monkeypatch, capsys):
    """A run with averaged weights cannot be resumed from its best checkpoint, which a new start would replace."""
    options = [*SHORT, "callbacks.ema_weight_averaging={}"]
    with signalled(monkeypatch, at_step(10)):
        _, folder = start(tmp_path, *options)
    for name in ("last", "previous"):
        (folder / f"checkpoints/{name}.ckpt").unlink()
    capsys.readouterr()
    for argv in (["--resume", str(folder)], [*options, f"run.root={tmp_path}", "--resume", "auto"]):
        assert train.main(argv) == 2
        best = folder / "checkpoints/best.ckpt"
        assert capsys.readouterr().err == f"error: there is no last.ckpt, and the run cannot be resumed from {best}\n"


def test_a_run_whose_only_usable_checkpoint_is_damaged_is_not_started_again(stopped, tmp_path, capsys):
    """The curves are incomplete, so the run cannot be resumed from the intact checkpoints."""
    last, previous = (stopped / f"checkpoints/{name}.ckpt" for name in ("last", "previous"))
    last.write_bytes(b"")
    for path in stopped.glob("events*"):
        path.unlink()
    before = {path: path.read_bytes() for path in stopped.glob("checkpoints/*")}
    assert train.main([*SHORT, f"run.root={tmp_path / 'runs'}", "--resume", "auto"]) == 2
    assert capsys.readouterr().err == f"error: {last} is empty, and the run cannot be resumed from {previous}\n"
    assert {path: path.read_bytes() for path in stopped.glob("checkpoints/*")} == before


@pytest.mark.slow
def test_going_back_twice(stopped, whole, tmp_path, monkeypatch):
    copied = stopped / "checkpoints/kept.ckpt"
    shutil.copy(stopped / "checkpoints/best.ckpt", copied)
    for _ in range(2):
        with monkeypatch.context() as patch, signalled(patch, at_step(11)):
            assert train.main(["--resume", str(copied)]) == 143
    assert train.main(["--resume", str(stopped)]) == 0
    assert differences(whole, stopped) == []


INEXACT = [
    (["callbacks.ema_weight_averaging={decay: 0.9}"], lambda trainer: trainer.testing),
    (["trainer.accumulate_grad_batches=3", "trainer.val_check_interval=2"], lambda trainer: trainer.current_epoch == 3),
    pytest.param(
        ["trainer.max_epochs=null", "trainer.max_steps=12"], lambda trainer: trainer.testing, marks=pytest.mark.slow
    ),
]


@pytest.mark.slow
@pytest.mark.faults(
    "a checkpoint is cut off, flipped, empty or text",
    "one line, exit code 2; `auto` resumes from the previous one, bitwise identical",
)
@pytest.mark.parametrize(("options", "when"), INEXACT, ids=["averaged weights", "half a step", "no step left"])
def test_a_damaged_checkpoint_whose_best_cannot_be_resumed_from(options, when, tmp_path, monkeypatch, capsys):
    options = [*SHORT, *options, "run.checkpoint_every_steps=2"]
    reference = start(tmp_path / "whole", *options)[1]
    with signalled(monkeypatch, when):
        folder = start(tmp_path / "runs", *options)[1]
    last, previous, best = (folder / f"checkpoints/{name}.ckpt" for name in ("last", "previous", "best"))
    assert not checkpoint_file.read(best)["position"]["exact"]
    last.write_bytes(_flipped(last.read_bytes()))
    assert train.main(["--resume", str(folder)]) == 2
    assert f"resume from it with --resume {previous}" in capsys.readouterr().err
    assert train.main([*options, f"run.root={tmp_path / 'runs'}", "--resume", "auto"]) == 0
    assert f"does not match its checksum, so it is not used; resuming from {previous}" in capsys.readouterr().out
    assert differences(reference, folder) == []


def test_the_only_checkpoint_is_damaged(tmp_path, monkeypatch, whole, capsys):
    """It was written before the first step, so the run loses nothing if it starts again."""
    with signalled(monkeypatch, at_step(1)):
        _, folder = start(tmp_path / "runs", *SHORT)
    capsys.readouterr()
    last, previous = (folder / f"checkpoints/{name}.ckpt" for name in ("last", "previous"))
    previous.unlink()
    last.write_bytes(b"")
    assert train.main(["--resume", str(folder)]) == 2
    assert capsys.readouterr().err == f"error: {last} is empty\n"
    assert train.main([*SHORT, f"run.root={tmp_path / 'runs'}", "--resume", "auto"]) == 0
    printed = capsys.readouterr().out
    assert f"{last} is empty, so it is not used\nthe run has no checkpoint yet: starting from its beginning" in printed
    assert differences(whole, folder) == []


def test_all_checkpoints_are_damaged(stopped, tmp_path, capsys):
    """The run is not started again, because the files may be restored."""
    for path in stopped.glob("checkpoints/*"):
        path.write_bytes(b"")
    for argv in (["--resume", str(stopped)], [*SHORT, f"run.root={tmp_path / 'runs'}", "--resume", "auto"]):
        assert train.main(argv) == 2
        assert capsys.readouterr().err == f"error: {stopped}/checkpoints/last.ckpt is empty\n"


def test_killed_between_the_renamings_of_two_checkpoints(tmp_path, monkeypatch, whole):
    """For a moment there is a previous.ckpt, but no last.ckpt."""
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name == "previous.ckpt":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        killed(*SHORT, f"run.root={tmp_path}", "run.checkpoint_every_steps=4")
    (folder,) = tmp_path.glob("*/*")
    assert {path.name for path in folder.glob("checkpoints/*")} == {"best.ckpt", "previous.ckpt"}
    assert train.main(["--resume", str(folder)]) == 0
    assert differences(whole, folder) == []


@pytest.mark.parametrize("damaged_again", ["last", pytest.param("previous", marks=pytest.mark.slow)])
def test_damaged_twice(damaged_again, stopped, whole, tmp_path, monkeypatch):
    """The checkpoint before the last one survives a resumption from it."""
    auto = [*SHORT, f"run.root={tmp_path / 'runs'}", "--resume", "auto"]
    (stopped / "checkpoints/best.ckpt").unlink()
    (stopped / "checkpoints/last.ckpt").write_bytes(b"")
    with monkeypatch.context() as patch:
        kill_at_call(patch, LitClassifier, "training_step")
        killed(*auto)
    (stopped / f"checkpoints/{damaged_again}.ckpt").write_bytes(b"")
    assert train.main(auto) == 0
    assert differences(whole, stopped) == []


@pytest.mark.slow
def test_a_best_checkpoint_without_its_curves_is_not_resumed_from(stopped, whole, tmp_path, monkeypatch):
    """The run went back to an earlier checkpoint. So the points before its best checkpoint are gone."""
    last, previous = (stopped / f"checkpoints/{name}.ckpt" for name in ("last", "previous"))
    with monkeypatch.context() as patch:
        kill_at_call(patch, LitClassifier, "training_step")
        killed("--resume", str(previous))
    last.write_bytes(b"")
    assert train.main([*SHORT, f"run.root={tmp_path / 'runs'}", "--resume", "auto"]) == 0
    assert differences(whole, stopped) == []


FOLDERS = ("best.ckpt", "previous.ckpt", "best.part")


@pytest.mark.parametrize(
    "name", ["last.ckpt", "last.part", "x.part", *(pytest.param(name, marks=pytest.mark.slow) for name in FOLDERS)]
)
def test_a_folder_in_the_place_of_a_file(name, stopped, capsys):
    path = stopped / "checkpoints" / name
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine").write_text("")
    code = train.main(["--resume", str(stopped)])
    printed = capsys.readouterr().err
    if name == "x.part":
        assert (code, printed) == (0, "")
    else:
        assert (code, printed.count("\n")) == (2, 1)
        assert f"error: {path}" in printed
    assert (path / "mine").exists()


def test_a_signal_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """Torch replaces an error in `write` by an error of its own."""
    path = tmp_path / "some.ckpt"
    checkpoint_file.write({"weight": torch.zeros(1000)}, path)
    for count in (1, 5, 12):
        written: list[bytes] = []

        def update(data: bytes, count: int = count, written: list[bytes] = written) -> None:
            written.append(data)
            if len(written) == count:
                raise Stopped(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_file.hashlib, "sha256", lambda update=update: SimpleNamespace(update=update))
            with pytest.raises(Stopped):
                checkpoint_file.write({"weight": torch.ones(1000)}, path)
    assert checkpoint_file.read(path)["weight"].sum() == 0


@pytest.mark.faults("a file of the run cannot be read or written", "one line, exit code 2")
def test_a_file_without_permission(stopped, monkeypatch, capsys):
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "config.json")

    monkeypatch.setattr(LitClassifier, "configure_optimizers", denied)
    assert train.main(["--resume", str(stopped)]) == 2
    assert capsys.readouterr().err == "error: config.json: Permission denied\n"


# Diverged


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(finite, value))
    return not isinstance(value, torch.Tensor) or not value.is_floating_point() or bool(value.isfinite().all())


def spoil(monkeypatch: pytest.MonkeyPatch, what: str, step: int) -> None:
    """Make the loss infinite, or only the gradient NaN, at `step`."""
    original = LitClassifier.training_step

    def training_step(self: LitClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = original(self, batch, batch_idx)
        if self.global_step == step and what == "loss":
            return loss * math.inf
        if self.global_step == step:
            return loss + (next(self.parameters()).sum() * 0).abs().sqrt()  # 0, with the gradient NaN
        return loss

    monkeypatch.setattr(LitClassifier, "training_step", training_step)


@pytest.mark.faults(
    "a loss or a gradient is not finite", "exit code 3 before the step, a message with the step; all files stay finite"
)
@pytest.mark.parametrize(
    "options", [[], ["trainer.accumulate_grad_batches=2"], ["lazy"]], ids=["", "accumulated", "as on a GPU"]
)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite(what, options, tmp_path, monkeypatch, capsys):
    if options == ["lazy"]:  # on a GPU the check is at logging intervals, validations and checkpoints only
        options, on_start = [], FiniteSteps.on_train_start

        def on_train_start(self: FiniteSteps, trainer: Any, pl_module: Any) -> None:
            on_start(self, trainer, pl_module)
            self._lazy = True

        monkeypatch.setattr(FiniteSteps, "on_train_start", on_train_start)
    spoil(monkeypatch, what, step=4)
    code, folder = start(tmp_path / "runs", *SHORT, "run.checkpoint_every_steps=1", *options)
    printed = capsys.readouterr().err
    assert code == 3
    assert printed.startswith(f"diverged: the {what}")
    assert "(step 5)" in printed
    assert "diverges again" in printed
    assert printed.count("\n") == 1
    for path in folder.glob("checkpoints/*.ckpt"):
        assert finite(checkpoint_file.read(path)["state_dict"]), path
    assert not (folder / "metrics.json").exists()


def test_without_finite_steps_the_files_are_not_finite(tmp_path, monkeypatch):
    """Shows that the test above can fail."""
    spoil(monkeypatch, "gradient", step=4)
    _, folder = start(tmp_path / "runs", *SHORT, "callbacks.finite_steps=null")
    assert not finite(checkpoint_file.read(folder / "checkpoints/last.ckpt")["state_dict"])


@pytest.mark.faults(
    "a loss or a gradient is not finite", "exit code 3 before the step, a message with the step; all files stay finite"
)
@pytest.mark.parametrize("end", ["trainer.max_steps=1", "run.checkpoint_every_steps=1"])
def test_weights_that_are_not_finite_after_the_last_step(end, tmp_path, capsys):
    """The learning rate is too high, and no loss follows the last step."""
    code, folder = start(tmp_path, *SHORT, "optimizer={name: sgd, lr: 1.0e+39}", end)
    assert code == 3
    assert "diverged: a weight is not finite after step 1" in capsys.readouterr().err
    assert finite(checkpoint_file.read(folder / "checkpoints/last.ckpt")["state_dict"])


@pytest.mark.faults("a validation loss is not finite", "it is not the best")
def test_a_validation_that_is_not_finite(tmp_path, monkeypatch):
    original = LitClassifier.validation_step

    def validation_step(self: LitClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
        logits = original(self, batch, batch_idx)
        if self.current_epoch in (0, 3):
            self.val_loss.update(torch.tensor(-math.inf), 1)
        return logits

    monkeypatch.setattr(LitClassifier, "validation_step", validation_step)
    _, folder = start(tmp_path, *SHORT)
    losses = curve(folder, "val/loss")
    best = min(loss for loss in losses if math.isfinite(loss))
    assert json.loads((folder / "metrics.json").read_text())["best_epoch"] == losses.index(best) + 1


@pytest.mark.faults("out of memory", "one line that says which option to lower, exit code 1")
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 8 bytes")],
    ids=repr,
)
def test_out_of_memory(error, tmp_path, monkeypatch, capsys):
    def training_step(self: LitClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
        raise error

    monkeypatch.setattr(LitClassifier, "training_step", training_step)
    code, _ = start(tmp_path, *SHORT)
    printed = capsys.readouterr().err
    assert code == 1
    assert printed.startswith("error: out of memory; lower data.batch_size (now 32;")
    assert printed.count("\n") == 1


# Resumed under other conditions


def forge(folder: Path, **facts: Any) -> None:
    path = folder / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.faults("resumed with other data, threads, devices, precision", "one line, exit code 2, no file is changed")
@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"data_sha256": "0" * 64}, "data_sha256 was 000000000000 and is "),
        ({"threads": 77}, "set OMP_NUM_THREADS=77"),
        ({"num_devices": 4}, "set trainer.devices=4"),
        ({"precision": "bf16-mixed"}, "precision was bf16-mixed and is 32-true"),
    ],
    ids=["data", "threads", "devices", "precision"],
)
def test_other_conditions(facts, expected, stopped, capsys):
    forge(stopped, **facts)
    before = {path: path.read_bytes() for path in stopped.rglob("*.*") if path.is_file()}
    assert train.main(["--resume", str(stopped)]) == 2
    printed = capsys.readouterr().err
    assert expected in printed
    assert printed.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before


def test_another_version_is_reported_and_recorded(stopped, whole, capsys):
    forge(stopped, packages={"torch": "1.0"})
    assert train.main(["--resume", str(stopped)]) == 0
    assert "resuming may not be exact: packages changed" in capsys.readouterr().out
    facts = json.loads((stopped / "environment.json").read_text())
    assert len(facts["resumed"]) == 1
    assert facts["resumed"][0]["packages"]["torch"] == version("torch")


@pytest.mark.faults("resumed with other data, threads, devices, precision", "one line, exit code 2, no file is changed")
@pytest.mark.parametrize("content", [None, "", "[1, 2]"])
def test_conditions_that_are_unknown(content, stopped, capsys):
    path = stopped / "environment.json"
    path.unlink() if content is None else path.write_text(content)
    assert train.main(["--resume", str(stopped)]) == 2
    assert capsys.readouterr().err.startswith(f"error: --resume: {path} is missing or broken")


def test_a_run_leaves_no_variable_in_the_environment(whole):
    """Another run of this process would use the folder of the first run."""
    assert VARIABLE not in os.environ


def test_more_processes_than_the_run_has(tmp_path, monkeypatch, capsys):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert train.main([*SHORT, f"run.root={tmp_path}"]) == 2
    assert "2 processes were started for a run of 1; set devices" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_standard_output_is_full(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "train.py", *SHORT, f"run.root={tmp_path}"], cwd=PROJECT, stdout=full, stderr=-1, text=True
        )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.faults("a run is resumed while it runs", "refused in one line, exit code 2")
def test_two_at_once(stopped, capsys):
    hold = "lock = lock_run(Path(sys.argv[1])); print(1, flush=True); input()"
    code = f"import sys; from pathlib import Path; from engine.runs.run_lock import lock_run; {hold}"
    other = subprocess.Popen([sys.executable, "-c", code, str(stopped)], cwd=PROJECT, stdin=-1, stdout=-1)
    assert other.stdout.readline()
    assert train.main(["--resume", str(stopped)]) == 2
    assert f"{stopped} is running; wait for it, or stop it first" in capsys.readouterr().err
    other.communicate(b"\n")
    assert train.main(["--resume", str(stopped)]) == 0


@pytest.mark.faults("two runs start at the same moment", "each has its own folder")
def test_two_starts(tmp_path):
    code = """
import sys
from engine.config.config import load_config
from engine.runs.run_folder import run_folder
with run_folder(load_config("configs/iris_mlp.yaml", sys.argv[1:])):
    pass
"""
    both = [
        subprocess.Popen([sys.executable, "-c", code, f"run.root={tmp_path}"], cwd=PROJECT, stdout=-1, text=True)
        for _ in range(2)
    ]
    printed = {process.communicate()[0] for process in both}
    assert len(printed) == 2
    assert all(line.startswith("run folder: ") for line in printed)


def test_auto_takes_the_newest_unfinished_run_of_this_config(stopped, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert train.main([*SHORT, f"run.root={runs}", "optimizer.lr=0.5", "--resume", "auto"]) == 2
    said = f"optimizer.lr is 0.003 in the newest unfinished run {stopped}, but 0.5 in this command"
    assert said in capsys.readouterr().err
    assert train.main([*SHORT, f"run.root={runs}", "run.name=other", "--resume", "auto"]) == 2
    assert "has no unfinished run other" in capsys.readouterr().err
    assert train.main([*SHORT, f"run.root={runs}", "trainer.enable_progress_bar=false", "--resume", "auto"]) == 0


@pytest.mark.faults("killed during the test", "the resumed run repeats only the test; no point is logged twice")
def test_stopped_in_the_test(tmp_path, monkeypatch, whole):
    with signalled(monkeypatch, lambda trainer: trainer.testing):
        code, folder = start(tmp_path / "runs", *SHORT)
    assert code == 143
    assert train.main(["--resume", str(folder)]) == 0
    assert differences(whole, folder) == []


# Repeated


@pytest.mark.faults(
    "the same seed with other output: progress line, logger, sanity check, checkpoints",
    "the weights are bitwise identical",
)
@pytest.mark.parametrize(
    "options",
    [
        ["trainer.enable_progress_bar=false"],
        ["trainer.logger=false"],
        ["trainer.num_sanity_val_steps=2"],
        ["run.checkpoint_every_steps=1"],
        ["callbacks.confusion_matrix={}", "callbacks.gallery={}", "callbacks.finite_steps=null"],
        ["trainer.log_every_n_steps=1"],
    ],
    ids=lambda options: options[0],
)
def test_other_output(options, tmp_path, whole):
    _, folder = start(tmp_path, *SHORT, *options)
    states = [checkpoint_file.read(path / "checkpoints/last.ckpt")["state_dict"] for path in (whole, folder)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_another_seed_is_another_run(tmp_path, whole):
    """Shows that the comparisons can fail."""
    _, folder = start(tmp_path, *SHORT, "seed=1", "data.split_seed=0")
    assert len(differences(whole, folder)) > 10


@pytest.mark.parametrize("left_out", ["restore_rng_and_metric_state", "load_state_dict", "events"])
def test_every_part_of_a_resumption_is_needed(left_out, stopped, whole, monkeypatch):
    """If a part is left out, the comparison shows differences."""
    if left_out == "restore_rng_and_metric_state":
        monkeypatch.setattr("engine.training.epoch_loop.restore_rng_and_metric_state", lambda *_: None)
    elif left_out == "load_state_dict":
        monkeypatch.setattr("datamodules.parts.batches.TensorBatches.load_state_dict", lambda *_: None)
    else:
        (event,) = stopped.glob("events*")  # of the training
        content = event.read_bytes()
        with event.open("ab") as file:  # points that were logged after the checkpoint
            file.write(content)
        monkeypatch.setattr(Checkpoints, "_truncate_logs", lambda *_: None)
    assert train.main(["--resume", str(stopped)]) == 0
    assert differences(whole, stopped) != []
