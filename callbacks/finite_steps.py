"""Stops a run that has diverged before it can spoil anything."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.endings import Diverged


class FiniteSteps(Callback):
    """Looks at the loss of every batch and at the gradient before every optimizer step.

    On a CPU the step is not taken. On a GPU, where reading a number back would stall every step, the first bad one is
    remembered there and asked for at each logging interval, validation and checkpoint, before anything is written.
    """

    def __init__(self) -> None:
        self._first_bad: Tensor | None = None  # [step, epoch, batch, 1 if it was the loss], on the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lazy = pl_module.device.type != "cpu"
        self._scaled = trainer.precision == "16-mixed"  # its scaler skips steps of infinite gradients by design
        self._first_bad = torch.full((4,), -1, device=pl_module.device) if self._lazy else None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if trainer.world_size == 1 or self._lazy:
            self._look(trainer, loss.detach(), is_loss=True)
        else:  # every process has a loss of its own, and all must end at one step: they share a gradient made bad by it
            good = loss.detach().isfinite()
            loss.register_hook(lambda gradient: torch.where(good, gradient, math.nan))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients = [one.grad for one in pl_module.parameters() if one.grad is not None]
        if gradients and not self._scaled:  # weight averaging makes an epoch without any
            norms = torch._foreach_norm(gradients)
            self._look(trainer, torch.stack([one.float() for one in norms]).sum(), is_loss=False)

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
        norm = torch.stack([one.float() for one in torch._foreach_norm(weights)]).sum() if weights else torch.zeros(())
        broken = (~norm.isfinite()).float()
        if trainer.world_size > 1:  # the first process may have them all, the others a part
            broken = trainer.strategy.reduce(broken.to(trainer.strategy.root_device), reduce_op="max")
        if broken > 0:  # a last step, after which nothing else is looked at
            raise Diverged(f"a weight is not finite after step {trainer.global_step}{_rate(trainer)}")

    def check(self, trainer: Trainer) -> None:
        """Read back from the device whether all steps so far were good.

        Raises:
            Diverged: if not.
        """
        if self._first_bad is None:
            return
        first_bad = self._first_bad
        if trainer.world_size > 1:  # of a sharded model each process has other gradients
            first_bad = trainer.strategy.reduce(first_bad.clone(), reduce_op="max")
        step, epoch, batch, is_loss = first_bad.tolist()
        if step >= 0:
            raise Diverged(_message(trainer, "loss" if is_loss else "gradient", "not finite", step, epoch, batch))

    def _look(self, trainer: Trainer, value: Tensor, is_loss: bool) -> None:
        step, epoch, batch = trainer.global_step, trainer.current_epoch, trainer.fit_loop.batch_idx
        if self._first_bad is not None:
            here = self._first_bad.new_tensor([step, epoch, batch, int(is_loss)])
            bad = ~torch.isfinite(value) & (self._first_bad[0] < 0)
            self._first_bad = torch.where(bad, here, self._first_bad)
        elif not math.isfinite(number := float(value)):
            name = "loss" if is_loss else "gradient's norm"
            raise Diverged(_message(trainer, name, str(number), step, epoch, batch))


def _message(trainer: Trainer, name: str, value: str, step: int, epoch: int, batch: int) -> str:
    return f"the {name} is {value} at epoch {epoch + 1}, batch {batch + 1} (step {step + 1}){_rate(trainer)}"


def _rate(trainer: Trainer) -> str:
    return f", learning rate {trainer.optimizers[0].param_groups[0]['lr']:.3g}"
