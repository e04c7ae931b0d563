"""Reports the validations of a run to the search, which may end the run early."""

import math
from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer

from engine.runs.run_record import RunRecord
from engine.terminal import print_line


class ReportValidations(Callback):
    """Reports the monitor after every validation, and ends the training if the search says so.

    Args:
        metric: The metric to report.
        report: Takes the number of the epoch, from 1, and the value. Returns whether to end the training.
    """

    def __init__(self, metric: str, report: Callable[[int, float], bool]) -> None:
        self.metric, self.report = metric, report

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the last validation of a resumed run again, because its process may have ended before the answer."""
        record = next(callback for callback in trainer.callbacks if isinstance(callback, RunRecord))  # type: ignore[attr-defined]
        if record.epoch:
            self._report(trainer, record.epoch, record.validation.get(self.metric, math.nan))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            value = trainer.callback_metrics.get(self.metric, math.nan)
            self._report(trainer, trainer.current_epoch + 1, float(value))

    def _report(self, trainer: Trainer, epoch: int, value: float) -> None:
        if trainer.strategy.broadcast(trainer.is_global_zero and self.report(epoch, value)):
            reason = "other trials have better values" if math.isfinite(value) else f"{self.metric} is {value}"
            print_line(f"pruned after epoch {epoch}: {reason}")
            trainer.should_stop = True
