"""Logs histograms of weights and gradients to TensorBoard. It is off by default, because histograms are large."""

from typing import Annotated, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from engine.contracts import Classifier
from engine.training.loggers import tensorboard_of


class Histograms(Callback):
    """Logs `parameters/NAME` and `parameters/NAME.gradient` (before clipping) of all trained parameters.

    Args:
        every_n_steps: Number of optimizer steps between two histograms of a parameter.
    """

    def __init__(self, every_n_steps: Annotated[int, ">= 1"] = 200) -> None:
        self.every_n_steps = every_n_steps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        step, logger = trainer.global_step, tensorboard_of(trainer)
        if step % self.every_n_steps or not trainer.is_global_zero or logger is None:
            return
        writer = logger.writer("train")
        with logger.clock.measure("logging"):
            for name, parameter in cast(Classifier, pl_module).network.named_parameters():
                if parameter.requires_grad and _has_histogram(parameter):
                    writer.add_histogram(f"parameters/{name}", parameter.detach().float(), step)
                if parameter.grad is not None and _has_histogram(parameter.grad):
                    writer.add_histogram(f"parameters/{name}.gradient", parameter.grad.float(), step)


def _has_histogram(values: Tensor) -> bool:
    """Whether TensorBoard accepts the values: they must be finite and not empty."""
    return values.numel() > 0 and bool(values.isfinite().all())
