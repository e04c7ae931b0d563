"""``--check``: checks the data and the model, and estimates the duration of a run.

The run is started with its config, data, model, precision, optimizer and callbacks in a temporary folder. Before the first
step, the results of the checks are printed. Then the first steps are timed, and the run ends.
"""

import math
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from engine.checks.data_checks import check_data
from engine.checks.device_checks import check_device
from engine.checks.model_checks import check_model
from engine.contracts import CheckResult, Classifier, one_line, plain_training_batches
from engine.terminal import duration, print_line
from engine.training.exits import REFUSED, Diverged, RunEnded
from engine.training.hardware import peak_memory

MAX_SAMPLES, MAX_BATCHES = 256, 16  # limits of the training data for the model checks
# The first steps are not timed, because kernels are selected. They end at the first of these limits.
WARM_UP_BATCHES, WARM_UP_SECONDS = 2, 2.0
TIMED_SECONDS, VALIDATION_SECONDS = 2.5, 1.0


class PreflightCheck(Callback):
    """Prints each result immediately, and ends the run with exit code 0, or 2 if a result is WRONG."""

    def __init__(self) -> None:
        self.levels: list[str] = []
        self._started = self._val_batch_seconds = 0.0
        self._batches = 0
        self._timed_from: tuple[float, int] | None = None  # time and number of batches at the end of the warm-up
        self._epoch_ends: list[tuple[float, int]] = []  # time and number of batches
        self._validation_seconds = 0.0  # duration of validations since the warm-up

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._print_all(check_data(trainer.datamodule))  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_all(check_device(trainer, pl_module))
        batches = _training_batches(trainer)
        optimizer = trainer.optimizers[0] if len(trainer.optimizers) == 1 else None
        clip = trainer.gradient_clip_val if trainer.gradient_clip_algorithm != "value" else None
        self._print_all(check_model(cast(Classifier, pl_module), optimizer, batches, clip))
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        if trainer.limit_val_batches:
            self._val_batch_seconds = _time_validation_batch(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *__: Any) -> None:
        now = _now(pl_module.device)
        self._batches += 1
        if self._timed_from is None:
            if self._batches == WARM_UP_BATCHES or now - self._started > WARM_UP_SECONDS:
                self._timed_from, self._validation_seconds = (now, self._batches), 0.0
        elif now - self._timed_from[0] >= TIMED_SECONDS:
            start, batches = self._timed_from
            batch_seconds = (now - start - self._validation_seconds) / (self._batches - batches)
            validation_seconds = self._val_batch_seconds * sum(trainer.num_val_batches)
            if len(self._epoch_ends) > 1:  # epochs include validations and all other work
                (start, batches), (end, all_batches) = self._epoch_ends[0], self._epoch_ends[-1]
                batch_seconds, validation_seconds = (end - start) / (all_batches - batches), 0.0
            raise self._end(trainer, batch_seconds, validation_seconds)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_seconds -= _now(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_seconds += _now(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_ends.append((_now(pl_module.device), self._batches))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run whose training took less time than the check."""
        seconds = duration(_now(pl_module.device) - self._started)
        self._print("note", "expected time", f"{seconds} for the whole training; memory {_memory(pl_module.device)}")
        raise self._outcome()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # the check of gradients has printed why the loss has no gradient
        has_no_gradient = "WRONG" in self.levels and "does not require grad" in str(exception)
        if has_no_gradient or isinstance(exception, Diverged):
            self._print("WRONG", "first steps", one_line(exception))
            raise self._outcome() from exception

    def _end(self, trainer: Trainer, batch_seconds: float, validation_seconds: float) -> RunEnded:
        """Print the expected duration of the run, and return the exception that ends this check.

        Args:
            trainer: Trainer of the run.
            batch_seconds: Duration of a training batch.
            validation_seconds: Duration of a validation; 0 if `batch_seconds` includes validations.
        """
        batches = _num_batches(trainer)
        validations = _num_validations(trainer, batches)
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        limits = [seconds for timer in timers if (seconds := timer.time_remaining()) is not None]
        limit = min(limits, default=math.inf)
        seconds = batch_seconds * batches + validation_seconds * validations
        if seconds < limit:
            text = f"about {duration(seconds)} for {batches:,.0f} training batches and {validations:,.0f} validations"
        elif math.isfinite(limit):
            text = f"about {duration(limit)}, the time limit of the run, with {duration(batch_seconds)} per batch"
        else:
            text = f"{duration(batch_seconds)} per batch; the run has no fixed number of batches"
        self._print("note", "expected time", f"{text}; memory {_memory(trainer.strategy.root_device)}")
        return self._outcome()

    def _print_all(self, results: Iterable[CheckResult]) -> None:
        for result in results:
            self._print(*result)

    def _print(self, level: str, title: str, text: str) -> None:
        self.levels.append(level)
        print_line(f"{level:<8} {title:<20} {text}")

    def _outcome(self) -> RunEnded:
        num_wrong = self.levels.count("WRONG")
        if num_wrong:
            return RunEnded(
                f"error: --check: {num_wrong} of {len(self.levels)} checks are WRONG; fix them first", REFUSED
            )
        return RunEnded("", 0)


def _training_batches(trainer: Trainer) -> list[Any]:
    """Return the first batches of an epoch on the run's device. `TensorBatches` are not augmented."""
    loader = plain_training_batches(trainer.datamodule)  # type: ignore[attr-defined]
    batches: list[Any] = []
    for batch in islice(loader, MAX_BATCHES):
        batches.append(trainer.strategy.batch_to_device(batch))
        if sum(len(labels) for _, labels in batches) >= MAX_SAMPLES:
            break
    return batches


@torch.no_grad()  # XLA does not support `inference_mode`
def _time_validation_batch(trainer: Trainer) -> float:
    """Return the mean seconds of a validation batch. The first batch is not timed if there are several."""
    module, device, measured = trainer.lightning_module, trainer.strategy.root_device, []
    module.eval()
    end = time.perf_counter() + VALIDATION_SECONDS
    with trainer.precision_plugin.val_step_context():
        for batch in trainer.datamodule.val_dataloader():  # type: ignore[attr-defined]
            start = _now(device)
            inputs, _ = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch))
            module(inputs)
            measured.append(_now(device) - start)
            if time.perf_counter() > end:
                break
    module.train()
    measured = measured[1:] or measured
    return sum(measured) / max(1, len(measured))


