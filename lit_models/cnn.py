"""A small convolutional network for small images.

Stages of 3x3 convolutions; each stage halves the image right after its first convolution, so that the others cost a
quarter (the order of Jordan's airbench, https://arxiv.org/abs/2404.00498). Images are laid out channels-last: on CPUs and
on GPUs with tensor cores convolutions are up to twice as fast.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lit_models.classifier import LitClassifier

# B batch, C channels, H height, W width, K classes


class ConvBlock(nn.Module):
    """Convolution, optional halving, batch normalisation, GELU; with `residual`, the input is added."""

    def __init__(self, in_channels: int, out_channels: int, halve: bool = False, residual: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2) if halve else nn.Identity()
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.GELU()
        self.residual = residual

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.activation(self.norm(self.pool(self.conv(inputs))))
        return inputs + outputs if self.residual else outputs


class CNN(nn.Module):
    """Stages of convolutions, the maximum over the image, a linear layer.

    Args:
        in_channels: C.
        num_classes: K.
        widths: Channels of each stage; each halves the image.
        convs_per_stage: Convolutions in a stage.
        residual: Add a block's input to its output, from the second convolution of a stage on.
        dropout: Probability of dropping a channel before the linear layer.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int],
        convs_per_stage: int,
        residual: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for width in widths:
            blocks.append(ConvBlock(in_channels, width, halve=True))
            blocks += [ConvBlock(width, width, residual=residual) for _ in range(convs_per_stage - 1)]
            in_channels = width
        self.stages = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(in_channels, num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(images.contiguous(memory_format=torch.channels_last))  # (B, widths[-1], H', W')
        return self.head(self.dropout(features.amax(dim=(2, 3))))  # (B, K)


class LitCNN(LitClassifier):
    """Convolutional network on images.

    Args:
        widths: Channels of each stage; each stage halves the image.
        convs_per_stage: 3x3 convolutions in a stage.
        residual: Add a block's input to its output, from the second convolution of a stage on.
        dropout: Probability of dropping a channel before the last layer.
        options: Those of `LitClassifier`.
    """

    accepts = ("image",)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        widths: Annotated[Sequence[int], ">= 1"] = (32, 64, 128),
        convs_per_stage: Annotated[int, ">= 1"] = 2,
        residual: bool = False,
        dropout: Annotated[float, ">= 0, < 1"] = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(input_shape, num_classes, **options)
        channels, height, width = input_shape
        if not widths or min(height, width) < 2 ** len(widths):
            most = min(height, width).bit_length() - 1
            raise ValueError(
                f"model.widths: {len(widths)} stages for images of {height}x{width}; each halves the image: give 1 to {most}"
            )
        self.network = CNN(channels, num_classes, widths, convs_per_stage, residual, dropout)
