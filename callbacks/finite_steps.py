"""Stops a diverged run before it writes a checkpoint, and logs the gradient norm."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from engine.private_names import total_norm
from engine.training.exits import Diverged
from engine.training.loggers import log_everywhere

Place = tuple[str, int, int, int]  # name of a checked value, epoch, batch and step


class FiniteSteps(Callback):
    """Checks that the loss of every batch, and the gradient before every optimizer step, are finite.

    On a CPU, training stops before the step. On a GPU, reading a value would make every step wait for the device. Therefore
    the values stay on the device, and are read at each logging interval, and before each validation and checkpoint.

    At each logging interval, the norm of the whole gradient before clipping is logged as `train/gradient_norm`.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[Place, Tensor]] = []  # values on the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lazy = pl_module.device.type != "cpu"
        self._scales_loss = trainer.precision == "16-mixed"  # the gradient scaler skips steps with infinite gradients
        self._unread = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if trainer.world_size == 1 or self._lazy:
            self._check(trainer, loss.detach(), "loss")
        else:
            # Each process has its own loss, but all processes must stop at the same step. If a loss is not finite, the hook
            # sets the gradient to NaN. Gradients are averaged over the processes, so every process gets NaN.
            is_finite = loss.detach().isfinite()
            loss.register_hook(lambda gradient: torch.where(is_finite, gradient, math.nan))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients and not self._scales_loss:  # weight averaging calls this hook without gradients
            norm = total_norm(gradients)
            self._check(trainer, norm, "gradient norm")
            if _is_logging_step(trainer) and trainer.loggers:
                log_everywhere(trainer, {"train/gradient_norm": norm.item()})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._lazy and _is_logging_step(trainer):
            self._read(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read(trainer)
        norm = total_norm([weight for weight in checkpoint["state_dict"].values() if weight.is_floating_point()])
        is_broken = (~norm.isfinite()).float()
        if trainer.world_size > 1:  # a process may have only a part of the weights
            is_broken = trainer.strategy.all_gather(is_broken.to(trainer.strategy.root_device)).amax(0)
        if is_broken > 0:  # for example after the last step
            raise Diverged(f"a weight is not finite after step {trainer.global_step}{_learning_rate(trainer)}")

    def _check(self, trainer: Trainer, value: Tensor, name: str) -> None:
        """Check a value now on a CPU, or store it for `_read` on other devices."""
        place = (name, trainer.current_epoch, trainer.fit_loop.batch_idx, trainer.global_step)
        if self._lazy:
            self._unread.append((place, value))
        elif not math.isfinite(number := float(value)):
            raise Diverged(_message(trainer, place, str(number)))

    def _read(self, trainer: Trainer) -> None:
        """Check the stored values."""
        if not self._unread:
            return
        places, values = zip(*self._unread, strict=True)
        self._unread = []
        is_broken = (~torch.stack([value.float() for value in values]).isfinite()).float()
        if trainer.world_size > 1:  # processes differ in their loss and, if the model is sharded, in their gradients
            is_broken = trainer.strategy.all_gather(is_broken).amax(0)
        if is_broken.any():
            raise Diverged(_message(trainer, places[int(is_broken.argmax())], "not finite"))


def _is_logging_step(trainer: Trainer) -> bool:
    return trainer.global_step % (trainer.log_every_n_steps or 50) == 0  # type: ignore[attr-defined]


def _message(trainer: Trainer, place: Place, value: str) -> str:
    name, epoch, batch, step = place
    return f"the {name} is {value} at epoch {epoch + 1}, batch {batch + 1} (step {step + 1}){_learning_rate(trainer)}"


def _learning_rate(trainer: Trainer) -> str:
    return f", learning rate {trainer.optimizers[0].param_groups[0]['lr']:.3g}"
