"""Progress as one line: live in a terminal, one per epoch and at most one every few seconds in a log.

Lightning's bar redraws and reads metrics back from the device at every refresh, which costs small models more than a
training step. This one looks at the clock, and shows the metrics of the last finished epoch.
"""

import os
import shutil
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from engine.runs.run_record import TITLE_WIDTH
from engine.terminal import duration, print_line

LIVE_SECONDS, LOG_SECONDS = 0.2, 5.0
ESTIMATE_SECONDS = 3.0  # of training, before its end is foretold


class ProgressLine(Callback):
    """Epoch, step, the last epoch's metrics and the time, on standard output; no colours.

    Args:
        live: Redraw one line, as in a terminal; null to find out.
    """

    def __init__(self, live: bool | None = None) -> None:
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" if live is None else live
        self._shown = self._started = 0.0
        self._begun = 0.0  # share of the training that is done when this process starts
        self._foretold = False
        self._metrics = ""
        self._width = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._shown = time.monotonic()
        self._begun = done_share(trainer) or 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if not self._foretold and now - self._started > ESTIMATE_SECONDS:
            self._foretell(trainer)
        if self.live and now - self._shown > LIVE_SECONDS:
            self._show(trainer, trainer.current_epoch + 1, f"  step {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = time.monotonic() - self._shown > (LIVE_SECONDS if self.live else LOG_SECONDS)
        if trainer.current_epoch > 0 and (due or trainer.current_epoch == 1):
            self._finished_epoch(trainer, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finished_epoch(trainer, trainer.current_epoch)
        if self.live and trainer.is_global_zero:
            print_line("")

    def _finished_epoch(self, trainer: Trainer, epochs: int) -> None:
        """Shown when the next one starts: only then has every hook logged what it logs."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        order = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
        self._metrics = "  ".join(f"{name} {values[name]:.4f}" for name in order if name in values)
        self._show(trainer, epochs, "")

    def _foretell(self, trainer: Trainer) -> None:
        """Once, in a line that stays."""
        self._foretold = True
        if trainer.is_global_zero and (seconds := self._expected(trainer)) is not None:
            self._say(f"{'expected':<{TITLE_WIDTH}}about {duration(seconds)} of training")

    def _expected(self, trainer: Trainer) -> float | None:
        """Seconds of this process's training, from its share that is done; null where none is or no end is known."""
        done = done_share(trainer)
        if done is None or done <= self._begun:
            return None
        return (time.monotonic() - self._started) * (1 - self._begun) / (done - self._begun)

    def _show(self, trainer: Trainer, epoch: int, step: str) -> None:
        if not trainer.is_global_zero:
            return
        self._shown = time.monotonic()
        epochs = "" if (trainer.max_epochs or -1) < 0 else f"/{trainer.max_epochs}"
        seconds, expected = self._shown - self._started, self._expected(trainer) if step else None
        left = (
            "" if expected is None or seconds < ESTIMATE_SECONDS else f", {duration(max(0.0, expected - seconds))} left"
        )
        text = f"epoch {epoch}{epochs}{step}  {duration(seconds)}{left}  {self._metrics}"
        if self.live:
            self._say(text, end="")
        else:
            print_line(text)

    def _say(self, text: str, end: str = "\n") -> None:
        """In the place of the live line, if there is one."""
        if self.live:
            room = shutil.get_terminal_size().columns - 1  # what is longer could not be written over
            if len(text) > room:
                text = text[: room + 2].rpartition("  ")[0][:room] or text[:room]  # whole figures alone
            padded, self._width = text.ljust(self._width), len(text) if not end else 0
            text = "\r" + padded  # over what a longer line left
        print_line(text, end=end)


def done_share(trainer: Trainer) -> float | None:
    """Of the whole training; null where no number of epochs or steps ends it."""
    steps, batches = trainer.max_steps, trainer.num_training_batches
    shares = [trainer.global_step / steps] if steps > 0 else []
    if (trainer.max_epochs or -1) > 0 and isinstance(batches, int) and batches > 0:
        shares.append(trainer.fit_loop.total_batch_idx / (batches * trainer.max_epochs))  # type: ignore[operator]
    return max(shares, default=None)
