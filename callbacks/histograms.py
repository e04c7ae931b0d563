"""How weights and gradients are distributed, for TensorBoard's HISTOGRAMS; on request, because it is a lot to write."""

from typing import Annotated, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.run_logger import RunLogger


class Histograms(Callback):
    """`parameters/NAME` and `parameters/NAME.gradient` of all that is trained, gradients before they are clipped.

    Args:
        every_n_steps: Optimizer steps between two of each.
    """

    def __init__(self, every_n_steps: Annotated[int, ">= 1"] = 200) -> None:
        self.every_n_steps = every_n_steps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        step, logger = trainer.global_step, trainer.logger
        if step % self.every_n_steps or not trainer.is_global_zero or not isinstance(logger, RunLogger):
            return
        with logger.clock.part("logging"):
            for name, one in pl_module.network.named_parameters():  # type: ignore[union-attr]
                if one.requires_grad and one.numel():
                    logger.writer("train").add_histogram(f"parameters/{name}", one.detach().float(), step)
                if one.grad is not None and one.grad.numel():
                    logger.writer("train").add_histogram(f"parameters/{name}.gradient", one.grad.float(), step)
