"""Runs the jobs of a study, each in a process of its own.

The command imports everything once and forks for each run, so that a run starts in a fraction of a second. It is still equal
to the same run started alone, because it shares neither random states nor memory with other runs. If the command is killed,
its runs end, because each of them waits for the end of a pipe.
"""

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import FrameType
from typing import Any

from engine.config.components import FOLDERS
from engine.config.config import Config
from engine.contracts import UserError
from engine.runs.run_folder import INTERRUPTED
from engine.runs.run_lock import is_running
from engine.studies.jobs import Job, Queue, failure_file, has_ended, last_error, log_file, note_failure
from engine.studies.results import RunResult
from engine.training.exits import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MAX_KILLS = 3  # a run that was killed this many times, for example because the memory is full, has failed
NUM_FIRST = 3  # runs; if all of them are refused for the same reason, the study ends
LOOK_AGAIN_SECONDS = 1.0  # between two looks for jobs that another command has left
# modules that every run imports
WARM_MODULES = (
    "lightning.pytorch.callbacks", "torch.utils.tensorboard", "engine.runs.run_record", "engine.training.calibration",
    "engine.training.checkpoints", "engine.training.loggers", "callbacks.evaluation", "filelock",
)  # fmt: skip
NOTICE = b"\nstopping the runs after their current steps; press Ctrl-C again to stop at once, without saving\n"
# trains a job and returns the exit code; gets a function that reports the step and the value of a validation, and returns
# whether to end the run
Train = Callable[[Job, Callable[[int, float], bool]], int]


@dataclass
class Worker:
    """A process that trains.

    Attributes:
        job: Its job.
        pid: Its process.
        pipe: Carries the values of validations. It closes when the process ends.
        lifeline: The end of a pipe. The process ends when it is closed.
        started: Time when it was started.
    """

    job: Job
    pid: int
    pipe: Connection
    lifeline: int
    started: float = field(default_factory=time.monotonic)


Show = Callable[[Sequence[Worker], RunResult | None, float], None]


def warm_up(config: Config) -> None:
    """Import the modules that the runs of a config need, so that each run finds them in memory."""
    rooms = {section: folder for section, (folder, _) in FOLDERS.items()}
    names = [f"{rooms[section]}.{config[section]['name']}" for section in ("data", "model")]
    names += [f"{rooms['callbacks']}.{name}" for name, options in config["callbacks"].items() if options is not None]
    for name in (*WARM_MODULES, *names):
        with suppress(ImportError):  # a run that needs the module reports the error
            importlib.import_module(name)
    from PIL import Image

    from engine.runs.run_record import code_state

    Image.init()  # imports the modules of all formats
    code_state()  # now, because the runs use the modules that are already in memory


def run_jobs(queue: Queue, num_workers: int, train: Train, show: Show) -> int:
    """Run the jobs of a queue until none is left that another command does not run.

    Args:
        queue: The jobs.
        num_workers: Number of runs at the same time.
        train: Trains a job in a new process, see `Train`.
        show: Called after a change with the running processes, and with the result of a run that has ended and its seconds.
            It raises a UserError to end the study.

    Returns:
        The number of runs that other commands still run.

    Raises:
        Stopped: after SIGINT or SIGTERM, when all runs have ended.
        UserError: if the first runs are refused for the same reason, or `show` raises it. The other runs save a checkpoint.
    """
    workers: list[Worker] = []
    kills: Counter[str] = Counter()
    ended: list[RunResult] = []
    with _Signals(workers) as signals:
        try:
            while True:
                while len(workers) < num_workers and not signals.received and (job := queue.claim()) is not None:
                    if signals.received:  # while the job was chosen
                        job.claim.release()
                        break
                    if has_ended(queue.folder, job.folder):  # its command was killed before it noted the end
                        show(workers, queue.finish(job), 0.0)
                        continue
                    job.slot = min(set(range(num_workers)) - {worker.job.slot for worker in workers})
                    with signals.blocked():
                        workers.append(_start(job, workers, queue.folder, train))
                    show(workers, None, 0.0)
                if not workers:
                    if signals.received:
                        raise Stopped(signals.received)
                    return queue.num_left()
                ready = wait([worker.pipe for worker in workers], LOOK_AGAIN_SECONDS)
                for worker in [worker for worker in workers if worker.pipe in ready]:
                    if not _answer(worker, queue):
                        workers.remove(worker)
                        kills[worker.job.run.name] += _end(worker, queue.folder, kills[worker.job.run.name])
                        ended.append(queue.finish(worker.job))
                        show(workers, ended[-1], time.monotonic() - worker.started)
                        _check_first(ended, queue.folder)
                show(workers, None, 0.0)
        except UserError:
            signals.stop_runs()
            for worker in workers[:]:
                while _answer(worker, queue):
                    pass
                workers.remove(worker)
                _end(worker, queue.folder, 0)
            raise
        finally:
            for worker in workers:
                os.close(worker.lifeline)


