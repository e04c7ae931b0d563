"""The lock of a run, with a second process that holds it: what `runs.py` shows, and who may resume or delete the run."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import train
from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.contracts import ConfigError, UserError
from engine.runs import run_folder as run_folder_module
from engine.runs import run_lock
from engine.runs.resume import find_run
from engine.runs.run_folder import run_folder
from engine.runs.run_index import delete_run, find_runs
from engine.runs.run_lock import is_running, lock_run
from engine.runs.run_record import RunRecord
from engine.training.checkpoints import Checkpoints
from tests.runs import IRIS, WITHOUT_PICTURES, run

HOLD = "lock = lock_run(Path(sys.argv[1]))"
FORK_AND_END = f"{HOLD}\nif os.fork() == 0:\n    del lock\n    gc.collect()\n    sys.exit()\nos.wait()"
FORK_AND_STAY = f"""{HOLD}
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, b"1")
    os.close(1)
    time.sleep(60)
    os._exit(0)
os.read(reader, 1)"""


@pytest.fixture(autouse=True)
def little_patience(monkeypatch) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.1)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a run that was killed."""
    folder = tmp_path / "mlp/a"
    folder.mkdir(parents=True)
    shutil.copy(PROJECT / IRIS, folder / "config.yaml")
    return folder


@contextmanager
def other_process(folder: Path, code: str = HOLD) -> "Iterator[subprocess.Popen[bytes]]":
    """A second process that has run `code` and waits."""
    imports = "import gc, os, sys, time; from pathlib import Path; from engine.runs.run_lock import lock_run"
    script = f"{imports}\n{code}\nprint(1, flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", script, folder]
    with subprocess.Popen(command, cwd=PROJECT, stdin=-1, stdout=-1, start_new_session=True) as process:
        assert process.stdout.readline() == b"1\n"
        yield process


def test_a_run_is_running_until_its_process_ends(folder):
    assert not is_running(folder)
    with other_process(folder):
        assert is_running(folder)
        with pytest.raises(ConfigError, match="is running; wait for it, or stop it first"):
            lock_run(folder)
    assert not is_running(folder)
    lock_run(folder).release()


def test_a_killed_run_is_not_running(folder):
    with other_process(folder) as process:
        process.kill()
        process.wait()
        assert not is_running(folder)
    assert [run.status for run in find_runs(folder.parent.parent)] == ["interrupted"]


def test_a_process_that_looks_at_the_lock_does_not_make_a_run_look_running(folder):
    """`runs.py` takes a shared lock for a moment. Another `runs.py` must not take it for that of a training."""
    (folder / run_lock.NAME).touch()
    with (folder / run_lock.NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not is_running(folder)


def test_many_processes_look_at_the_same_time(folder):
    lock_run(folder).release()
    look = "from engine.runs.run_lock import is_running\nassert not any(is_running(Path(sys.argv[1])) for _ in range(3000))"
    with other_process(folder, look), other_process(folder, look):
        assert not any(is_running(folder) for _ in range(3000))


def test_a_forked_process_that_ends_keeps_the_lock_of_its_parent(folder):
    with other_process(folder, FORK_AND_END):
        assert is_running(folder)


def test_a_forked_process_that_outlives_its_parent_does_not_hold_the_lock(folder):
    """A worker of a DataLoader may live for seconds after its parent was killed."""
    with other_process(folder, FORK_AND_STAY) as process:
        process.kill()
        process.wait()
        try:
            assert not is_running(folder)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_run_of_a_version_without_locks_is_listed_and_resumed(tmp_path, monkeypatch):
    killed = run(tmp_path, "--config", IRIS, "trainer.max_epochs=1", "trainer.logger=false")
    for name in ("metrics.json", run_lock.NAME):
        (killed / name).unlink()
    assert [run.status for run in find_runs(tmp_path)] == ["interrupted"]
    assert train.main(["--resume", str(killed)]) == 0
    assert [run.status for run in find_runs(tmp_path)] == ["finished"]


def test_a_folder_that_cannot_be_locked(folder):
    """As in a folder that is not writable: whether the run is running is unknown, so it must not be deleted."""
    (folder / run_lock.NAME).mkdir()
    assert lock_run(folder) is None
    (found,) = find_runs(folder.parent.parent)
    assert found.status == "running"
    assert not delete_run(found)
    (folder / "status.json").write_text('{"status": "failed"}', encoding="utf-8")  # a run that trains has removed it
    (found,) = find_runs(folder.parent.parent)
    assert found.status == "failed"
    assert delete_run(found)


def test_without_fcntl(folder, monkeypatch):
    """As on Windows, where locks are exclusive."""
    monkeypatch.setattr(run_lock, "fcntl", None)
    assert not is_running(folder)
    with other_process(folder):
        assert is_running(folder)
    assert not is_running(folder)


def test_a_run_that_was_resumed_is_not_deleted(folder):
    (found,) = find_runs(folder.parent.parent)
    with other_process(folder):
        assert not delete_run(found)
    assert (folder / "config.yaml").exists()
    assert delete_run(found)


def test_a_run_cannot_be_resumed_while_it_is_deleted(folder, monkeypatch):
    config = find_run(str(folder), None, [])
    refused = []

    def resume(_):
        with pytest.raises(ConfigError, match="was deleted"), run_folder(config):
            pass
        refused.append(True)

    monkeypatch.setattr(shutil, "rmtree", resume)
    assert delete_run(find_runs(folder.parent.parent)[0])
    assert refused


def test_a_refused_run_cannot_be_resumed_while_its_folder_is_deleted(tmp_path, monkeypatch):
    can_be_resumed = []
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **_: can_be_resumed.append((folder / "config.yaml").exists()))
    with pytest.raises(ConfigError), run_folder(load_config(IRIS, [f"run.root={tmp_path}"])):
        raise ConfigError("", "", "is refused")
    assert can_be_resumed == [False]


