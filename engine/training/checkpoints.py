"""The checkpoints of a run: when they are written, and how a run resumes from a checkpoint.

A resumed run is bitwise identical to a run without a stop. `best.ckpt` is the checkpoint with the best validation, and
`last.ckpt` is the one to resume from. `previous.ckpt` is the checkpoint before `last.ckpt`. It is used if `last.ckpt` is
damaged, because a run cannot always be resumed from `best.ckpt`. Lightning's ModelCheckpoint can choose a model whose metric
is NaN as the best, and its `last` is not always the last.
"""

import errno
import math
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.plugins.io import XLACheckpointIO
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from engine.contracts import OptionError, listed
from engine.terminal import print_line
from engine.training import checkpoint_file
from engine.training.clock import Clock
from engine.training.consensus import ProcessConsensus
from engine.training.epoch_loop import epoch_loop_of
from engine.training.exits import REFUSED, RunEnded, Stopped
from engine.training.loggers import log_files, tensorboard_of
from engine.training.signals import Signals
from engine.training.training_state import seed_device

EPOCH_SECONDS = 2.0  # shorter epochs do not each write a checkpoint, because it would take longer than to repeat them
NUM_CHECKPOINTS = 4  # the disk must hold the best, the last, the one before, and a checkpoint that is being written


