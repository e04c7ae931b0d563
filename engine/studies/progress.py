"""Prints the progress of a study: a line for each run that has ended, and on a terminal a table of running and best runs."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence

from engine.runs.run_index import read_mapping
from engine.studies.jobs import Queue
from engine.studies.plan import Plan
from engine.studies.results import RunResult
from engine.studies.workers import Worker
from engine.terminal import count_of, duration, print_line

NUM_BEST = 5  # runs in the table
REFRESH_SECONDS = 0.5  # time between two updates of the table


class Progress:
    """Shows a study.

    Args:
        plan: The plan.
        num_workers: Number of runs at the same time.
    """

    def __init__(self, plan: Plan, num_workers: int) -> None:
        self.plan, self.num_workers = plan, num_workers
        self._num_left: Callable[[], int] = plan.num_runs
        self.results: list[tuple[float, RunResult]] = []
        self._seconds: list[float] = []  # times of the runs of this command
        self._is_live = sys.stdout.isatty()
        self._num_lines, self._drawn = 0, 0.0

    def begin(self, queue: Queue, num_later: int = 0) -> "Progress":
        """Show a queue, which `num_later` other runs follow."""
        self._num_left = lambda: queue.num_left() + num_later
        self.results, self._seconds = [], []  # trials and other runs have other metrics and durations
        return self

    def show(self, workers: Sequence[Worker], ended: RunResult | None, seconds: float) -> None:
        """Print a run that has ended, and draw the table again.

        Args:
            workers: The running processes.
            ended: The run; None if only the table is drawn.
            seconds: How long the run took in this command.
        """
        if ended is not None:
            self._erase()
            self._seconds += [seconds] if ended.state == "finished" and seconds else []
            print_line(self._line(ended, seconds))
        if self._is_live and (ended is not None or time.monotonic() - self._drawn > REFRESH_SECONDS):
            self._erase()
            width = shutil.get_terminal_size().columns - 1  # a wrapped line could not be erased
            lines = [line[:width] for line in self._table(workers)]
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            sys.stdout.flush()
            self._num_lines, self._drawn = len(lines), time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._erase()

    def _line(self, result: RunResult, seconds: float) -> str:
        name = metric_of(self.plan, result)
        value = result.value(name)
        if value is not None:
            self.results.append((value, result))
            text = f"{name} {value:.4f}"
        else:
            text = result.reason if result.state == "failed" else "saved" if result.state == "stopped" else "no result"
        state = (
            "" if result.state == "finished" else f"{result.state}  " if result.state != "waiting" else "not started  "
        )
        left, total = self._num_left(), self.plan.num_runs()
        times = f"{duration(seconds)}{self._time_left(left)}"
        return f"{total - left:>4}/{total}  {result.name:<18}  {state}{text}  {times}"

    def _time_left(self, left: int) -> str:
        if not self._seconds or left <= 0:
            return ""
        return f"  about {duration(left * sum(self._seconds) / len(self._seconds) / self.num_workers)} left"

    def _table(self, workers: Sequence[Worker]) -> list[str]:
        lines = [f"best of {count_of(len(self.results), 'run')}:"] if self.results else []
        name = metric_of(self.plan, self.results[0][1]) if self.results else ""
        best = sorted(self.results, key=lambda pair: pair[0], reverse=self.plan.mode_of(name) == "max")
        lines += [f"  {result.name:<18}  {name} {value:.4f}" for value, result in best[:NUM_BEST]]
        for worker in workers:
            folder = worker.job.folder
            state = "" if read_mapping(folder / "environment.json") else "  starting"
            lines.append(f"running  {folder.name:<18} for {duration(round(time.monotonic() - worker.started))}{state}")
        return lines

    def _erase(self) -> None:
        if self._num_lines:
            sys.stdout.write(f"\x1b[{self._num_lines}F\x1b[J")
            sys.stdout.flush()
        self._num_lines = 0


def metric_of(plan: Plan, result: RunResult) -> str:
    """Return the metric of a run that its study compares."""
    if result.name.startswith("trial-"):
        return plan.metric
    name = f"test/{plan.compared}"
    return name if name in result.metrics else f"val/{plan.compared}"
