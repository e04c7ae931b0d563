"""A convolutional network (CNN) for small images.

The network has stages of 3x3 convolutions. Each stage halves the image after its first convolution, so that the other
convolutions cost a quarter. This order, the whitening layer, the Dirac initialization and the scaled logits are those of
Jordan's airbench (https://arxiv.org/abs/2404.00498). Images are stored channels-last, because convolutions are then up to
twice as fast on CPUs and on GPUs with tensor cores.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.contracts import OptionError, PrunableLayer
from lit_models.classifier import LitClassifier

# N samples, B batch, C channels, H height, W width, K classes, P patches, F values in a patch

WHITENING_SIZE = 2  # side of a patch, in pixels
WHITENING_PATCHES = 5_000_000  # a larger data set is subsampled to at least this number of patches
WHITENING_CHUNK = 2**20  # patches in memory at a time
MIN_VARIANCE = 1e-6  # of a component, relative to the largest; a smaller component has no information
VARIANCE_EPS = 5e-4  # added to the variance of each component: a small variance is noise (the value of airbench)


class Whitening(nn.Conv2d):
    """A convolution that whitens the patches of an image. Only its bias is trained.

    The filters are the principal components of the training patches, scaled to variance 1, and the negatives of these
    filters, because the next activation suppresses negative values.
    """

    def __init__(self, in_channels: int) -> None:
        components = in_channels * WHITENING_SIZE**2
        super().__init__(in_channels, 2 * components, WHITENING_SIZE)
        self.weight.requires_grad_(False)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Compute the filters from normalized images (N, C, H, W).

        Raises:
            OptionError: if the channels depend on each other. Training would diverge.
        """
        size, count = WHITENING_SIZE, 0
        products = torch.zeros(self.weight[0].numel(), self.weight[0].numel(), dtype=torch.float64)
        for chunk in images.split(max(1, WHITENING_CHUNK // images[0, 0].numel())):
            patches = chunk.unfold(2, size, 1).unfold(3, size, 1)  # (N, C, H - 1, W - 1, size, size)
            patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()  # (P, F)
            products += patches.T @ patches  # (F, F)
            count += len(patches)
        variances, components = torch.linalg.eigh(products / count)  # (F,), (F, F)
        if variances[0] < MIN_VARIANCE * variances[-1]:
            problem = "the channels of the images depend on each other, as in grey images with three equal channels"
            raise OptionError(f"model.whitening: {problem}; set model.whitening=false")
        filters = (components / (variances + VARIANCE_EPS).sqrt()).T.view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))


