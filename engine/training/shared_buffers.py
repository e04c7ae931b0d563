"""Running means of batch normalisation, sent around when they are used and not at every step."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CONSTANTS = ("input_mean", "input_std", "class_weights")  # of a classifier


class SharedBuffers(Callback):
    """Several processes take the first one's buffers when an epoch and when a validation begins; DDP alone takes them before
    every step.

    For a small model that is one more wait of a quarter of a step. No step reads running means, unless a model freezes its
    norms in the midst of an epoch; a network with buffers of another kind is left to DDP.
    """

    def __init__(self) -> None:
        self._on = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if type(trainer.strategy) is DDPStrategy and _only_running_means(pl_module):
            trainer.strategy.model.broadcast_buffers = False  # type: ignore[union-attr]
            self._on = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._share(pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and dataloader_idx == 0:  # not earlier: weight averaging puts its own in place
            self._share(pl_module)

    def _share(self, pl_module: LightningModule) -> None:
        if self._on:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, 0)


def _only_running_means(pl_module: LightningModule) -> bool:
    """Whether all buffers are those of batch normalisation, or constants of a classifier."""
    known = {id(one) for name, one in pl_module.named_buffers(recurse=False) if name in CONSTANTS}
    norms = (one for one in pl_module.modules() if type(one) in NORMS)
    known |= {id(buffer) for norm in norms for buffer in norm.buffers()}
    return all(id(one) in known for one in pl_module.buffers())
