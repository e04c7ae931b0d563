"""How weights and gradients are distributed, for TensorBoard's HISTOGRAMS; on request, because it is a lot to write."""

from typing import Annotated, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from engine.training.loggers import tensorboard_of


class Histograms(Callback):
    """`parameters/NAME` and `parameters/NAME.gradient` of all that is trained, gradients before they are clipped.

    Args:
        every_n_steps: Optimizer steps between two of each.
    """

    def __init__(self, every_n_steps: Annotated[int, ">= 1"] = 200) -> None:
        self.every_n_steps = every_n_steps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        step, logger = trainer.global_step, tensorboard_of(trainer)
        if step % self.every_n_steps or not trainer.is_global_zero or logger is None:
            return
        with logger.clock.measure("logging"):
            for name, one in pl_module.network.named_parameters():  # type: ignore[union-attr]
                if one.requires_grad and _is_shown(one):
                    logger.writer("train").add_histogram(f"parameters/{name}", one.detach().float(), step)
                if one.grad is not None and _is_shown(one.grad):
                    logger.writer("train").add_histogram(f"parameters/{name}.gradient", one.grad.float(), step)


def _is_shown(values: Tensor) -> bool:
    """TensorBoard refuses what is empty or not finite."""
    return bool(values.numel()) and bool(values.isfinite().all())