class ConvBlock(nn.Module):
    """3x3 convolution, optional 2x2 max pooling, batch normalization and GELU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        halve: Halve the image by max pooling.
        residual: Add the input to the output.
        dirac: Initialize the convolution so that it copies its input channels.
        norm_momentum: Momentum of the running mean and variance.
        norm_eps: Added to the variance.
        norm_scale: Train the scale of the normalization. Its shift is always trained.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        halve: bool = False,
        residual: bool = False,
        dirac: bool = False,
        norm_momentum: float = 0.1,
        norm_eps: float = 1e-5,
        norm_scale: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        if dirac:
            nn.init.dirac_(self.conv.weight.data[:in_channels])
        self.pool = nn.MaxPool2d(2) if halve else nn.Identity()
        self.norm = nn.BatchNorm2d(out_channels, norm_eps, norm_momentum)
        self.norm.weight.requires_grad_(norm_scale)
        self.activation = nn.GELU()
        self.residual = residual

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.activation(self.norm(self.pool(self.conv(inputs))))
        return inputs + outputs if self.residual else outputs


class Stem(nn.Sequential):
    """4x4 convolution that halves the image, batch normalization and GELU."""

    def __init__(self, in_channels: int, out_channels: int, norm_momentum: float = 0.1, norm_eps: float = 1e-5) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out_channels, norm_eps, norm_momentum), nn.GELU())


class CNN(nn.Module):
    """Optional whitening or stem, stages of convolutions, global max pooling and a linear layer.

    Args:
        in_channels: Number of channels C.
        num_classes: Number of classes K.
        widths: Channels of each stage. Each stage halves the image.
        convs_per_stage: Convolutions in a stage.
        residual: Add the input of a block to its output, except in the first block of a stage.
        dropout: Probability of zeroing a channel before the linear layer.
        whitening: Start with a `Whitening` layer.
        logit_scale: Factor of the logits.
        stem: Start with a `Stem`, after the `Whitening` layer.
        block_options: Further arguments of every `ConvBlock`.
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
        stem: bool = False,
        **block_options: Any,
    ) -> None:
        super().__init__()
        self.whitening = Whitening(in_channels) if whitening else None
        in_channels = self.whitening.out_channels if self.whitening else in_channels
        blocks: list[nn.Module] = []
        if stem:
            norm = {name: block_options[name] for name in ("norm_momentum", "norm_eps") if name in block_options}
            blocks.append(Stem(in_channels, widths[0], **norm))
            in_channels = widths[0]
        for width in widths:
            blocks.append(ConvBlock(in_channels, width, halve=True, **block_options))
            blocks += [ConvBlock(width, width, residual=residual, **block_options) for _ in range(convs_per_stage - 1)]
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
    """Convolutional network for images.

    Args:
        widths: Channels of each stage. Each stage halves the image.
        convs_per_stage: 3x3 convolutions in a stage.
        residual: Add the input of a convolution to its output, except for the first convolution of a stage.
        dropout: Probability of zeroing a channel before the last layer.
        whitening: Start with a fixed 2x2 convolution whose filters are the principal components of the training patches.
        stem: Start with a convolution that halves the image. It makes pictures of 224 pixels three times as fast.
        dirac: Initialize convolutions so that they copy their input channels.
        norm_momentum: Momentum of the running mean and variance in batch normalization.
        norm_eps: Added to the variance in batch normalization. With 0.001, a network also learns from pictures that are
            mostly of one colour, such as drawings, in bf16.
        norm_scale: Train the scale of batch normalization. If it is not trained and optimizer.normalize is true, a learning
            rate has the same effect in every layer.
        logit_scale: Factor of the logits. Below 1, the last layer trains faster.
        options: Arguments of `LitClassifier`.
    """

    accepts = ("image",)
    training_options = (*LitClassifier.training_options, "dropout", "dirac", "norm_momentum", "norm_scale")

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        widths: Annotated[Sequence[int], ">= 1"] = (32, 64, 128),
        convs_per_stage: Annotated[int, ">= 1"] = 2,
        residual: bool = False,
        dropout: Annotated[float, ">= 0, < 1"] = 0.0,
        whitening: bool = False,
        stem: bool = False,
        dirac: bool = False,
        norm_momentum: Annotated[float, "> 0, <= 1"] = 0.1,
        norm_eps: Annotated[float, "> 0"] = 1e-5,
        norm_scale: bool = True,
        logit_scale: Annotated[float, "> 0"] = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(input_shape, num_classes, **options)
        channels, height, width = input_shape
        side = min(height, width) - (WHITENING_SIZE - 1 if whitening else 0)
        most = (side // 2 if stem else side).bit_length() - 1  # stages, each of which halves the image
        if most < 1:
            raise OptionError(f"images of {height}x{width} pixels are too small for a CNN; set model.name=mlp")
        if not 1 <= len(widths) <= most:
            raise OptionError(
                f"model.widths: {len(widths)} stages do not fit images of {height}x{width} pixels, because each stage halves"
                f" the image; set 1 to {most} widths"
            )
        self.network = CNN(
            channels,
            num_classes,
            widths,
            convs_per_stage,
            residual,
            dropout,
            whitening,
            logit_scale,
            stem,
            dirac=dirac,
            norm_momentum=norm_momentum,
            norm_eps=norm_eps,
            norm_scale=norm_scale,
        )

    def prunable_layers(self) -> list[PrunableLayer]:
        """Return the convolutions, except for the whitening layer. The blocks of a residual stage share their channels."""
        assert isinstance(self.network, CNN)
        widths, per_stage = self.hparams["widths"], self.hparams["convs_per_stage"]
        blocks = [f"stages.{number}" for number in range(len(self.network.stages))]
        consumers = {block: f"{after}.conv" for block, after in pairwise(blocks)} | {blocks[-1]: "head"}
        found = []
        if self.hparams["stem"]:
            stem = blocks.pop(0)
            found.append(PrunableLayer(("widths", 0), widths[0], [f"{stem}.0", f"{stem}.1"], [consumers[stem]]))
        size = per_stage if self.hparams["residual"] else 1  # blocks with the same channels
        for start in range(0, len(blocks), size):
            shared, stage = blocks[start : start + size], start // per_stage
            producers = [f"{block}.{part}" for block in shared for part in ("conv", "norm")]
            found.append(
                PrunableLayer(("widths", stage), widths[stage], producers, [consumers[block] for block in shared])
            )
        return found

    def initialize_from_data(self, inputs: Tensor, mean: Tensor, std: Tensor) -> None:
        super().initialize_from_data(inputs, mean, std)
        assert isinstance(self.network, CNN)
        if self.network.whitening is not None:
            step = max(1, math.prod((len(inputs), *inputs.shape[2:])) // WHITENING_PATCHES)
            self.network.whitening.fit(self.normalized(inputs[::step]))  # evenly spaced, because the data may be sorted

    def initialize_without_data(self) -> None:
        if self.hparams["whitening"]:
            raise OptionError(
                "model.whitening: needs all training images in memory; the datamodule has only DataLoaders"
            )
