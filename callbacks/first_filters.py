"""Draws the weights of the first layer of an image classifier."""

import math
from typing import Annotated, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from callbacks.evaluation import EvaluationCallback, Stage, has_whole_model
from engine.contracts import Classifier
from engine.training.loggers import PictureWriter

# O filters, C channels, H height, W width

SIDE, GAP = 38, 4  # pixels: smallest side of a filter in the picture, space between two filters
COLUMNS = 8


class FirstFilters(EvaluationCallback):
    """Logs `pictures/first_filters`: the weights of the first layer, each filter scaled to its own range.

    Args:
        num_filters: Maximum number of filters.
        options: Options of `EvaluationCallback`.
    """

    def __init__(self, num_filters: Annotated[int, ">= 1"] = 64, **options: Any) -> None:
        super().__init__(**options)
        self.num_filters = num_filters

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        if stage == "test" or not has_whole_model(trainer):
            return  # a validation has usually shown these weights already
        filters = first_filters(pl_module)
        if filters is not None:
            grid = make_grid(filters[: self.num_filters].detach().float().cpu())
            writer.add_image("pictures/first_filters", grid, trainer.global_step)


def first_filters(model: Classifier) -> Tensor | None:
    """Return the weights (O, C, H, W) of the first convolution or linear layer of an image classifier.

    The result is None if the inputs are not images, or if a linear layer gets neither all pixels nor square patches.
    """
    shape = tuple(model.hparams["input_shape"])
    layer = _first_layer(model) if len(shape) == 3 else None
    if layer is None or isinstance(layer, nn.Conv2d):
        return None if layer is None else layer.weight
    if layer.in_features == math.prod(shape):
        return layer.weight.unflatten(1, shape)
    side = math.isqrt(layer.in_features // shape[0])  # side of a patch
    return layer.weight.unflatten(1, (shape[0], side, side)) if shape[0] * side**2 == layer.in_features else None


@torch.no_grad()
def _first_layer(model: Classifier) -> nn.Conv2d | nn.Linear | None:
    """Return the layer that is called first. It can differ from the layer that is defined first."""
    called: list[Any] = []
    layers = [layer for layer in model.network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(lambda layer, _: called.append(layer)) for layer in layers]
    try:
        model.network.forward(model.normalized(torch.zeros(1, *model.hparams["input_shape"], device=model.device)))
    finally:
        for hook in hooks:
            hook.remove()
    return called[0] if called else None


def make_grid(filters: Tensor) -> Tensor:
    """Arrange filters (O, C, H, W) in a picture (3, H', W') with values from 0 to 1. Unless C is 3, average the channels."""
    if filters.shape[1] != 3:
        filters = filters.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = filters.amin((1, 2, 3), keepdim=True), filters.amax((1, 2, 3), keepdim=True)
    filters = (filters - low) / (high - low).clamp(min=1e-12)
    scale = max(1, SIDE // filters.shape[2])
    filters = filters.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    height, width = filters.shape[2:]
    columns = min(COLUMNS, len(filters))
    rows = -(-len(filters) // columns)
    grid = torch.ones(3, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP)
    for i, pixels in enumerate(filters):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        grid[:, top : top + height, left : left + width] = pixels
    return grid
