"""Augmentation of batches of images. Every function treats each image of a batch independently.

Images are (B, C, H, W), uint8 or float, on any device. The generator is on the same device. Cropping and flipping keep the
type of the images, so they are cheapest before the images are converted to floats.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from datamodules.parts.batches import AugmentContext, derive_seed

# B batch, C channels, H height, W width, P padding


def random_crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Pad each image by reflection and crop it back to its size at a random place.

    Args:
        images: (B, C, H, W).
        padding: Number of pixels on each side. It is also the maximum shift.
        generator: Source of the random numbers.
    """
    count, _, height, width = images.shape
    windows = _reflect(images, padding).unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2P + 1, 2P + 1, H, W), a view
    offsets = torch.randint(2 * padding + 1, (2, count), generator=generator, device=images.device)
    return windows[torch.arange(count, device=images.device), :, offsets[0], offsets[1]]


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 0.5."""
    flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def alternating_flip(images: Tensor, context: AugmentContext) -> Tensor:
    """Mirror a random half of all training images left to right. The next epoch mirrors the other half.

    Two consecutive epochs show both views of every image (Jordan 2024, https://arxiv.org/abs/2404.00498, section 3.6).

    Args:
        images: (B, C, H, W).
        context: Its seed, epoch and samples determine the mirrored images. Its generator is not used.
    """
    hashed = context.samples ^ derive_seed(context.seed) & 0xFFFFFFFF
    for _ in range(2):  # a hash of 32 bits, so that neighbouring samples are independent: stackoverflow.com/a/12996028
        hashed = ((hashed >> 16) ^ hashed) * 0x45D9F3B & 0xFFFFFFFF
    flipped = ((hashed >> 16) + context.epoch) % 2 == 1
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def random_affine(
    images: Tensor, degrees: float, shift_fraction: float, scale_fraction: float, generator: Generator
) -> Tensor:
    """Rotate and scale each image about its centre, and shift it. Pixels outside the image are 0. Returns floats.

    Args:
        images: (B, C, H, W).
        degrees: Maximum rotation in either direction.
        shift_fraction: Maximum shift, as a fraction of the side.
        scale_fraction: Maximum change of size, as a fraction of the size.
        generator: Source of the random numbers.
    """
    uniform = torch.rand(4, len(images), generator=generator, device=images.device) * 2 - 1  # in [-1, 1)
    angle, scale = uniform[0] * math.radians(degrees), 1 + uniform[1] * scale_fraction
    shift = uniform[2:] * 2 * shift_fraction  # times 2, because the grid goes from -1 to 1
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    return _warp(images, torch.stack([cosine, -sine, shift[0], sine, cosine, shift[1]], dim=1), "zeros")


def random_resized_crop(images: Tensor, min_area: float, generator: Generator) -> Tensor:
    """Cut a random part out of each image, and scale it to the size of the image. Returns floats.

    Area and proportion are chosen as in Szegedy et al. 2014 (https://arxiv.org/abs/1409.4842): the area is uniform, and the
    logarithm of the proportion is uniform between 3/4 and 4/3.

    Args:
        images: (B, C, H, W).
        min_area: Smallest area, as a fraction of the image.
        generator: Source of the random numbers.
    """
    uniform = torch.rand(4, len(images), generator=generator, device=images.device)
    area, proportion = min_area + uniform[0] * (1 - min_area), (4 / 3) ** (uniform[1] * 2 - 1)
    width, height = (area * proportion).sqrt().clamp(max=1), (area / proportion).sqrt().clamp(max=1)
    x, y = (uniform[2] * 2 - 1) * (1 - width), (uniform[3] * 2 - 1) * (1 - height)
    zero = torch.zeros_like(x)
    return _warp(images, torch.stack([width, zero, x, zero, height, y], dim=1), "border")


def _warp(images: Tensor, matrices: Tensor, padding: Literal["zeros", "border"]) -> Tensor:
    """Sample each image at the places that its affine matrix (B, 6) maps to. `padding` are the pixels outside the image.

    Matrices map the grid of the result to the image. Both grids go from -1 to 1.
    """
    height, width = images.shape[2:]
    # coordinates of the pixels' centres
    x, y = (torch.arange(1 - side, side, 2, device=images.device) / side for side in (width, height))
    points = torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones_like(x).repeat(height)])  # (3, H W)
    # one matrix product for the whole batch; `F.affine_grid` computes B small products and takes twenty times as long
    grid = (matrices.view(-1, 3) @ points).view(-1, 2, height, width).permute(0, 2, 3, 1)  # (B, H, W, 2)
    return F.grid_sample(images.float(), grid, padding_mode=padding, align_corners=False)


def _reflect(images: Tensor, padding: int) -> Tensor:
    """Pad by reflection. In contrast to `F.pad`, this supports all types."""
    if padding == 0:
        return images
    for axis in (2, 3):
        size = images.shape[axis]
        before, after = images.narrow(axis, 1, padding), images.narrow(axis, size - padding - 1, padding)
        images = torch.cat([before.flip(axis), images, after.flip(axis)], axis)
    return images
