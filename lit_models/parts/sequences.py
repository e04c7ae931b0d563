"""Layers that turn images and features into sequences of vectors, which a transformer takes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.contracts import OptionError

# B batch, E hidden size, C channels, H height, W width, P patch size, D features


class Patches(nn.Module):
    """Cuts images (B, C, H, W) into patches and projects each patch to a vector (B, H/P * W/P, E)."""

    def __init__(self, channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Linear(channels * patch_size**2, hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        size = self.patch_size
        # `Tensor.unfold` would be shorter, but XLA computes it on the CPU
        patches = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, C, H/P, P, W/P, P)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, H/P * W/P, C * P * P)
        return self.projection(patches)


class FeatureTokens(nn.Module):
    """Maps features (B, D) to vectors (B, D, E): each value is multiplied by a trained vector of its feature."""

    def __init__(self, num_features: int, hidden_size: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_features, hidden_size) * std)

    def forward(self, features: Tensor) -> Tensor:
        return features[:, :, None] * self.weight


def num_tokens(input_shape: Sequence[int], patch_size: int) -> int:
    """Length of the sequence for an image (C, H, W) or for features (D,), including the class token.

    Raises:
        OptionError: if the patches do not fill the image exactly.
    """
    if len(input_shape) == 1:
        return 1 + input_shape[0]
    height, width = input_shape[1:]
    if height % patch_size or width % patch_size:
        divisors = [size for size in range(1, min(height, width) + 1) if height % size == 0 and width % size == 0]
        raise OptionError(
            f"model.patch_size: {patch_size} does not divide {height} x {width} pixels; choose one of {divisors}"
        )
    return 1 + (height // patch_size) * (width // patch_size)
