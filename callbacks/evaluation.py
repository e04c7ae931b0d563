"""The base of callbacks that look at a validation or the test, batch by batch, and then write something about it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from engine.terminal import print_line
from engine.training.loggers import PictureWriter, RunLogger, takes_pictures

# B batch, K classes
Stage = Literal["val", "test"]


class EvaluationCallback(Callback):
    """Looks at the test and, from time to time, at a validation. A subclass overrides `begin`, `update`, `gather`, `show`.

    It does nothing if no logger of the run takes pictures, or if the model's evaluation step returns no logits. An error here
    is printed and costs one picture. Only if other processes would wait for this one, an error ends the run.

    Args:
        every_seconds: Shortest time between two validations that are looked at. If looking at one takes long, it is a hundred
            times that. The last validation of a run always counts. 0 looks at every validation.
    """

    choosable: ClassVar[bool] = False  # a base class, which no config can name

    def __init__(self, every_seconds: Annotated[float, ">= 0"] = 10.0) -> None:
        self.every_seconds = every_seconds
        self._stage: Stage | None = None  # the evaluation that is looked at
        self._has_batches = False
        self._last_shown = self._seconds = 0.0

    def begin(self, pl_module: LightningModule) -> None:
        """Called before an evaluation."""

    def update(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        """Called with every batch of this process: logits (B, K), labels (B,)."""

    def gather(self) -> Any:
        """Called after an evaluation in every process. Returns the result of all processes, and may wait for them."""

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: PictureWriter, gathered: Any
    ) -> None:
        """Called in the first process with the result of `gather`. Writes pictures, texts or scalars."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_shown = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_training = trainer.state.fn == TrainerFn.FITTING and _takes_pictures(trainer)
        self._start(trainer, pl_module, "val" if is_training and self._is_due(trainer) else None)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, "test")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._stage is None or not isinstance(outputs, Tensor):
            return
        start = time.monotonic()
        with self._report_errors(trainer.world_size > 1):
            self.update(pl_module, batch[0], outputs, batch[1])
            self._has_batches = True
        self._seconds += time.monotonic() - start

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage, self._stage = self._stage, None
        if stage is None or not self._has_batches:
            return
        start = time.monotonic()
        with _logging_time(trainer), self._report_errors(trainer.world_size > 1):
            gathered = self.gather()
            if trainer.is_global_zero:
                with self._report_errors():
                    self.show(trainer, pl_module, stage, PictureWriter(trainer, stage), gathered)
        self._last_shown = time.monotonic()
        self._seconds += self._last_shown - start

    on_test_end = on_validation_end

    def _start(self, trainer: Trainer, pl_module: LightningModule, stage: Stage | None) -> None:
        self._stage, self._has_batches = stage if _takes_pictures(trainer) else None, False
        if self._stage is not None:
            self._seconds = 0.0
            with self._report_errors(trainer.world_size > 1):
                self.begin(pl_module)

    @contextmanager
    def _report_errors(self, others_wait: bool = False) -> Iterator[None]:
        """Print an error instead of raising it, unless other processes wait for this one."""
        try:
            yield
        except Exception as error:
            if others_wait:
                raise
            self._stage = None
            print_line(f"{type(self).__name__} failed: {type(error).__name__}: {' '.join(str(error).split())}")

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        pause = max(self.every_seconds, 100 * self._seconds) if self.every_seconds else 0.0
        due = time.monotonic() - self._last_shown >= pause or is_last_validation(trainer)
        return bool(trainer.strategy.broadcast(due))  # all processes must agree


def is_last_validation(trainer: Trainer) -> bool:
    """Whether the epochs or steps of the run end before another validation. Early stopping and time limits are not known."""
    epoch, batches = trainer.current_epoch, trainer.num_training_batches
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if every is None or math.isinf(batches):
        return False
    done = trainer.fit_loop.batch_idx + 1
    following = epoch * batches + done + every  # batches of the run before the next validation
    if epochs is not None and done + every > batches:
        following = (epoch + epochs) * batches + every
    accumulated = trainer.accumulate_grad_batches
    steps = following // batches * math.ceil(batches / accumulated) + following % batches // accumulated
    return 0 < (trainer.max_epochs or -1) * batches < following or 0 < trainer.max_steps < steps


def has_whole_model(trainer: Trainer) -> bool:
    """Whether this process has the whole model. With a sharded model it cannot run a batch without the other processes."""
    return isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)


def _takes_pictures(trainer: Trainer) -> bool:
    return any(takes_pictures(logger) for logger in trainer.loggers)


@contextmanager
def _logging_time(trainer: Trainer) -> Iterator[None]:
    """Count the time of the block as logging."""
    clocks = [logger.clock for logger in trainer.loggers if isinstance(logger, RunLogger)]
    if not clocks:
        yield
        return
    with clocks[0].measure("logging"):
        yield
