"""Progress as one line: live in a terminal, one per epoch and at most one every few seconds in a log.

Lightning's bar redraws and reads metrics back from the device at every refresh, which costs small models more than a
training step. This one looks at the clock, and shows the metrics of the last finished epoch.
"""

import logging
import sys
import time
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.endings import say

LIVE_SECONDS, LOG_SECONDS = 0.2, 5.0


class ProgressLine(Callback):
    """Epoch, step and the last epoch's metrics, on standard output.

    Args:
        live: Redraw one line, as in a terminal; null to find out.
    """

    def __init__(self, live: bool | None = None) -> None:
        self.live = sys.stdout.isatty() if live is None else live
        self._shown = self._started = 0.0
        self._metrics = ""
        self._width = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._shown = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.live and time.monotonic() - self._shown > LIVE_SECONDS:
            self._show(trainer, trainer.current_epoch + 1, f"  step {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = time.monotonic() - self._shown > (LIVE_SECONDS if self.live else LOG_SECONDS)
        if trainer.current_epoch > 0 and (due or trainer.current_epoch == 1):
            self._finished_epoch(trainer, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finished_epoch(trainer, trainer.current_epoch)
        if self.live and trainer.is_global_zero:
            say("")

    def _finished_epoch(self, trainer: Trainer, epochs: int) -> None:
        """Shown when the next one starts: only then has every hook logged what it logs."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        order = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
        self._metrics = "  ".join(f"{name} {values[name]:.4f}" for name in order if name in values)
        self._show(trainer, epochs, "")

    def _show(self, trainer: Trainer, epoch: int, step: str) -> None:
        if not trainer.is_global_zero:
            return
        self._shown = time.monotonic()
        epochs = "" if (trainer.max_epochs or -1) < 0 else f"/{trainer.max_epochs}"
        seconds = self._shown - self._started
        text = f"epoch {epoch}{epochs}{step}  {self._metrics}  {seconds:.0f} s"
        if self.live:  # pad over what the last, longer line left
            say("\r" + text.ljust(self._width), end="")
            self._width = len(text)
        else:
            say(text)


def quieten() -> None:
    """Silence what a user of this project cannot act on."""
    banners = (
        "GPU available",
        "TPU available",
        "💡",
        "`Trainer.fit` stopped",
        "Loading `",
        "Loaded",
        "Restor",
        "Found current_model_state",
        "Using ",
        "Initializing distributed",
        "-----",
    )
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(banners))
    for message in (
        "The number of training batches .* is smaller than the logging interval",  # epochs are always logged
        ".*LeafSpec.* is deprecated",  # Lightning's own use of torch
        "It is recommended to use `self.log",  # sync_dist: the metrics have added up all processes before
        "The checkpoint was not created with WeightAveraging",  # at the test: the averaged weights are all that is wanted
        "Using `DistributedSampler` with the dataloaders",  # our batches count every sample once
    ):
        warnings.filterwarnings("ignore", message=message)