class VerifiedCheckpoints(XLACheckpointIO):
    """Makes Lightning's Trainer use `checkpoint_file`: atomic writing, checksums, and no loading of pickled code.

    The strategies for TPUs accept only subclasses of `XLACheckpointIO`. Other strategies accept any plugin.
    """

    def __init__(self) -> None:  # that of the base class needs torch_xla
        pass

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        keep_as = path.with_name("previous.ckpt") if path.name == "last.ckpt" else None
        checkpoint_file.write(checkpoint_file.seal(_on_host(checkpoint)), path, keep_as)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return checkpoint_file.read_sealed(Path(path), map_location or (lambda storage, location: storage))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(Callback):
    """Writes `best.ckpt` and `last.ckpt`, stops the run after a signal, and restores the state that Lightning does not save.

    The trainer needs an `EpochLoop`.

    Args:
        folder: Folder of the run.
        signals: The signals that may stop the run.
        clock: Measures the time that checkpoints take.
        monitor: Metric that chooses the best checkpoint.
        mode: Whether its lowest or highest value is best.
        checkpoint_every_steps: Optimizer steps between two checkpoints within an epoch; None for none.
        checkpoint_every_minutes: Minutes between two checkpoints within an epoch; None for none.
        enabled: Whether to write checkpoints.
        timeout_minutes: How long one process waits for another.

    Attributes:
        best: Best value of `monitor` so far; None before the first validation.
        best_loss: Validation loss of the best checkpoint. If the value of `monitor` is equal, the lower loss is better.
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
        self.consensus, self.clock = ProcessConsensus(timeout_minutes), clock
        self.best: float | None = None
        self.best_loss = math.inf
        self._old_logs = set(log_files(folder))  # of earlier processes
        self._saved_at, self._saved_step = -math.inf, -1
        # where training was: at the checkpoint that is restored or written, and when the validation began
        self._restored: dict[str, Any] | None = None
        self._written: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None
        self._has_room = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.consensus.connect(trainer)
        seed_device(trainer.strategy.root_device)
        if isinstance(trainer.precision_plugin, DoublePrecision):
            # Lightning loads the weights first and converts the model later, so 64-bit weights would be rounded to 32 bits
            trainer.precision_plugin.convert_module(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is not None:  # also if nothing is left to train
            if trainer.is_global_zero:
                self._rewind(Path(str(trainer.ckpt_path)))
            self._truncate_logs(trainer, self._restored["log_sizes"], self._restored["step"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check_averaging(trainer)
        self.signals.deferred = True  # before this, a process may wait for others, and a signal must end it at once
        loop = epoch_loop_of(trainer)
        loop.before_batch = partial(self.before_batch, trainer)
        loop.before_validation = partial(self.before_validation, trainer)
        if self._restored is None:
            self._truncate_logs(trainer, {}, 0)
            return
        if trainer.strategy.restore_checkpoint_after_setup:
            self.on_fit_start(trainer, pl_module)  # this strategy loads the checkpoint after `on_fit_start`
        if trainer.is_global_zero:
            print_line(f"resuming in {_place(trainer, trainer.fit_loop.batch_idx + 1)}")
        loop.resume_state = self._restored["processes"][trainer.global_rank]
        self._saved_at, self._saved_step, self._restored = time.monotonic(), trainer.global_step, None

    def before_batch(self, trainer: Trainer, batch_idx: int) -> None:
        """Write a checkpoint if it is due, and stop the run after a signal. `EpochLoop` calls this."""
        if batch_idx % trainer.accumulate_grad_batches:
            return  # a checkpoint does not hold gradients
        signum, is_due = self._requests(trainer, batch_idx)
        if signum or is_due:
            self._save(trainer, "last", self._current_position(trainer))
        if signum:
            raise Stopped(signum, _place(trainer, batch_idx))

    def before_validation(self, trainer: Trainer) -> None:
        """Record where training is, for a checkpoint during or after the validation. `EpochLoop` calls this."""
        with self.clock.measure("checkpoints"):
            self._before_validation = self._current_position(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *__: Any) -> None:
        signum = self.consensus.agree_on_signal(self.signals.received)
        position = self._before_validation
        if signum and (position is None or position["exact"]):
            if position is not None:
                self._save(trainer, "last", position)
            raise Stopped(signum, f"the validation of epoch {trainer.current_epoch + 1}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        position, self._before_validation = self._before_validation, None
        if position is None or trainer.barebones:  # a barebones trainer logs no metrics
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            names = listed(sorted(name for name in metrics if not name.startswith("train/")), most=20)
            raise OptionError(
                f"run.monitor: metric {self.monitor!r} is not logged in validation; logged metrics: {names}"
            )
        value, loss = float(metrics[self.monitor]), float(metrics.get("val/loss", math.nan))
        loss = loss if math.isfinite(loss) else math.inf
        is_better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if math.isfinite(value) and (is_better or (value == self.best and loss < self.best_loss)):
            self.best, self.best_loss = value, loss
            self._save(trainer, "best", position)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "last", self._current_position(trainer) | {"should_stop": True})

    def on_test_batch_start(self, *__: Any) -> None:
        signum = self.consensus.agree_on_signal(self.signals.received)
        if signum:
            raise Stopped(signum, "the test")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_loss = state_dict["best"], state_dict.get("best_loss", math.inf)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._written is not None:
            position = dict(self._written)
            checkpoint["loops"]["fit_loop"] = position.pop("loops")
            checkpoint["position"] = position

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._restored = checkpoint["position"]
            if not self._restored["exact"]:
                raise RunEnded("error: --resume: a run cannot be resumed from this checkpoint; take last.ckpt", REFUSED)
            epoch_loop_of(trainer).validation_due = self._restored["validation_due"]
            self._restored["step"] = checkpoint["global_step"]
            trainer.should_stop = self._restored["should_stop"]  # a trained run only repeats its test
        else:  # with weight averaging, test the averaged weights, which were validated, and not the trained ones
            checkpoint.pop("current_model_state", None)
            # the points of the test are logged at the step of its weights
            trainer.fit_loop.load_state_dict(checkpoint["loops"]["fit_loop"])

    def _requests(self, trainer: Trainer, batch_idx: int) -> tuple[int, bool]:
        """The signal that stops the run before this batch (0 for none), and whether a checkpoint is due."""
        step, is_first = trainer.global_step, batch_idx == 0
        is_due = bool(not is_first and self.every_steps and step % self.every_steps == 0 and step > self._saved_step)
        batch = trainer.fit_loop.total_batch_idx + 1
        if self.consensus.can_skip(batch) and not is_first:
            return 0, is_due  # the same in all processes
        seconds = time.monotonic() - self._saved_at
        if is_first:  # the first checkpoint, before any step, shows that the folder is writable
            is_due = seconds >= EPOCH_SECONDS
        elif self.every_minutes:
            is_due = is_due or seconds >= 60 * self.every_minutes
        return self.consensus.agree_at_batch(batch, self.signals.received, is_due)

    def _current_position(self, trainer: Trainer) -> dict[str, Any]:
        """Where training is: the content of a checkpoint that Lightning does not write."""
        num_batches = trainer.fit_loop.batch_idx + 1
        accumulated = num_batches % trainer.accumulate_grad_batches == 0 or num_batches == trainer.num_training_batches
        averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        ended = 0 <= trainer.max_steps <= trainer.global_step
        return {
            "loops": trainer.fit_loop.state_dict(),
            "process": epoch_loop_of(trainer).process_state(),
            "log_sizes": self._log_sizes(trainer),
            "validation_due": trainer.validating,
            "should_stop": trainer.should_stop,
            # a validation cannot be repeated with half-accumulated gradients, with averaged weights in the place of the
            # trained ones, or if no step is left
            "exact": not trainer.validating or (accumulated and not averages and not ended),
        }

    def _save(self, trainer: Trainer, name: str, position: dict[str, Any]) -> None:
        if self.enabled and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with self.clock.measure("checkpoints"):
                self._write(trainer, name, position)

    def _write(self, trainer: Trainer, name: str, position: dict[str, Any]) -> None:
        process = position.pop("process")
        processes = [process] * trainer.world_size
        if self.consensus.group is not None:
            torch.distributed.all_gather_object(processes, process, self.consensus.group)
        self._written = position | {"processes": processes}
        path = self.folder / f"checkpoints/{name}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self._written = None
        if name == "last":
            self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero and not self._has_room:
            _check_room(path)
            self._has_room = True

    def _log_sizes(self, trainer: Trainer) -> dict[str, int]:
        """The sizes in bytes of the files that loggers append to."""
        for logger in trainer.loggers:
            logger.save()
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in log_files(self.folder)}

    def _rewind(self, checkpoint: Path) -> None:
        """Copy the checkpoint from which the run resumes to `last.ckpt`, before later points are removed from the logs."""
        last, previous = (self.folder / f"checkpoints/{name}.ckpt" for name in ("last", "previous"))
        if checkpoint.resolve() != last.resolve():
            if checkpoint.resolve() != previous.resolve():
                previous.unlink(missing_ok=True)  # the points before this checkpoint may be removed
            checkpoint_file.copy(checkpoint, last)

    def _truncate_logs(self, trainer: Trainer, sizes: dict[str, int], step: int) -> None:
        """Remove the points that were logged after the checkpoint of `step`, because they will be logged again."""
        if not trainer.is_global_zero:
            return
        if self._old_logs and (logger := tensorboard_of(trainer)) is not None:
            logger.restart_at(step)
        for path in self._old_logs:
            size = sizes.get(str(path.relative_to(self.folder)), 0)
            if size == 0:
                path.unlink(missing_ok=True)
            elif path.stat().st_size > size:
                os.truncate(path, size)
        self._old_logs = set()


def _check_averaging(trainer: Trainer) -> None:
    """Raise an error if weight averaging would start too late, because the initial weights would then be tested."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMAWeightAveraging):
            first = math.ceil((callback.update_starting_at_step or 0) / callback.update_every_n_steps)
            step, steps = first * callback.update_every_n_steps, trainer.estimated_stepping_batches
            epoch, epochs = callback.update_starting_at_epoch, trainer.max_epochs or -1
            starts_at_an_epoch = epoch is not None and not 0 <= epochs <= epoch
            if step >= steps and not starts_at_an_epoch:
                key = "callbacks.ema_weight_averaging.update_starting_at_step"
                raise OptionError(
                    f"{key}: averaging would start after step {step}, but the training has only {steps} steps"
                )


def _place(trainer: Trainer, batch_idx: int) -> str:
    """Where training is, for the user."""
    epoch, num_batches = trainer.current_epoch + 1, trainer.num_training_batches
    if batch_idx == num_batches:
        return f"epoch {epoch}, before its validation"
    return f"epoch {epoch}, after {batch_idx} {'' if math.isinf(num_batches) else f'of {num_batches} '}batches"


def _check_room(path: Path) -> None:
    """Raise an error before training if the disk has no room for the checkpoints."""
    size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    if free < (NUM_CHECKPOINTS - 1) * size:
        message = f"a checkpoint has {size / 1e6:.0f} MB, and the disk of {path.parent} has {free / 1e6:.0f} MB left"
        raise OSError(errno.ENOSPC, message)


def _on_host(value: Any) -> Any:
    """A copy of nested data whose XLA tensors are on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu() if value.device.type == "xla" else value
    if isinstance(value, dict):
        return type(value)((name, _on_host(item)) for name, item in value.items())
    return [_on_host(item) for item in value] if isinstance(value, list) else value


def forget_best(trainer: Trainer) -> None:
    """Let the next validation write `best.ckpt`, even if an earlier one was better."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoints):
            callback.best, callback.best_loss = None, math.inf
