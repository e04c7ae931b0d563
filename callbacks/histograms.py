"""The distributions of weights and gradients, for TensorBoard's HISTOGRAMS. Off by default, because they are large."""

from typing import Annotated, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from engine.contracts import Classifier
from engine.training.loggers import tensorboard_of


class Histograms(Callback):
    """`parameters/NAME` and `parameters/NAME.gradient` of all trained parameters, with gradients before clipping.

    Args:
        every_n_steps: Optimizer steps between two histograms of a parameter.
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
    """TensorBoard refuses tensors that are empty or not finite."""
    return values.numel() > 0 and bool(values.isfinite().all())
