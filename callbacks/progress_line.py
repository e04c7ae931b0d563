"""Shows progress as one line that is redrawn in a terminal. In a log file, a line is printed every few seconds.

Lightning's progress bar reads metrics from the device at every refresh. For a small model this takes longer than a training
step. This line is redrawn a few times per second, and shows the metrics of the last complete epoch.
"""

import os
import shutil
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from engine.runs.run_record import TITLE_WIDTH, RunRecord
from engine.terminal import duration, print_line
from engine.training.clock import Clock

LIVE_SECONDS, LOG_SECONDS = 0.2, 5.0  # minimum time between two lines in a terminal and in a log file
LOOK_SECONDS = 1.0  # minimum time between two checks of the speed; the first check is after the first step
ESTIMATE_SECONDS = 3.0  # training time before the total duration is estimated
CORRECTED_RATIO = 1.5  # print a new estimate if it differs from the last one by this factor
SHOWN_METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


class ProgressLine(Callback):
    """Shows epoch, step, time and the metrics of the last complete epoch on standard output, without colours.

    Args:
        live: Whether to redraw one line instead of printing new lines; null for true in a terminal, false elsewhere.
    """

    def __init__(self, live: bool | None = None) -> None:
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" if live is None else live
        self._started = self._last_shown = 0.0
        self._next_look = 0.0
        # Two moments after the first step, and the fraction of the training that was complete at each. The speed is measured
        # from the first moment until now. This is the last 1/2 to 3/4 of the time so far. It leaves out the first steps,
        # which are slow.
        self._marks: tuple[tuple[float, float], tuple[float, float]] | None = None
        self._printed_seconds: float | None = None  # the last printed estimate
        self._clock = Clock()
        self._metrics = ""
        self._width = 0  # width of the line that is redrawn

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._last_shown = time.monotonic()
        records = [callback for callback in trainer.callbacks if isinstance(callback, RunRecord)]  # type: ignore[attr-defined]
        self._clock = records[0].clock if records else self._clock

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now >= self._next_look and trainer.is_global_zero:
            self._next_look = now + LOOK_SECONDS
            self._look(trainer, now)
        if self.live and now - self._last_shown > LIVE_SECONDS:
            self._show(trainer, trainer.current_epoch + 1, f"  step {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            return
        self._read_metrics(trainer)
        is_due = time.monotonic() - self._last_shown > (LIVE_SECONDS if self.live else LOG_SECONDS)
        if is_due or trainer.current_epoch == 1:
            self._show(trainer, trainer.current_epoch, "")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read_metrics(trainer)
        self._show(trainer, trainer.current_epoch, "")
        if self.live and trainer.is_global_zero:
            print_line("")

    def _read_metrics(self, trainer: Trainer) -> None:
        """Read the metrics of the previous epoch. They are complete only when the next epoch starts."""
        values = trainer.callback_metrics
        self._metrics = "  ".join(f"{name} {float(values[name]):.4f}" for name in SHOWN_METRICS if name in values)

    def _look(self, trainer: Trainer, now: float) -> None:
        """Print the expected duration if it has changed, and advice if the run waits for a CPU core."""
        if (advice := self._clock.waiting_advice()) is not None:
            self._print(f"{'slow':<{TITLE_WIDTH}}{advice}")
        if (fraction := complete_fraction(trainer)) is None:
            return
        if self._marks is None:
            self._marks = ((now, fraction), (now, fraction))
        is_due = now - self._started >= 2 * (self._marks[1][0] - self._started)
        left, old = self._seconds_left(trainer, now), self._printed_seconds
        if left and (is_due or old is None):
            new = now - self._started + left
            if old is None or max(old, new) > CORRECTED_RATIO * min(old, new):
                correction = "" if old is None else "now "
                self._print(f"{'expected':<{TITLE_WIDTH}}{correction}about {duration(new)} of training")
                self._printed_seconds = new
        if is_due:
            self._marks = self._marks[1], (now, fraction)

    def _seconds_left(self, trainer: Trainer, now: float) -> float | None:
        """Estimate the seconds of training that are left; None if the estimate is not possible yet."""
        fraction = complete_fraction(trainer)
        if fraction is None or self._marks is None or now - self._started < ESTIMATE_SECONDS:
            return None
        since, complete = self._marks[0]
        return (now - since) * (1 - fraction) / (fraction - complete) if fraction > complete else None

    def _show(self, trainer: Trainer, epoch: int, step: str) -> None:
        if not trainer.is_global_zero:
            return
        self._last_shown = time.monotonic()
        epochs = "" if (trainer.max_epochs or -1) < 0 else f"/{trainer.max_epochs}"
        seconds, left = self._last_shown - self._started, ""
        if step and (expected := self._seconds_left(trainer, self._last_shown)) is not None:
            left = f", {duration(max(0.0, expected))} left"
        text = f"epoch {epoch}{epochs}{step}  {duration(seconds)}{left}  {self._metrics}"
        if self.live:
            self._print(text, end="")
        else:
            print_line(text)

    def _print(self, text: str, end: str = "\n") -> None:
        """Print a line. In a terminal, it replaces the current line."""
        if self.live:
            columns = shutil.get_terminal_size().columns - 1  # a wrapped line cannot be redrawn
            if len(text) > columns and not end:
                text = text[: columns + 2].rpartition("  ")[0][:columns] or text[:columns]  # drops whole metrics
            padded, self._width = text.ljust(self._width), len(text) if not end else 0
            text = "\r" + padded  # the padding erases the rest of a longer line
        print_line(text, end=end)


def complete_fraction(trainer: Trainer) -> float | None:
    """Return the completed fraction of training, 0 to 1; None if training has no maximum of epochs or steps."""
    batches, epochs = trainer.num_training_batches, trainer.max_epochs or -1
    fractions = [trainer.global_step / trainer.max_steps] if trainer.max_steps > 0 else []
    if epochs > 0 and isinstance(batches, int) and batches > 0:
        fractions.append(trainer.fit_loop.total_batch_idx / (batches * epochs))
    return max(fractions, default=None)
