"""Stops a run that has diverged before it can spoil anything, and shows how long its gradients are."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from engine.private_names import total_norm
from engine.training.exits import Diverged
from engine.training.loggers import log_everywhere

Place = tuple[str, int, int, int]  # what was looked at, its epoch, batch and step


class FiniteSteps(Callback):
    """Looks at the loss of every batch and at the gradient before every optimizer step.

    On a CPU the step is not taken. On a GPU, where reading a number back would stall every step, the numbers stay there and
    are asked for at each logging interval, validation and checkpoint, before anything is written. At the logging intervals
    `train/gradient_norm` is the length of the whole gradient, before it is clipped.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[Place, Tensor]] = []  # on the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lazy = pl_module.device.type != "cpu"
        self._scaled = trainer.precision == "16-mixed"  # its scaler skips steps of infinite gradients by design
        self._unread = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if trainer.world_size == 1 or self._lazy:
            self._look(trainer, loss.detach(), is_loss=True)
        else:  # every process has a loss of its own, and all must end at one step: they share a gradient made bad by it
            good = loss.detach().isfinite()
            loss.register_hook(lambda gradient: torch.where(good, gradient, math.nan))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        parameters = (one for group in optimizer.param_groups for one in group["params"])
        gradients = [one.grad for one in parameters if one.grad is not None]
        if gradients and not self._scaled:  # weight averaging makes an epoch without any
            norm = total_norm(gradients)
            self._look(trainer, norm, is_loss=False)
            if trainer.global_step % (trainer.log_every_n_steps or 50) == 0 and trainer.loggers:  # type: ignore[attr-defined]
                log_everywhere(trainer, {"train/gradient_norm": norm.item()})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._lazy and trainer.global_step % (trainer.log_every_n_steps or 50) == 0:  # type: ignore[attr-defined]
            self.check(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check(trainer)
        weights = [one for one in checkpoint["state_dict"].values() if one.is_floating_point()]
        norm = total_norm(weights)
        broken = (~norm.isfinite()).float()
        if trainer.world_size > 1:  # the first process may have them all, the others a part
            broken = trainer.strategy.all_gather(broken.to(trainer.strategy.root_device)).amax(0)
        if broken > 0:  # a last step, after which nothing else is looked at
            raise Diverged(f"a weight is not finite after step {trainer.global_step}{_rate(trainer)}")

    def check(self, trainer: Trainer) -> None:
        """Read back from the device whether all steps so far were good.

        Raises:
            Diverged: if not.
        """
        if not self._unread:
            return
        places, values = zip(*self._unread, strict=True)
        self._unread = []
        bad = (~torch.stack([one.float() for one in values]).isfinite()).float()
        if trainer.world_size > 1:  # losses differ, and of a sharded model the gradients, too
            bad = trainer.strategy.all_gather(bad).amax(0)
        if bad.any():
            raise Diverged(_message(trainer, places[int(bad.argmax())], "not finite"))

    def _look(self, trainer: Trainer, value: Tensor, is_loss: bool) -> None:
        name = "loss" if is_loss else "gradient's norm"
        place = (name, trainer.current_epoch, trainer.fit_loop.batch_idx, trainer.global_step)
        if self._lazy:
            self._unread.append((place, value))
        elif not math.isfinite(number := float(value)):
            raise Diverged(_message(trainer, place, str(number)))


def _message(trainer: Trainer, place: Place, value: str) -> str:
    name, epoch, batch, step = place
    return f"the {name} is {value} at epoch {epoch + 1}, batch {batch + 1} (step {step + 1}){_rate(trainer)}"


def _rate(trainer: Trainer) -> str:
    return f", learning rate {trainer.optimizers[0].param_groups[0]['lr']:.3g}"
