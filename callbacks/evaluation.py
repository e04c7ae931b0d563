"""What the callbacks share that look at a validation or the test, batch by batch, and then show something of it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.endings import say
from callbacks.run_logger import RunLogger

# B batch, K classes
Stage = Literal["val", "test"]


class EvaluationCallback(Callback):
    """Looks at the test and, from time to time, at a validation; a subclass overrides `begin`, `see`, `gather` and `show`.

    Nothing is looked at where there is no TensorBoard to show it in, or where a step of the model gives no logits. What goes
    wrong here is told, and ends no run; but for what comes before `show` where other processes would wait for this one.

    Args:
        every_seconds: Least time between two validations that are looked at, or a hundred times of what looking at the last
            one took, if that is more; the last one of a run is looked at in any case. 0 for every validation.
    """

    def __init__(self, every_seconds: Annotated[float, ">= 0"] = 10.0) -> None:
        self.every_seconds = every_seconds
        self._stage: Stage | None = None  # that is looked at
        self._seen = False  # any of it
        self._shown = self._took = 0.0

    def begin(self, pl_module: LightningModule) -> None:
        """An evaluation starts."""

    def see(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        """A batch of this process: logits (B, K), labels (B,)."""

    def gather(self) -> Any:
        """It has ended: what all processes have seen. Every process comes here, and may wait for the others."""

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: SummaryWriter, gathered: Any
    ) -> None:
        """Write to TensorBoard, in the first process alone, what `gather` has given."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = trainer.state.fn == TrainerFn.FITTING and isinstance(trainer.logger, RunLogger)
        self._start(trainer, pl_module, "val" if shown and self._is_due(trainer) else None)

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
        begun = time.monotonic()
        with self._told(trainer.world_size > 1):
            self.see(pl_module, batch[0], outputs, batch[1])
            self._seen = True
        self._took += time.monotonic() - begun

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger, stage, self._stage = trainer.logger, self._stage, None
        if stage is None or not self._seen or not isinstance(logger, RunLogger):
            return
        begun = time.monotonic()
        with logger.clock.part("logging"), self._told(trainer.world_size > 1):
            gathered = self.gather()
            if trainer.is_global_zero:
                with self._told():
                    self.show(trainer, pl_module, stage, logger.writer(stage), gathered)
        self._shown = time.monotonic()
        self._took += self._shown - begun

    on_test_end = on_validation_end

    def _start(self, trainer: Trainer, pl_module: LightningModule, stage: Stage | None) -> None:
        self._stage, self._seen = stage if isinstance(trainer.logger, RunLogger) else None, False
        if self._stage is not None:
            self._took = 0.0
            with self._told(trainer.world_size > 1):
                self.begin(pl_module)

    @contextmanager
    def _told(self, together: bool = False) -> Iterator[None]:
        """An error in what is done here costs a picture; where other processes wait for this one, it must end the run."""
        try:
            yield
        except Exception as error:
            if together:
                raise
            self._stage = None
            say(f"{type(self).__name__} shows nothing: {type(error).__name__}: {' '.join(str(error).split())}")

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        pause = max(self.every_seconds, 100 * self._took) if self.every_seconds else 0.0
        due = time.monotonic() - self._shown >= pause or is_last_validation(trainer)
        return bool(trainer.strategy.broadcast(due))  # what is shown may take all processes


def is_last_validation(trainer: Trainer) -> bool:
    """Whether the run's epochs or steps end before another one; early stopping and time limits cannot be foreseen."""
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


def holds_all(trainer: Trainer) -> bool:
    """Whether this process has the whole model: of a sharded one it cannot run a batch without the others."""
    return isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
