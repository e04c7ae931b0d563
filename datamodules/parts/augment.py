"""Augmentation of whole batches: pure functions of images and of what is drawn, every sample for itself.

Images are (B, C, H, W), uint8 or float, on any device; the generator lives on the same device. Cropping and flipping move
pixels and keep the type, so they are cheapest before the images become floats.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from datamodules.parts.batches import AugmentContext, mixed_seed

# B batch, C channels, H height, W width


def random_crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Shift each image by up to `padding` pixels each way; what comes in at the edges is reflected."""
    batch, channels, height, width = images.shape
    padded = _reflect(images, padding)  # (B, C, H + 2P, W + 2P)
    offsets = torch.randint(2 * padding + 1, (2, batch), generator=generator, device=images.device)
    rows = offsets[0, :, None] + torch.arange(height, device=images.device)  # (B, H)
    columns = offsets[1, :, None] + torch.arange(width, device=images.device)  # (B, W)
    rows = rows[:, None, :, None].expand(batch, channels, height, padded.shape[3])
    columns = columns[:, None, None, :].expand(batch, channels, height, width)
    return padded.gather(2, rows).gather(3, columns)


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def alternating_flip(images: Tensor, context: AugmentContext) -> Tensor:
    """Mirror a random half of all samples left to right, and in the next epoch the other half.

    Of two epochs each shows an image as it is or mirrored, never twice the same (Jordan 2024,
    https://arxiv.org/abs/2404.00498, section 3.6).

    Args:
        images: (B, C, H, W).
        context: Seed, epoch and samples decide; its generator is not used.
    """
    coin = context.samples ^ mixed_seed(context.seed) & 0xFFFFFFFF
    for _ in range(2):  # a hash of 32 bits, so that neighbours are unrelated: https://stackoverflow.com/a/12996028
        coin = ((coin >> 16) ^ coin) * 0x45D9F3B & 0xFFFFFFFF
    mirrored = ((coin >> 16) + context.epoch) % 2 == 1
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def random_affine(
    images: Tensor, degrees: float, shift_fraction: float, scale_fraction: float, generator: Generator
) -> Tensor:
    """Rotate, scale and shift each image about its centre; what comes in at the edges is 0. Returns floats.

    Args:
        images: (B, C, H, W).
        degrees: Largest rotation either way.
        shift_fraction: Largest shift, as a share of the image's side.
        scale_fraction: Largest change of size, as a share of it.
        generator: Of the random numbers.
    """
    uniform = torch.rand(4, len(images), generator=generator, device=images.device) * 2 - 1  # in [-1, 1)
    angle, scale = uniform[0] * math.radians(degrees), 1 + uniform[1] * scale_fraction
    shift = uniform[2:] * 2 * shift_fraction  # the grid runs from -1 to 1: a side is 2
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    matrices = torch.stack([cosine, -sine, shift[0], sine, cosine, shift[1]], dim=1).view(-1, 3)  # (2 B, 3)
    height, width = images.shape[2:]
    # centres of pixels
    x, y = (torch.arange(1 - side, side, 2, device=images.device) / side for side in (width, height))
    places = torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones_like(x).repeat(height)])  # (3, H W)
    # one product for the batch: `F.affine_grid` makes B of them, of three columns each, and takes twenty times as long
    grid = (matrices @ places).view(-1, 2, height, width).permute(0, 2, 3, 1)  # (B, H, W, 2)
    return F.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=False)


def _reflect(images: Tensor, padding: int) -> Tensor:
    """Reflection padding for every type; `F.pad` knows it for floats only."""
    for axis in (2, 3):
        size = images.shape[axis]
        index = torch.arange(-padding, size + padding, device=images.device).abs()
        index = torch.where(index >= size, 2 * (size - 1) - index, index)
        images = images.index_select(axis, index)
    return images
