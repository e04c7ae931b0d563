"""Sends the running means of batch normalization to all processes when they are used, not in every step."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CONSTANTS = ("input_mean", "input_std", "class_weights", "temperature")  # buffers of a classifier that never change


class SharedBuffers(Callback):
    """Copies the buffers of the first process to the others before an epoch and before a validation.

    DistributedDataParallel (DDP) copies them before every step, which takes a quarter of the step of a small model. In
    training no step reads running means, unless a model switches its normalization to evaluation mode within an epoch.
    If a network has other buffers, DDP copies them all as usual.
    """

    def __init__(self) -> None:
        self._is_active = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if type(trainer.strategy) is DDPStrategy and _has_only_running_means(pl_module):
            trainer.strategy.model.broadcast_buffers = False  # type: ignore[union-attr]
            self._is_active = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._broadcast(pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if (
            batch_idx == 0 and dataloader_idx == 0
        ):  # not in `on_validation_start`, where weight averaging swaps the weights
            self._broadcast(pl_module)

    def _broadcast(self, pl_module: LightningModule) -> None:
        if self._is_active:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, 0)


def _has_only_running_means(pl_module: LightningModule) -> bool:
    """Whether all buffers belong to batch normalization or are constants of a classifier."""
    known = {id(buffer) for name, buffer in pl_module.named_buffers(recurse=False) if name in CONSTANTS}
    norms = [module for module in pl_module.modules() if type(module) in NORMS]
    known |= {id(buffer) for norm in norms for buffer in norm.buffers()}
    return all(id(buffer) in known for buffer in pl_module.buffers())
