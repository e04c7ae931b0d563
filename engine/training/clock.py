"""Measures where a run's time goes, and says which key changes it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Activity = Literal["start", "step", "data", "validation", "checkpoints", "logging", "test"]

# these add up to the whole training
TRAINING: tuple[Activity, ...] = ("step", "data", "validation", "checkpoints", "logging")
# the largest fraction of the training that an activity should take, and the keys that reduce it
ADVICE: dict[Activity, tuple[float, str]] = {
    "data": (0.3, "use less augmentation, raise data.batch_size, or give your own DataLoader more workers"),
    "validation": (
        0.3,
        "raise trainer.check_val_every_n_epoch, trainer.val_check_interval or data.eval_batch_size, or lower "
        "data.val_fraction",
    ),
    "checkpoints": (
        0.1,
        "raise trainer.check_val_every_n_epoch (the best is written after validations), run.checkpoint_every_minutes or "
        "run.checkpoint_every_steps",
    ),
    "logging": (0.1, "raise trainer.log_every_n_steps"),
}
MIN_SECONDS = 10.0  # shorter trainings get no advice
# If the main thread waits for a core for a larger fraction of the time, the run prints advice. Without other programs it
# waits less than 2 % of the time; with two busy processes on two cores, more than 30 % (`python -m benchmarks busy`).
MAX_WAITING = 0.2
WAITING_HINT = "stop other programs, or use fewer threads (run.threads=1) or DataLoader workers"


class Clock:
    """Seconds of this process by activity, as the host sees them. It does not wait for work that a GPU still does.

    Attributes:
        seconds: Seconds of each activity. "step" is the rest of the training.
    """

    def __init__(self) -> None:
        self.seconds: dict[Activity, float] = dict.fromkeys(("start", *TRAINING, "test"), 0.0)
        self._begun = time.perf_counter()
        self._since: dict[Activity, float] = {"test": self._begun}
        self._testing = False
        self._waiting_since, self._waited = self._begun, core_waiting_seconds()
        self._has_waiting_advice = False
        self._late_advice: str | None = None  # advice that was not printed during training

    @contextmanager
    def measure(self, name: Activity) -> Iterator[None]:
        """Add the time of the block to `name`. Activities that are measured within the block count for themselves."""
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def begin(self, name: Activity) -> None:
        """As `measure`, for an activity that begins and ends in two hooks."""
        self._since[name] = self._uncounted()

    def end(self, name: Activity) -> None:
        if self._testing and name != "test":
            return  # logging in a test counts as test
        self.seconds[name] += self._uncounted() - self._since[name]

    def _uncounted(self) -> float:
        """Time without the activities that have ended."""
        return time.perf_counter() - sum(self.seconds.values())

    def train_start(self) -> None:
        """Call this before the first step."""
        self.seconds = dict.fromkeys(self.seconds, 0.0) | {"start": process_seconds()}
        self._begun = self._waiting_since = time.perf_counter()
        self._waited = core_waiting_seconds()

    def waiting_advice(self) -> str | None:
        """Return advice, at most once, if this process had to wait for a CPU core since the last call."""
        seconds = time.perf_counter() - self._waiting_since
        if self._has_waiting_advice or seconds < MIN_SECONDS:
            return None
        before, self._waited = self._waited, core_waiting_seconds()
        self._waiting_since += seconds
        if before is None or self._waited is None or (fraction := (self._waited - before) / seconds) <= MAX_WAITING:
            return None
        self._has_waiting_advice = True
        return f"the run waits {fraction:.0%} of the time for a CPU core: {WAITING_HINT}"

    def train_end(self) -> None:
        """Call this after the last step. Time that no other activity took was spent in steps."""
        total, self._late_advice = time.perf_counter() - self._begun, self.waiting_advice()
        self.seconds["step"] = max(0.0, total - sum(self.seconds[name] for name in TRAINING if name != "step"))
        self.test_start()

    def test_start(self) -> None:
        """Call this before the test."""
        self._testing = True
        if not self.seconds["start"]:  # a resumed run with nothing left to train
            self.seconds["start"] = process_seconds()
        self.begin("test")

    def test_end(self) -> None:
        """Call this after the test."""
        self.end("test")

    def summary(self) -> list[str]:
        """Lines for the user: where the time of this process went, and which key reduces an activity that takes too much."""
        training = sum(self.seconds[name] for name in TRAINING)
        fractions = {name: self.seconds[name] / training for name in TRAINING if training >= 0.05}
        shown = ", ".join(f"{name} {fraction:.0%}" for name, fraction in fractions.items() if fraction >= 0.005)
        start, test = self.seconds["start"], self.seconds["test"]
        lines = [f"start {start:.1f} s, training {training:.1f} s{f' ({shown})' if shown else ''}, test {test:.1f} s"]
        if training >= MIN_SECONDS:
            lines += [
                f"{fractions[name]:.0%} of the training went into {name}: {hint}"
                for name, (limit, hint) in ADVICE.items()
                if fractions[name] > limit
            ]
        return [*lines, self._late_advice] if self._late_advice else lines


def core_waiting_seconds() -> float | None:
    """Seconds in which the main thread was ready to run but had no CPU core; None if the system is not Linux."""
    try:
        return int(Path("/proc/self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def process_seconds() -> float:
    """Seconds since this process was started, on Linux; elsewhere since this module was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.perf_counter() - _IMPORTED


_IMPORTED = time.perf_counter()
