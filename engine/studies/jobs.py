"""The jobs of a study: selection of the next run, and handling of its result. A job belongs to one process at a time.

Several commands, also on other machines, may work on a study. They share its folder. A command claims a job with a file
lock. The operating system releases the lock when the command has ended, also after SIGKILL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.contracts import UserError, listed
from engine.runs.resume import is_finished
from engine.runs.run_index import read_mapping, read_run
from engine.studies.plan import METRICS, Plan, PlannedRun
from engine.studies.results import RunResult, SettingResult, State
from engine.terminal import shell_word
from engine.training.exits import DIVERGED

if TYPE_CHECKING:
    from filelock import FileLock


LOCKS, FAILURES, LOGS = ".locks", ".failures", "logs"  # folders in the folder of a study


@dataclass
class Job:
    """A run that this command has claimed.

    Attributes:
        run: The run.
        folder: Its folder, which may not exist yet.
        claim: The lock.
        trial: The trial of a search; None for other runs.
        slot: Number of the run among those that run at the same time, from 0.
    """

    run: PlannedRun
    folder: Path
    claim: "FileLock"
    trial: Any = None
    slot: int = 0


class Queue(Protocol):
    """Gives out jobs.

    Attributes:
        folder: Folder of the study.
    """

    folder: Path

    def claim(self) -> Job | None:
        """Return the next job; None if no job is left that is not claimed."""

    def report(self, job: Job, step: int, value: float) -> bool:
        """Take the value of a validation. Returns whether to end the run."""

    def finish(self, job: Job) -> RunResult:
        """Take the result of a run whose process has ended, and release the job."""

    def num_left(self) -> int:
        """Return the number of runs that have not ended, those of other commands included."""


class PlannedQueue:
    """The runs of given settings, in the order of the plan.

    Args:
        plan: The plan.
        folder: Folder of the study.
        runs: All runs.
    """

    def __init__(self, plan: Plan, folder: Path, runs: list[PlannedRun]) -> None:
        self.plan, self.folder, self.runs = plan, folder, runs
        self._ended: set[str] = set()  # names of runs that have ended, which saves reading their files again

    def claim(self) -> Job | None:
        with study_lock(self.folder):
            for run in self.runs:
                folder = run_folder_of(self.plan, self.folder, run)
                if run.name in self._ended:
                    continue
                if has_ended(self.folder, folder):
                    self._ended.add(run.name)
                elif (claim := try_claim(self.folder, run.name)) is not None:
                    return Job(run, folder, claim)
        return None

    def report(self, job: Job, step: int, value: float) -> bool:
        return False

    def finish(self, job: Job) -> RunResult:
        result = read_result(self.plan, self.folder, job.run)
        if result.state in ("finished", "failed"):
            self._ended.add(job.run.name)
        job.claim.release()
        return result

    def num_left(self) -> int:
        folders = {run.name: run_folder_of(self.plan, self.folder, run) for run in self.runs}
        return sum(name not in self._ended and not has_ended(self.folder, folder) for name, folder in folders.items())


def run_folder_of(plan: Plan, folder: Path, run: PlannedRun) -> Path:
    """Return the folder of a run of the study in `folder`."""
    return folder / plan.config.path.stem / run.name


def has_ended(study: Path, folder: Path) -> bool:
    """Return whether a run is finished, has diverged, or is noted as failed. Other runs can be resumed."""
    has_diverged = (read_mapping(folder / "status.json") or {}).get("exit_code") == DIVERGED
    return has_diverged or is_finished(folder) or failure_file(study, folder.name).exists()


def note_failure(study: Path, name: str, reason: str) -> None:
    """Record the reason of a failure, so that the run is not started again before the study is resumed."""
    failure_file(study, name).parent.mkdir(exist_ok=True)
    failure_file(study, name).write_text(reason, encoding="utf-8")


def forget_failures(study: Path) -> None:
    """Let a resumed study try failed runs again, except for those that have diverged."""
    for path in (study / FAILURES).glob("*"):
        path.unlink(missing_ok=True)


def last_error(study: Path, name: str) -> str:
    """Return the last error that a run has printed."""
    try:
        lines = log_file(study, name).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else "unknown"


def failure_file(study: Path, name: str) -> Path:
    return study / FAILURES / name


def log_file(study: Path, name: str) -> Path:
    """Return the file with everything that a run has printed."""
    return study / LOGS / f"{name}.log"


def read_result(plan: Plan, folder: Path, run: PlannedRun) -> RunResult:
    """Read the result of a run from its folder."""
    place = run_folder_of(plan, folder, run)
    if failure_file(folder, run.name).exists() and not is_finished(place):
        reason = failure_file(folder, run.name).read_text(encoding="utf-8")
        return RunResult(run.name, place, run.seed, run.fold, "failed", {}, reason)
    if not (place / "config.yaml").is_file():
        return RunResult(run.name, place, run.seed, run.fold, "waiting")
    found = read_run(place, run.name, 0.0)
    state: State = "stopped" if found.status == "interrupted" else found.status
    return RunResult(run.name, place, run.seed, run.fold, state, found.metrics, found.reason)


def setting_result(plan: Plan, folder: Path, number: int, values: dict[str, Any]) -> SettingResult:
    """Read the results of all runs of a setting."""
    runs = plan.runs(values, plan.name_of(number, values))
    return SettingResult(number, values, [read_result(plan, folder, run) for run in runs])


def compared_metric(plan: Plan, settings: Sequence[SettingResult]) -> str:
    """Return the metric that the study compares: that of the test, or of the validation if the runs are not tested."""
    if plan.is_search:
        return plan.metric
    names = {name for setting in settings for run in setting.runs for name in run.metrics}
    return f"test/{plan.compared}" if f"test/{plan.compared}" in names or not names else f"val/{plan.compared}"


def check_metric(plan: Plan, folder: Path, result: RunResult) -> None:
    """Raise a `UserError` if a finished run lacks the metric that the study compares.

    The other runs would lack the metric, too: the ROC AUC, for example, is computed for two classes only.
    """
    found = [name for name in METRICS if {f"test/{name}", f"val/{name}"} & result.metrics.keys()]
    if plan.is_search or result.state != "finished" or not found or plan.compared in found:
        return
    hint = f"python study.py --resume {shell_word(folder)} --metric {found[0]} continues with another metric"
    raise UserError(f"{result.name} has no metric {plan.compared}; its metrics are {listed(found)}; {hint}")


def lock_of(folder: Path, name: str) -> "FileLock":
    """Return a lock of a study, which the operating system releases when the command ends."""
    from filelock import FileLock

    (folder / LOCKS).mkdir(exist_ok=True)
    return FileLock(
        folder / LOCKS / f"{name}.lock", fallback_to_soft=False
    )  # a soft lock would outlive a killed process


def study_lock(folder: Path) -> "FileLock":
    """Return the lock with which one command at a time chooses a job, or notes its result."""
    return lock_of(folder, "study")


def try_claim(folder: Path, name: str) -> "FileLock | None":
    """Claim a run for this command. Returns None if another command holds the claim."""
    from filelock import Timeout

    claim = lock_of(folder, name)
    try:
        claim.acquire(blocking=False)
    except Timeout:
        return None
    return claim
