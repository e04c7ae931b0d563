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

from engine.runs.run_record import TITLE_WIDTH
from engine.terminal import duration, print_line

LIVE_SECONDS, LOG_SECONDS = 0.2, 5.0  # minimum time between two lines in a terminal and in a log file
ESTIMATE_SECONDS = 3.0  # training time before the total duration is estimated
SHOWN_METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


class ProgressLine(Callback):
    """Shows epoch, step, time and the metrics of the last complete epoch on standard output, without colours.

    Args:
        live: Whether to redraw one line instead of printing new lines; null for true in a terminal, false elsewhere.
    """

    def __init__(self, live: bool | None = None) -> None:
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" if live is None else live
        self._started = self._last_shown = 0.0
        self._first_fraction = 0.0  # fraction of the training that was complete when this process started
        self._has_estimated = False
        self._metrics = ""
        self._width = 0  # width of the line that is redrawn

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._last_shown = time.monotonic()
        self._first_fraction = complete_fraction(trainer) or 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if not self._has_estimated and now - self._started > ESTIMATE_SECONDS:
            self._has_estimated = True
            if trainer.is_global_zero and (seconds := self._estimate_seconds(trainer)) is not None:
                self._print(f"{'expected':<{TITLE_WIDTH}}about {duration(seconds)} of training")
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

    def _estimate_seconds(self, trainer: Trainer) -> float | None:
        """Estimate the seconds of training in this process; None if the estimate is not possible."""
        fraction = complete_fraction(trainer)
        if fraction is None or fraction <= self._first_fraction:
            return None
        return (time.monotonic() - self._started) * (1 - self._first_fraction) / (fraction - self._first_fraction)

    def _show(self, trainer: Trainer, epoch: int, step: str) -> None:
        if not trainer.is_global_zero:
            return
        self._last_shown = time.monotonic()
        epochs = "" if (trainer.max_epochs or -1) < 0 else f"/{trainer.max_epochs}"
        seconds, left = self._last_shown - self._started, ""
        if step and seconds >= ESTIMATE_SECONDS and (expected := self._estimate_seconds(trainer)) is not None:
            left = f", {duration(max(0.0, expected - seconds))} left"
        text = f"epoch {epoch}{epochs}{step}  {duration(seconds)}{left}  {self._metrics}"
        if self.live:
            self._print(text, end="")
        else:
            print_line(text)

    def _print(self, text: str, end: str = "\n") -> None:
        """Print a line. In a terminal, it replaces the current line."""
        if self.live:
            columns = shutil.get_terminal_size().columns - 1  # a wrapped line cannot be redrawn
            if len(text) > columns:
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
