"""Where a run's time goes, and which key to turn."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Part = Literal["start", "step", "data", "validation", "checkpoints", "logging", "test"]

TRAINING: tuple[Part, ...] = ("step", "data", "validation", "checkpoints", "logging")  # they add up to all of it
# a part that takes more than this share of the training, and what changes it
ADVICE: dict[Part, tuple[float, str]] = {
    "data": (0.3, "lighten the augmentation, raise data.batch_size, or give a DataLoader of your own more workers"),
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
LEAST_SECONDS = 10.0  # below this nothing is worth turning


class Clock:
    """Seconds of this process by what they went to, as the host sees them: what a GPU works on meanwhile is not waited for.

    Attributes:
        seconds: Of each part; "step" is what is left of the training.
    """

    def __init__(self) -> None:
        self.seconds: dict[Part, float] = dict.fromkeys(("start", *TRAINING, "test"), 0.0)
        self._begun = time.perf_counter()
        self._since: dict[Part, float] = {"test": self._begun}
        self._testing = False

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count what happens inside for `name`, but for parts within it, which count for themselves."""
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def begin(self, name: Part) -> None:
        """As `part`, for what begins and ends in two hooks."""
        self._since[name] = self._uncounted()

    def end(self, name: Part) -> None:
        if self._testing and name != "test":
            return  # what is logged in a test is part of it
        self.seconds[name] += self._uncounted() - self._since[name]

    def _uncounted(self) -> float:
        """A clock that stands still while something is counted that has ended since."""
        return time.perf_counter() - sum(self.seconds.values())

    def train_start(self) -> None:
        """The first step comes next."""
        self.seconds = dict.fromkeys(self.seconds, 0.0) | {"start": process_seconds()}
        self._begun = time.perf_counter()

    def train_end(self) -> None:
        """The last step has been; what is not counted otherwise was spent in steps."""
        total = time.perf_counter() - self._begun
        self.seconds["step"] = max(0.0, total - sum(self.seconds[name] for name in TRAINING if name != "step"))
        self.test_start()

    def test_start(self) -> None:
        """From here on all is the test's."""
        self._testing = True
        if not self.seconds["start"]:  # of a run that was resumed, with nothing left to train
            self.seconds["start"] = process_seconds()
        self.begin("test")

    def test_end(self) -> None:
        """All is over but the writing of figures."""
        self.end("test")

    def verdict(self) -> list[str]:
        """Lines for a person: where this process's time went and, if one part dominates, which key to turn."""
        training = sum(self.seconds[name] for name in TRAINING)
        shares = {
            name: self.seconds[name] / training for name in TRAINING if training >= 0.05
        }  # shown as more than nothing
        shown = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
        start, test = self.seconds["start"], self.seconds["test"]
        lines = [f"start {start:.1f} s, training {training:.1f} s{f' ({shown})' if shown else ''}, test {test:.1f} s"]
        if training >= LEAST_SECONDS:
            lines += [
                f"{shares[name]:.0%} of the training went into {name}: {key}"
                for name, (most, key) in ADVICE.items()
                if shares[name] > most
            ]
        return lines


def process_seconds() -> float:
    """Seconds since this process was started; where the system does not say, since this module was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.perf_counter() - _IMPORTED


_IMPORTED = time.perf_counter()