def test_a_new_run_is_locked_before_it_can_be_listed(tmp_path, monkeypatch):
    states = []

    def write(path, text):
        states.append((is_running(path.parent), find_runs(tmp_path)))
        path.write_text(text, encoding="utf-8")

    monkeypatch.setattr(run_folder_module, "write_text", write)
    with suppress(UserError), run_folder(load_config(IRIS, [f"run.root={tmp_path}"])) as folder:
        assert states == [(True, [])]
        assert [found.status for found in find_runs(tmp_path)] == ["running"]
        raise UserError("refused before it trains")
    assert not folder.exists()


def test_a_file_system_without_locks_has_no_soft_lock(folder, monkeypatch):
    """A file that only marks the lock would outlive a killed run."""

    def fail(*_):
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(fcntl, "flock", fail)
    assert lock_run(folder) is None


def replace_config(folder: Path) -> None:
    """As an editor or ``sed -i`` does: the new file has another inode."""
    shutil.copy(folder / "config.yaml", folder / "new")
    os.replace(folder / "new", folder / "config.yaml")


def rewrite_config(folder: Path) -> None:
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text(encoding="utf-8") + "\n", encoding="utf-8")


def move_away_and_back(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.with_name("moved").rename(folder)


def touch_lock(folder: Path) -> None:
    os.utime(folder / run_lock.NAME, (1.0, 1.0))


@pytest.mark.parametrize("change", [replace_config, rewrite_config, move_away_and_back, touch_lock])
def test_a_run_at_work_stays_locked_when_its_files_change(change, folder):
    (found,) = find_runs(folder.parent.parent)
    with other_process(folder):
        change(folder)
        assert is_running(folder)
        assert not delete_run(found)
        with pytest.raises(ConfigError, match="is running"), run_folder(find_run(str(folder), None, [])):
            pass


def delete_lock(folder: Path) -> None:
    (folder / run_lock.NAME).unlink()


def replace_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / run_lock.NAME).touch()


@pytest.mark.parametrize("change", [shutil.rmtree, delete_lock, replace_folder])
def test_a_lock_that_was_deleted_while_a_process_waited_does_not_count(change, folder, monkeypatch):
    from filelock import FileLock

    acquire = FileLock.acquire

    def acquire_and_change(self, *args, **kwargs):
        proxy = acquire(self, *args, **kwargs)
        change(folder)
        return proxy

    monkeypatch.setattr(FileLock, "acquire", acquire_and_change)
    with pytest.raises(ConfigError, match="was deleted or replaced; check the folder, then try again"):
        lock_run(folder)


@pytest.mark.parametrize("is_link", [False, True])
def test_a_resumption_deletes_only_its_own_unfinished_files(is_link, folder, tmp_path):
    target = tmp_path / "elsewhere" if is_link else folder / "checkpoints"
    target.mkdir()
    if is_link:
        (folder / "checkpoints").symlink_to(target)
    for name in ("last.part", "best.part", "x.part", "download.part", "last.ckpt"):
        (target / name).touch()
    with run_folder(find_run(str(folder), None, [])):
        left = sorted(path.name for path in target.iterdir())
    assert left == ["download.part", "last.ckpt", "x.part"]


def test_a_deleted_folder_is_one_line(tmp_path, monkeypatch, capsys):
    def delete_and_save(self):
        shutil.rmtree(self.folder)
        raise FileNotFoundError(2, "No such file or directory", str(self.folder))

    monkeypatch.setattr("engine.training.loggers.RunLogger.save", delete_and_save)
    assert train.main(["--config", IRIS, f"run.root={tmp_path}", *WITHOUT_PICTURES]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "was deleted while the run used it" in printed


def test_a_folder_that_is_deleted_from_a_run_without_loggers(tmp_path, monkeypatch, capsys):
    """The checkpoints are the only files that the run still writes."""
    save = Checkpoints.on_validation_end

    def delete_and_save(self, *arguments):
        if self.folder.exists():
            shutil.rmtree(self.folder)
        save(self, *arguments)

    monkeypatch.setattr(Checkpoints, "on_validation_end", delete_and_save)
    assert train.main(["--config", IRIS, f"run.root={tmp_path}", "trainer.logger=false", *WITHOUT_PICTURES]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "was deleted while the run used it" in printed


def test_a_finished_run_never_deletes_its_folder(tmp_path, monkeypatch):
    """Also if its environment.json was deleted."""
    delete = RunRecord.on_train_end

    def delete_file(self, *arguments):
        (self.folder / "environment.json").unlink()
        delete(self, *arguments)

    monkeypatch.setattr(RunRecord, "on_train_end", delete_file)
    folder = run(tmp_path, "--config", IRIS, *WITHOUT_PICTURES)
    assert (folder / "metrics.json").exists()
    assert (folder / "checkpoints/best.ckpt").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_in_the_thread_of_tensorboard_is_one_line(number, tmp_path, monkeypatch, capsys):
    def fail(self, data):
        raise OSError(number, os.strerror(number), "events")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", fail)
    assert train.main(["--config", IRIS, f"run.root={tmp_path}", *WITHOUT_PICTURES]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "error: cannot write events" in printed


@pytest.mark.parametrize("moment", ["lock_run", "write_text"])
def test_a_signal_while_a_folder_is_created_leaves_no_folder(moment, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder_module, moment, interrupt)
    with pytest.raises(KeyboardInterrupt), run_folder(load_config(IRIS, [f"run.root={tmp_path}"])):
        pass
    assert list(tmp_path.glob("*/*")) == []
