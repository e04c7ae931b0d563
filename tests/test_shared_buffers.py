"""Which networks need no buffers from the first process at every step; `test_processes.py` has what comes of it."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from callbacks.shared_buffers import SharedBuffers
from lit_models.cnn import LitCNN


class Counting(nn.BatchNorm2d):
    """A norm of somebody's own, which may read its buffers in training."""


def extra(network: nn.Module) -> None:
    network.register_buffer("centre", torch.zeros(3))


def own_norm(network: nn.Module) -> None:
    network.add_module("norm", Counting(3))


@pytest.mark.parametrize(("change", "shared"), [(None, False), (extra, None), (own_norm, None)])
def test_only_running_means_are_not_sent_at_every_step(change, shared):
    model = LitCNN((3, 32, 32), 10)
    if change:
        change(model.network)
    strategy = DDPStrategy()
    trainer = Trainer(strategy=strategy, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    SharedBuffers().setup(trainer, model, "fit")
    assert strategy._ddp_kwargs.get("broadcast_buffers") is shared
