"""Which checkpoints a run keeps, when it writes them, and how it goes on from one, to the bit.

`best.ckpt` is the best of the validations, `last.ckpt` where to go on. Lightning's ModelCheckpoint keeps a model of NaN for
the best, and its `last` is not the last.
"""

import errno
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.agreement import Agreement
from callbacks.clock import Clock
from callbacks.endings import REFUSED, RunEnded, Stopped, say
from callbacks.epoch_loop import EpochLoop, progress, restore_volatile_state, volatile_state
from callbacks.run_logger import RunLogger, event_files
from callbacks.signals import Signals

EPOCH_SECONDS = 2.0  # epochs shorter than this do not each write a checkpoint: that would cost more than repeating them
LEAST_FREE = 3  # checkpoints that must find room: the best, the last, and one that is being written


class Checkpoints(Callback):
    """Writes `best.ckpt` and `last.ckpt`, stops when a signal asks for it, restores what Lightning does not.

    Args:
        folder: Of the run.
        signals: That may ask to stop.
        clock: That counts what checkpoints take.
        monitor: Metric that the best checkpoint is chosen by.
        mode: Whether less of it is better.
        checkpoint_every_steps: Optimizer steps between two checkpoints within an epoch; null for none.
        checkpoint_every_minutes: Likewise, by the clock.
        enabled: Write checkpoints at all.
        timeout_minutes: Of several processes' agreements.
    """

    def __init__(
        self,
        folder: Path,
        signals: Signals,
        clock: Clock,
        monitor: str,
        mode: Literal["min", "max"],
        checkpoint_every_steps: int | None = None,
        checkpoint_every_minutes: float | None = None,
        enabled: bool = True,
        timeout_minutes: float = 10.0,
    ) -> None:
        self.folder, self.signals, self.monitor, self.mode, self.enabled = folder, signals, monitor, mode, enabled
        self.every_steps, self.every_minutes = checkpoint_every_steps, checkpoint_every_minutes
        self.agreement, self.clock = Agreement(timeout_minutes), clock
        self.best: float | None = None
        self._old_events = set(event_files(folder))
        self._saved_at, self._saved_step = -math.inf, -1
        self._restored: dict[str, Any] | None = None
        self._position: dict[str, Any] | None = None  # of the checkpoint that is being written
        self._before_validation: dict[str, Any] | None = None
        self._has_room = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.agreement.connect(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is not None:  # also where nothing is left to train
            self._cut_events(trainer, self._restored["events"], self._restored["step"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.deferred = True  # before, a process may be waiting for others, and must be able to end
        if self._restored is None:
            self._cut_events(trainer, {}, 0)
            return
        if trainer.is_global_zero:
            say(f"going on in {_place(trainer, trainer.fit_loop.batch_idx + 1)}")
        restore_volatile_state(trainer, self._restored["processes"][trainer.global_rank])
        self._saved_at, self._saved_step, self._restored = time.monotonic(), trainer.global_step, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:  # gradients that are not whole are in no checkpoint
            signum, due = self._wanted(trainer, batch_idx)
            if signum or due:
                self._save(trainer, "last", self._here(trainer))
            if signum:
                raise Stopped(signum, _place(trainer, batch_idx))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        self._before_validation = self._here(trainer) if training else None

    def on_validation_batch_start(self, trainer: Trainer, *__: Any) -> None:
        signum = self.agreement.now(self.signals.received)
        position = self._before_validation
        if signum and (position is None or position["exact"]):
            if position is not None:
                self._save(trainer, "last", position)
            raise Stopped(signum, f"the validation of epoch {trainer.current_epoch + 1}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        position, self._before_validation = self._before_validation, None
        if position is not None and self.monitor in trainer.callback_metrics:
            value = float(trainer.callback_metrics[self.monitor])
            better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
            if math.isfinite(value) and better:
                self.best = value
                self._save(trainer, "best", position)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "last", self._here(trainer) | {"should_stop": True})

    def on_test_batch_start(self, *__: Any) -> None:
        signum = self.agreement.now(self.signals.received)
        if signum:
            raise Stopped(signum, "the test")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._position is not None:
            position = dict(self._position)
            checkpoint["loops"]["fit_loop"] = position.pop("loops")
            checkpoint["position"] = position

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._restored = checkpoint["position"]
            if not self._restored["exact"]:
                raise RunEnded("error: --resume: this checkpoint is not one to go on from; take last.ckpt", REFUSED)
            loop = trainer.fit_loop.epoch_loop
            assert isinstance(loop, EpochLoop)
            loop.validation_due = self._restored["validation_due"]
            self._restored["step"] = checkpoint["global_step"]
            trainer.should_stop = self._restored["should_stop"]  # at the end `fit` then restores, and trains nothing
        else:  # Lightning would put the trained weights in the place of the averaged ones, whose validation was the best
            checkpoint.pop("current_model_state", None)

    def _wanted(self, trainer: Trainer, batch_idx: int) -> tuple[int, bool]:
        """The signal to obey before this batch, and whether a checkpoint is due."""
        step, begins = trainer.global_step, batch_idx == 0
        due = bool(not begins and self.every_steps and step % self.every_steps == 0 and step > self._saved_step)
        batch = trainer.fit_loop.total_batch_idx
        if self.agreement.postponed(batch) and not begins:
            return 0, due  # which all processes know without asking
        seconds = time.monotonic() - self._saved_at
        if begins:  # the first one, before any step, shows that the folder can be written to
            due = seconds >= EPOCH_SECONDS
        elif self.every_minutes:
            due = due or seconds >= 60 * self.every_minutes
        return self.agreement.at_batch(batch, self.signals.received, due)

    def _here(self, trainer: Trainer) -> dict[str, Any]:
        loops = progress(trainer)
        done = loops["epoch_loop.batch_progress"]["current"]["completed"]
        whole = done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches
        averaging = any(isinstance(one, WeightAveraging) for one in trainer.callbacks)  # type: ignore[attr-defined]
        ended = 0 <= trainer.max_steps <= trainer.global_step
        return {
            "loops": loops,
            "process": volatile_state(trainer),
            "events": self._event_sizes(trainer),
            "validation_due": trainer.validating,
            "should_stop": trainer.should_stop,
            # a validation cannot be gone back to with half a window of gradients, with averaged weights in the place of the
            # trained ones, or when no step is left
            "exact": not trainer.validating or (whole and not averaging and not ended),
        }

    def _save(self, trainer: Trainer, name: str, position: dict[str, Any]) -> None:
        if self.enabled and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with self.clock.part("checkpoints"):
                self._write(trainer, name, position)

    def _write(self, trainer: Trainer, name: str, position: dict[str, Any]) -> None:
        process = position.pop("process")
        processes = [process] * trainer.world_size
        if self.agreement.group is not None:
            torch.distributed.all_gather_object(processes, process, self.agreement.group)
        self._position = position | {"processes": processes}
        path = self.folder / f"checkpoints/{name}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self._position = None
        if name == "last":
            self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero and not self._has_room:
            _check_room(path)
            self._has_room = True

    def _event_sizes(self, trainer: Trainer) -> dict[str, int]:
        """How far TensorBoard's files have come."""
        for logger in trainer.loggers:
            logger.save()
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in event_files(self.folder)}

    def _cut_events(self, trainer: Trainer, sizes: dict[str, int], step: int) -> None:
        """Take back what was logged after the checkpoint of `step`, which will be logged again."""
        if not trainer.is_global_zero:
            return
        if self._old_events and isinstance(trainer.logger, RunLogger):
            trainer.logger.start_again(step)
        for path in self._old_events:
            size = sizes.get(str(path.relative_to(self.folder)), 0)
            if size == 0:
                path.unlink(missing_ok=True)
            elif path.stat().st_size > size:
                os.truncate(path, size)
        self._old_events = set()


def _place(trainer: Trainer, batch_idx: int) -> str:
    if batch_idx == trainer.num_training_batches:
        return f"epoch {trainer.current_epoch + 1}, before its validation"
    return f"epoch {trainer.current_epoch + 1}, after {batch_idx} of {trainer.num_training_batches} batches"


def _check_room(path: Path) -> None:
    """Refuse to train for hours on a disk that has no room for the result."""
    size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    if free < (LEAST_FREE - 1) * size:
        message = f"a checkpoint has {size / 1e6:.0f} MB, and the disk of {path.parent} has {free / 1e6:.0f} MB left"
        raise OSError(errno.ENOSPC, message)
