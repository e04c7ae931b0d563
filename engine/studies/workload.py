"""Measures how many runs a study should train at the same time."""

import tempfile
from pathlib import Path

from engine.studies.folder import write_config
from engine.studies.jobs import PlannedQueue, read_result
from engine.studies.plan import Plan, PlannedRun
from engine.studies.workers import Train, run_jobs
from engine.threads import ARE_THREADS_SET, available_cores

MIN_RUNS = 8  # smaller studies end before the measurement pays off
PROBE = (
    "trainer.max_time=00:00:00:01", "trainer.limit_test_batches=0", "trainer.logger=false",
    "trainer.enable_checkpointing=false", "run.calibrate=false",
)  # fmt: skip


def chooses_threads(plan: Plan) -> bool:
    """Return whether the study chooses the number of threads of its runs, because the user has not."""
    return plan.config["run.threads"] is None and not ARE_THREADS_SET


def is_measured(plan: Plan) -> bool:
    """Return whether there are cores and runs to share."""
    return chooses_threads(plan) and available_cores() > 1 and plan.num_runs() >= MIN_RUNS


def fastest_workers(plan: Plan, train: Train) -> tuple[int, int | None]:
    """Train for a second with one run that uses all cores, and with one run per core, and return the faster way.

    Args:
        plan: The plan.
        train: Trains a job.

    Returns:
        The number of runs at the same time, and the threads of each run; None for all cores.
    """
    cores = available_cores()
    together = _steps_per_second(plan, cores, 1, train)
    alone = _steps_per_second(plan, 1, cores, train)
    return (cores, 1) if together > alone else (1, None)


def _steps_per_second(plan: Plan, num_workers: int, threads: int, train: Train) -> float:
    """Return the total steps per second of training of all runs.

    Return 0 if a run fails, for example if the memory is full.
    """
    with tempfile.TemporaryDirectory(prefix="study-") as name:
        folder = Path(name)
        write_config(plan, folder)
        overrides = [*PROBE, f"run.threads={threads}"]
        runs = [PlannedRun(f"probe-{i}", overrides, plan.config["seed"], None) for i in range(num_workers)]
        run_jobs(PlannedQueue(plan, folder, runs), num_workers, train, lambda *_: None)
        metrics = [read_result(plan, folder, run).metrics for run in runs]
        return sum(each["steps"] / each["train_seconds"] for each in metrics) if all(metrics) else 0.0
