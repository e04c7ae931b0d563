"""Draws an image and its attributions."""

import numpy as np
from torch import Tensor

# C channels, H height, W width

SUPPORT, OPPOSE = np.array([213, 94, 0]), np.array([0, 114, 178])  # vermilion and blue of Okabe and Ito


def to_pixels(image: Tensor) -> np.ndarray:
    """Return an image (C, H, W) as (H, W, 3) of uint8. The range of other types is scaled to 0 to 255."""
    values = image.float().cpu()
    if image.is_floating_point():
        values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12) * 255
    if len(values) not in (1, 3):
        values = values.mean(0, keepdim=True)
    return values.expand(3, -1, -1).permute(1, 2, 0).byte().numpy()


def colour_attributions(pixels: np.ndarray, attributions: Tensor) -> np.ndarray:
    """Return an image (H, W, 3) in pale grey. Positive attributions (C, H, W) are orange, negative ones are blue."""
    weights = attributions.sum(0).cpu().numpy()  # (H, W)
    weights = np.clip(weights / max(float(np.quantile(np.abs(weights), 0.99)), 1e-12), -1, 1)[..., None]
    grey = 255 - (255 - pixels.mean(2, keepdims=True)) * 0.35
    colour = np.where(weights > 0, SUPPORT, OPPOSE)
    return (grey + (colour - grey) * np.abs(weights)).astype(np.uint8)
