"""``--check``: what is wrong with a run, in seconds, before it takes hours.

It is the run itself, with its config, data, model, precision, optimizer and callbacks, in a folder that is not kept. Before
its first step this says what others have found out about data and model; then it times the first steps, and ends it.
"""

import math
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from engine.checks.data_checks import check_data
from engine.checks.model_checks import check_model
from engine.contracts import CheckResult
from engine.terminal import duration, print_line
from engine.training.exits import REFUSED, Diverged, RunEnded
from engine.training.hardware import peak_memory

SAMPLES, BATCHES = 256, 16  # at most, that the network is tried with
WARM_UP_BATCHES, WARM_UP_SECONDS = 2, 2.0  # whichever is over first; kernels are chosen meanwhile
TIMED_SECONDS, VALIDATION_SECONDS = 2.5, 1.0


class PreflightCheck(Callback):
    """Prints each result as soon as it is known, and ends the run: with exit code 0, or 2 if something is wrong."""

    def __init__(self) -> None:
        self.levels: list[str] = []
        self._begun = self._val_batch_seconds = 0.0
        self._batches = 0
        self._from: tuple[float, int] | None = None  # the time at which timing began, and the batches before
        self._epochs: list[tuple[float, int]] = []  # likewise of each end of an epoch
        self._validating = 0.0  # seconds since timing began

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._print_all(check_data(trainer.datamodule))  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = _training_batches(trainer)
        optimizer = trainer.optimizers[0] if len(trainer.optimizers) == 1 else None
        clip = trainer.gradient_clip_val if trainer.gradient_clip_algorithm != "value" else None
        self._print_all(check_model(pl_module, optimizer, batches, clip))
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        if trainer.limit_val_batches:
            self._val_batch_seconds = _validation_batch_seconds(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *__: Any) -> None:
        now = _now(pl_module.device)
        self._batches += 1
        if self._from is None:
            if self._batches == WARM_UP_BATCHES or now - self._begun > WARM_UP_SECONDS:
                self._from = now, self._batches
                self._validating = 0.0
        elif now - self._from[0] >= TIMED_SECONDS:
            begun, before = self._from
            seconds = (now - begun - self._validating) / (self._batches - before)  # a batch
            validation = self._val_batch_seconds * sum(trainer.num_val_batches)
            if len(self._epochs) > 1:  # whole ones, with all that there is between two
                (begun, before), (now, after) = self._epochs[0], self._epochs[-1]
                seconds, validation = (now - begun) / (after - before), 0.0
            raise self._end(trainer, seconds, validation)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating -= _now(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating += _now(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epochs.append((_now(pl_module.device), self._batches))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All of it took less time than was meant for a part."""
        seconds = duration(_now(pl_module.device) - self._begun)
        self._print("note", "expected", f"{seconds}, which was all of the training; memory {_memory(pl_module.device)}")
        raise self._outcome()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        follows = isinstance(exception, Exception) and "WRONG" in self.levels  # from what has been said
        if follows or isinstance(exception, Diverged):
            self._print("WRONG", "first steps", " ".join(str(exception).split()))
            raise self._outcome() from exception

    def _end(self, trainer: Trainer, seconds: float, validation: float) -> RunEnded:
        """Tell what the run will take, and end.

        Args:
            trainer: Of the run.
            seconds: A batch of training.
            validation: Seconds of one, where a batch does not have its share of them.
        """
        batches = _num_batches(trainer)
        validations = _num_validations(trainer, batches)
        timers = [one.time_remaining() for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
        left = min((one for one in timers if one is not None), default=math.inf)
        if (whole := seconds * batches + validation * validations) < left:
            text = f"about {duration(whole)} for {batches:,.0f} batches of training and {validations:,.0f} validations"
        elif math.isfinite(left):
            text = f"about {duration(left)}, when its time is up, at {duration(seconds)} a batch"
        else:
            text = f"{duration(seconds)} a batch, and no number of them is set"
        self._print("note", "expected", f"{text}; memory {_memory(trainer.strategy.root_device)}")
        return self._outcome()

    def _print_all(self, results: Iterable[CheckResult]) -> None:
        for result in results:
            self._print(*result)

    def _print(self, level: str, title: str, text: str) -> None:
        self.levels.append(level)
        print_line(f"{level:<8} {title:<20} {text}")

    def _outcome(self) -> RunEnded:
        wrong = self.levels.count("WRONG")
        if wrong:
            return RunEnded(f"error: --check: {wrong} of {len(self.levels)} checks are WRONG; fix them first", REFUSED)
        return RunEnded("", 0)


def _training_batches(trainer: Trainer) -> list[Any]:
    """The first batches of an epoch on the run's device, not augmented where that can be left out."""
    loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    if hasattr(loader, "augment"):
        loader.augment = None
    batches: list[Any] = []
    for batch in islice(loader, BATCHES):
        batches.append(trainer.strategy.batch_to_device(batch))
        if sum(len(labels) for _, labels in batches) >= SAMPLES:
            break
    return batches


@torch.inference_mode()
def _validation_batch_seconds(trainer: Trainer) -> float:
    """What a validation batch takes, by as many as there is time for; the first one does not count."""
    module, device, taken = trainer.lightning_module, trainer.strategy.root_device, []
    module.eval()
    ends = time.perf_counter() + VALIDATION_SECONDS
    with trainer.precision_plugin.val_step_context():
        for batch in trainer.datamodule.val_dataloader():  # type: ignore[attr-defined]
            begun = _now(device)
            inputs, _ = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch))
            module(inputs)
            taken.append(_now(device) - begun)
            if time.perf_counter() > ends:
                break
    module.train()
    return sum(taken[1:] or taken) / max(1, len(taken[1:] or taken))


def _num_batches(trainer: Trainer) -> float:
    """Training batches of the whole run; infinite if neither epochs nor steps end it."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps  # -1 for no end
    by_epochs = epochs * trainer.num_training_batches if epochs > 0 else math.inf
    by_steps = steps * trainer.accumulate_grad_batches if steps > 0 else math.inf
    return min(by_epochs, by_steps)


def _num_validations(trainer: Trainer, batches: float) -> float:
    """Among so many training batches."""
    every = trainer.val_check_batch
    if not every or math.isinf(every) or math.isinf(batches) or not trainer.enable_validation:
        return 0
    if trainer.check_val_every_n_epoch is None:
        return batches // every
    an_epoch = trainer.num_training_batches
    return batches / an_epoch * (an_epoch // every) / trainer.check_val_every_n_epoch


def _now(device: torch.device) -> float:
    """The clock, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(device: torch.device) -> str:
    """The most that was in use: of a GPU in training and validation, else of the process so far."""
    if (most := peak_memory(device)) is None:
        return "not measured"
    total = f" of {torch.cuda.get_device_properties(device).total_memory / 1e9:.0f}" if device.type == "cuda" else ""
    return f"{most / 1e9:.1f}{total} GB"
