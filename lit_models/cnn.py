"""A small convolutional network for small images.

Stages of 3x3 convolutions; each stage halves the image right after its first convolution, so that the others cost a
quarter (the order of Jordan's airbench, https://arxiv.org/abs/2404.00498, which is also the source of whitening, of the
initialisation and of the scaled logits). Images are laid out channels-last: on CPUs and on GPUs with tensor cores
convolutions are up to twice as fast.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.contracts import OptionError
from lit_models.classifier import LitClassifier

# B batch, C channels, H height, W width, K classes, F values of a patch

WHITENING_SIZE, WHITENING_PATCHES = 2, 5_000_000  # side of its patches, and how many are measured, or some more
WHITENING_CHUNK = 2**20  # patches in memory at a time
LEAST_VARIANCE = 5e-4  # added to that of a principal component: the faint ones are noise


class Whitening(nn.Conv2d):
    """A fixed convolution onto the principal components of the training patches, each scaled to variance 1, and their
    negatives, for the activation after it; a bias is trained."""

    def __init__(self, in_channels: int) -> None:
        components = in_channels * WHITENING_SIZE**2
        super().__init__(in_channels, 2 * components, WHITENING_SIZE)
        self.weight.requires_grad_(False)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Take the components from images (N, C, H, W) that are normalised."""
        size, count = WHITENING_SIZE, 0
        products = torch.zeros(self.weight[0].numel(), self.weight[0].numel(), dtype=torch.float64)
        for some in images.split(max(1, WHITENING_CHUNK // images[0, 0].numel())):
            patches = some.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
            products += patches.double().T @ patches.double()  # (F, F), of (N * H' * W', F)
            count += len(patches)
        variances, components = torch.linalg.eigh(products / count)  # (F,), (F, F)
        filters = (components / (variances + LEAST_VARIANCE).sqrt()).T.view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))


class ConvBlock(nn.Module):
    """Convolution, optional halving, batch normalisation, GELU.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        halve: Keep the largest of every 2x2.
        residual: Add the input.
        dirac: Start as the identity for as many channels as there are in both.
        norm_momentum: Share of a batch in the running mean and variance.
        norm_scale: Train the scale of the normalisation; its shift is trained in any case.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        halve: bool = False,
        residual: bool = False,
        dirac: bool = False,
        norm_momentum: float = 0.1,
        norm_scale: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        if dirac:
            nn.init.dirac_(self.conv.weight.data[:in_channels])
        self.pool = nn.MaxPool2d(2) if halve else nn.Identity()
        self.norm = nn.BatchNorm2d(out_channels, momentum=norm_momentum)
        self.norm.weight.requires_grad_(norm_scale)
        self.activation = nn.GELU()
        self.residual = residual

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.activation(self.norm(self.pool(self.conv(inputs))))
        return inputs + outputs if self.residual else outputs


class CNN(nn.Module):
    """Whitening if wanted, stages of convolutions, the maximum over the image, a linear layer.

    Args:
        in_channels: C.
        num_classes: K.
        widths: Channels of each stage; each halves the image.
        convs_per_stage: Convolutions in a stage.
        residual: Add a block's input to its output, from the second convolution of a stage on.
        dropout: Probability of dropping a channel before the linear layer.
        whitening: Begin with `Whitening`.
        logit_scale: The logits are multiplied by it.
        block: More options of every `ConvBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int],
        convs_per_stage: int,
        residual: bool,
        dropout: float,
        whitening: bool,
        logit_scale: float,
        **block: Any,
    ) -> None:
        super().__init__()
        self.whitening = Whitening(in_channels) if whitening else None
        in_channels = self.whitening.out_channels if self.whitening else in_channels
        blocks: list[nn.Module] = []
        for width in widths:
            blocks.append(ConvBlock(in_channels, width, halve=True, **block))
            blocks += [ConvBlock(width, width, residual=residual, **block) for _ in range(convs_per_stage - 1)]
            in_channels = width
        self.stages = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(in_channels, num_classes)
        self.logit_scale = logit_scale
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        if self.whitening is not None:
            images = F.gelu(self.whitening(images))  # (B, 2 F, H - 1, W - 1)
        features = self.stages(images)  # (B, widths[-1], H', W')
        return self.head(self.dropout(features.amax(dim=(2, 3)))) * self.logit_scale  # (B, K)


class LitCNN(LitClassifier):
    """Convolutional network on images.

    Args:
        widths: Channels of each stage; each stage halves the image.
        convs_per_stage: 3x3 convolutions in a stage.
        residual: Add a block's input to its output, from the second convolution of a stage on.
        dropout: Probability of dropping a channel before the last layer.
        whitening: Begin with a fixed 2x2 convolution onto the principal components of the training patches.
        dirac: Start convolutions as the identity.
        norm_momentum: Share of a batch in the running mean and variance of batch normalisation.
        norm_scale: Train the scale of batch normalisation; without it, and with `optimizer.normalize`, rates mean the same
            for every layer.
        logit_scale: The logits are multiplied by it; below 1 the last layer trains faster.
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
        whitening: bool = False,
        dirac: bool = False,
        norm_momentum: Annotated[float, "> 0, <= 1"] = 0.1,
        norm_scale: bool = True,
        logit_scale: Annotated[float, "> 0"] = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(input_shape, num_classes, **options)
        channels, height, width = input_shape
        height, width = (height - WHITENING_SIZE + 1, width - WHITENING_SIZE + 1) if whitening else (height, width)
        if not widths or min(height, width) < 2 ** len(widths):
            most = min(height, width).bit_length() - 1
            if most < 1:
                raise OptionError(f"images of {height}x{width} are too small for a CNN; take mlp")
            raise OptionError(
                f"model.widths: {len(widths)} stages for images of {height}x{width}; each halves the image: give 1 to {most}"
            )
        block = {"dirac": dirac, "norm_momentum": norm_momentum, "norm_scale": norm_scale}
        self.network = CNN(
            channels, num_classes, widths, convs_per_stage, residual, dropout, whitening, logit_scale, **block
        )

    def initialize_from_data(self, inputs: Tensor, mean: Tensor, std: Tensor) -> None:
        super().initialize_from_data(inputs, mean, std)
        assert isinstance(self.network, CNN)
        if self.network.whitening is not None:
            step = max(1, inputs[:, 0].numel() // WHITENING_PATCHES)
            self.network.whitening.measure(self.normalized(inputs[::step]))  # from all over the set: it may lie sorted
