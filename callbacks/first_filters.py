"""What the first layer looks for in an image, as a picture in TensorBoard."""

import math
from typing import Annotated, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from callbacks.evaluation import EvaluationCallback, Stage, has_whole_model
from engine.training.loggers import PictureWriter

# O filters, C channels, H, W

SIDE, GAP, COLUMNS = 38, 4, 8  # pixels: of a filter at most, if it is smaller, and between two; filters in a row


class FirstFilters(EvaluationCallback):
    """`pictures/first_filters` under IMAGES: the weights of the first layer that sees an image, each in a range of its own.

    Args:
        num_filters: At most.
        options: Those of `EvaluationCallback`.
    """

    def __init__(self, num_filters: Annotated[int, ">= 1"] = 64, **options: Any) -> None:
        super().__init__(**options)
        self.num_filters = num_filters

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: PictureWriter, gathered: Any
    ) -> None:
        if stage == "test" or not has_whole_model(trainer):
            return  # the test's weights have been shown by a validation, if they are the last ones
        filters = first_filters(pl_module)
        if filters is not None:
            page = grid(filters[: self.num_filters].detach().float().cpu())
            writer.add_image("pictures/first_filters", page, trainer.global_step)


def first_filters(module: LightningModule) -> Tensor | None:
    """Weights (O, C, H, W) of the first convolution, or linear layer over all pixels or over square patches; null where
    inputs are no images or the first layer is another."""
    shape = tuple(module.hparams["input_shape"])
    first = _first_layer(module) if len(shape) == 3 else None
    if isinstance(first, nn.Conv2d):
        return first.weight
    if first is None or first.in_features == math.prod(shape):
        return None if first is None else first.weight.unflatten(1, shape)
    side = math.isqrt(first.in_features // shape[0])
    return first.weight.unflatten(1, (shape[0], side, side)) if shape[0] * side**2 == first.in_features else None


@torch.no_grad()
def _first_layer(module: Any) -> nn.Conv2d | nn.Linear | None:
    """That a sample comes to: the order in which layers are defined says nothing."""
    called: list[Any] = []
    layers = [one for one in module.network.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    hooks = [one.register_forward_pre_hook(lambda layer, _: called.append(layer)) for one in layers]
    try:
        module.network.forward(module.normalized(torch.zeros(1, *module.hparams["input_shape"], device=module.device)))
    finally:
        for hook in hooks:
            hook.remove()
    return called[0] if called else None


def grid(filters: Tensor) -> Tensor:
    """A picture (3, H, W) in 0 to 1 of filters (O, C, H, W): in colour if C is 3, else the mean over channels in grey."""
    if filters.shape[1] != 3:
        filters = filters.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = filters.amin((1, 2, 3), keepdim=True), filters.amax((1, 2, 3), keepdim=True)
    filters = (filters - low) / (high - low).clamp(min=1e-12)
    scale = max(1, SIDE // filters.shape[2])
    filters = filters.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    height, width = filters.shape[2] + GAP, filters.shape[3] + GAP
    columns = min(COLUMNS, len(filters))
    page = torch.ones(3, -(-len(filters) // columns) * height + GAP, columns * width + GAP)
    for i, one in enumerate(filters):
        top, left = GAP + i // columns * height, GAP + i % columns * width
        page[:, top : top + one.shape[1], left : left + one.shape[2]] = one
    return page
