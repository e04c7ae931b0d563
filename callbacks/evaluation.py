"""What the callbacks share that look at a validation or the test, batch by batch, and then show something of it."""

import time
from typing import Annotated, Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.run_logger import RunLogger

# B batch, K classes
Stage = Literal["val", "test"]


class EvaluationCallback(Callback):
    """Looks at the test and, from time to time, at a validation; a subclass overrides `begin`, `see` and `show`.

    Nothing is looked at where there is no TensorBoard to show it in.

    Args:
        every_seconds: Least time between two validations that are looked at; the last epoch's is in any case.
    """

    def __init__(self, every_seconds: Annotated[float, ">= 0"] = 10.0) -> None:
        self.every_seconds = every_seconds
        self._stage: Stage | None = None  # that is looked at
        self._shown = 0.0

    def begin(self, pl_module: LightningModule) -> None:
        """An evaluation starts."""

    def see(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        """A batch of this process: logits (B, K), labels (B,)."""

    def show(self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: SummaryWriter | None) -> None:
        """It has ended: all processes come here, and the first one has a writer."""

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
        if self._stage is not None:
            self.see(pl_module, batch[0], outputs, batch[1])

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger, stage, self._stage = trainer.logger, self._stage, None
        if stage is not None and isinstance(logger, RunLogger):
            with logger.clock.part("logging"):
                self.show(trainer, pl_module, stage, logger.writer(stage) if trainer.is_global_zero else None)
            self._shown = time.monotonic()

    on_test_end = on_validation_end

    def _start(self, trainer: Trainer, pl_module: LightningModule, stage: Stage | None) -> None:
        self._stage = stage if isinstance(trainer.logger, RunLogger) else None
        if self._stage is not None:
            self.begin(pl_module)

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        last = trainer.current_epoch + 1 == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step
        due = last or time.monotonic() - self._shown >= self.every_seconds
        return bool(trainer.strategy.broadcast(due))  # what is shown may take all processes


def holds_all(trainer: Trainer) -> bool:
    """Whether this process has the whole model: of a sharded one it cannot run a batch without the others."""
    return isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
