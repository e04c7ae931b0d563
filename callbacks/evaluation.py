"""The base class of callbacks that collect data from all batches of an evaluation, and then log pictures, texts or scalars.

An evaluation is the test, or a validation during training.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, ClassVar, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from engine.config import schema
from engine.contracts import Classifier, one_line
from engine.terminal import print_line
from engine.training.epoch_loop import is_last_batch
from engine.training.loggers import PictureWriter, takes_pictures, tensorboard_of

# B batch, K classes
Stage = Literal["val", "test"]
PAUSE_FACTOR = 100  # a callback takes about 1 % of the training time or less


class EvaluationCallback(Callback):
    """Collects data from the batches of an evaluation, and logs pictures, texts or scalars.

    A subclass overrides `begin`, `update`, `gather` and `show`. They are called in the test, and in validations for which
    `is_due` returns True. They are not called if no logger of the run can show the result. The validation and test steps
    of the model must return logits (B, K), as in `LitClassifier`.

    An error in a callback that every run has (`engine.config.schema.DEFAULT_CALLBACKS`) is printed, and the run continues
    without the picture. An error in any other callback ends the run. With several processes, an error before `show` always
    ends the run, because the other processes would wait for this process.

    Args:
        every_seconds: Minimum time between two validations that are shown. It is at least 100 times the time that the
            callback needs. The last validation of a training is always shown. 0 shows every validation.

    Attributes:
        needs_tensorboard: Whether the result can only be logged to TensorBoard. Otherwise, any logger with a `log_image`
            method can log it.
    """

    choosable: ClassVar[bool] = False  # a base class; a config cannot select it
    needs_tensorboard: ClassVar[bool] = False

    def __init__(self, every_seconds: Annotated[float, ">= 0"] = 10.0) -> None:
        self.every_seconds = every_seconds
        self._stage: Stage | None = None  # stage of the current evaluation; None if it is not shown
        self._has_batches = False
        self._last_shown = 0.0  # time when the last evaluation was shown, or when training started
        self._cost_seconds = 0.0  # time that this callback needed for the last evaluation that was shown

    def begin(self, pl_module: Classifier) -> None:
        """Called before an evaluation."""

    def update(self, pl_module: Classifier, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        """Called with every batch of this process. Shapes: logits (B, K), labels (B,)."""

    def gather(self) -> Any:
        """Called in every process after an evaluation. Returns the result of all processes, and may wait for them."""

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        """Called in the first process with the result of `gather`. Logs pictures, texts or scalars."""

    def is_due(self, trainer: Trainer) -> bool:
        """Whether to show the validation that starts now, because enough time has passed or it is the last validation."""
        pause = max(self.every_seconds, PAUSE_FACTOR * self._cost_seconds) if self.every_seconds else 0.0
        has_paused = time.monotonic() - self._last_shown >= pause
        return bool(trainer.strategy.broadcast(has_paused or is_last_batch(trainer)))  # clocks of processes differ

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_shown = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        is_shown = is_training and self._has_logger(trainer) and self.is_due(trainer)
        self._start(trainer, pl_module, "val" if is_shown else None)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, "test" if self._has_logger(trainer) else None)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._stage is None or not isinstance(outputs, Tensor) or outputs.ndim != 2:
            return
        start = time.monotonic()
        with self._report_errors(others_wait=trainer.world_size > 1):
            self.update(cast(Classifier, pl_module), batch[0], outputs, batch[1])
            self._has_batches = True
        self._cost_seconds += time.monotonic() - start

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage, self._stage = self._stage, None
        if stage is None or not self._has_batches:
            return
        start = time.monotonic()
        tensorboard = tensorboard_of(trainer)
        measured = tensorboard.clock.measure("logging") if tensorboard else nullcontext()
        with measured, self._report_errors(others_wait=trainer.world_size > 1):
            gathered = self.gather()
            if trainer.is_global_zero:
                with self._report_errors():
                    self.show(trainer, cast(Classifier, pl_module), stage, PictureWriter(trainer, stage), gathered)
        self._last_shown = time.monotonic()
        self._cost_seconds += self._last_shown - start

    on_test_end = on_validation_end

    def _start(self, trainer: Trainer, pl_module: LightningModule, stage: Stage | None) -> None:
        self._stage, self._has_batches = stage, False
        if stage is not None:
            self._cost_seconds = 0.0
            with self._report_errors(others_wait=trainer.world_size > 1):
                self.begin(cast(Classifier, pl_module))

    def _has_logger(self, trainer: Trainer) -> bool:
        if self.needs_tensorboard:
            return tensorboard_of(trainer) is not None
        return any(takes_pictures(logger) for logger in trainer.loggers)

    @contextmanager
    def _report_errors(self, others_wait: bool = False) -> Iterator[None]:
        """Print an error instead of raising it.

        An error is raised if other processes wait for this process, or if the user has added the callback to the config.
        """
        try:
            yield
        except Exception as error:
            if others_wait or type(self).__module__.removeprefix("callbacks.") not in schema.DEFAULT_CALLBACKS:
                raise
            self._stage = None
            print_line(f"{type(self).__name__} failed: {type(error).__name__}: {one_line(error)}")


def has_whole_model(trainer: Trainer) -> bool:
    """Whether this process has the whole model. If the model is sharded, all processes must run a batch together."""
    return isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