def _num_batches(trainer: Trainer) -> float:
    """Return the number of training batches of the run; infinite if there is no limit of epochs or steps."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps  # -1 for no limit
    by_epochs = epochs * trainer.num_training_batches if epochs > 0 else math.inf
    by_steps = steps * trainer.accumulate_grad_batches if steps > 0 else math.inf
    return min(by_epochs, by_steps)


def _num_validations(trainer: Trainer, batches: float) -> float:
    """Return the number of validations in `batches` training batches. A validation always follows the last batch."""
    interval = trainer.val_check_batch
    if not interval or math.isinf(interval) or math.isinf(batches) or not trainer.enable_validation:
        return 0
    every_n_epochs = trainer.check_val_every_n_epoch
    if every_n_epochs is None:
        return (batches - 1) // interval + 1
    epochs, rest = divmod(batches - 1, trainer.num_training_batches)
    in_last_epoch = rest // interval if (epochs + 1) % every_n_epochs == 0 else 0
    return epochs // every_n_epochs * (trainer.num_training_batches // interval) + in_last_epoch + 1


def _now(device: torch.device) -> float:
    """Return the time after waiting for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(device: torch.device) -> str:
    """Format the peak memory: of training and validation on a GPU, otherwise of the process."""
    if (peak := peak_memory(device)) is None:
        return "not measured"
    total = f" of {torch.cuda.get_device_properties(device).total_memory / 1e9:.0f}" if device.type == "cuda" else ""
    return f"{peak / 1e9:.1f}{total} GB"
