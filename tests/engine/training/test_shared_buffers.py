"""Networks whose buffers DDP need not send in every step. `test_processes.py` tests the results."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from engine.training.shared_buffers import SharedBuffers
from lit_models.cnn import LitCNN


class Counting(nn.BatchNorm2d):
    """A user's own normalization, which may read its buffers in training."""


def extra(network: nn.Module) -> None:
    network.register_buffer("centre", torch.zeros(3))


def own_norm(network: nn.Module) -> None:
    network.add_module("norm", Counting(3))


@pytest.mark.parametrize(("change", "each_step"), [(None, False), (extra, True), (own_norm, True)])
def test_only_running_means_are_not_sent_at_every_step(change, each_step):
    model = LitCNN((3, 32, 32), 10)
    if change:
        change(model.network)
    strategy = DDPStrategy()
    strategy.model = SimpleNamespace(broadcast_buffers=True)  # stands for the DDP module
    SharedBuffers().on_fit_start(SimpleNamespace(strategy=strategy), model)
    assert strategy.model.broadcast_buffers is each_step