def _start(job: Job, workers: Sequence[Worker], study: Path, train: Train) -> Worker:
    ours, theirs = Pipe()
    alive, lifeline = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            for signum in SIGNALS:  # until the run handles them
                signal.signal(signum, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            ours.close()
            for fd in (lifeline, *(worker.lifeline for worker in workers)):
                os.close(fd)
            threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
            os.setpgid(0, 0)  # only the command receives Ctrl-C, and it sends one signal to each run
            _write_output_to(log_file(study, job.run.name))
            code = train(job, lambda step, value: _ask(theirs, step, value))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    theirs.close()
    os.close(alive)
    return Worker(job, pid, ours, lifeline)


def _end_with(alive: int) -> None:
    """End this process as soon as the command has ended, also if that was killed."""
    os.read(alive, 1)
    os._exit(143)


def _write_output_to(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for fd in (sys.__stdout__.fileno(), sys.__stderr__.fileno()):  # type: ignore[union-attr]
        os.dup2(output, fd)


def _ask(pipe: Connection, step: int, value: float) -> bool:
    """Report the value of a validation, and return whether to end the run."""
    pipe.send((step, value))
    return bool(pipe.recv())


def _answer(worker: Worker, queue: Queue) -> bool:
    """Answer a report. Returns False if the process has ended."""
    try:
        step, value = worker.pipe.recv()
    except (EOFError, OSError):
        return False
    answer = queue.report(worker.job, step, value)
    with suppress(OSError):  # the process has ended meanwhile
        worker.pipe.send(answer)
    return True


def _end(worker: Worker, study: Path, num_kills: int) -> bool:
    """Wait for the end of a process, and note the reason if its run has failed. Returns whether it was killed."""
    worker.pipe.close()
    os.close(worker.lifeline)
    code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
    is_killed = code < 0
    if is_killed and num_kills + 1 >= MAX_KILLS:
        note_failure(study, worker.job.run.name, f"killed {MAX_KILLS} times by {signal.Signals(-code).name}")
    elif not (is_killed or code in INTERRUPTED or has_ended(study, worker.job.folder) or is_running(worker.job.folder)):
        # a run is still running if its command was killed, and its process is about to end
        note_failure(study, worker.job.run.name, last_error(study, worker.job.run.name))
    return is_killed and code != -signal.SIGTERM  # which ends a run that does not handle it yet


def _check_first(ended: Sequence[RunResult], study: Path) -> None:
    """Raise a `UserError` if the first runs were refused for the same reason. Other runs would be refused, too."""
    refused = [run.reason for run in ended if failure_file(study, run.name).exists()]
    if len(ended) == len(refused) == NUM_FIRST and len({*refused}) == 1:
        raise UserError(f"the first {NUM_FIRST} runs failed for the same reason: {refused[0]}")


class _Signals:
    """Passes SIGINT and SIGTERM on to the runs, which then save a checkpoint and end. A second SIGINT kills them.

    Attributes:
        received: The first signal; 0 for none.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers, self.received = workers, 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for signum in SIGNALS:
            self._handlers[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Let signals wait, so that none is lost between the start of a process and its entry in the list."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        is_second, self.received = bool(self.received), self.received or signum
        if not is_second and signum == signal.SIGINT:
            with suppress(OSError):
                os.write(2, NOTICE)
        self.stop_runs(at_once=is_second and signum == signal.SIGINT)

    def stop_runs(self, at_once: bool = False) -> None:
        """Let all runs save a checkpoint and end, or kill them."""
        for worker in self.workers:
            with suppress(ProcessLookupError):
                if at_once:
                    os.killpg(worker.pid, signal.SIGKILL)  # with the processes that load its data
                else:
                    os.kill(worker.pid, signal.SIGTERM)
