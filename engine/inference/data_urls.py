"""Shows images and their attributions as PNG files in data URLs, which a page contains without a further request."""

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

# C channels, H height, W width

LONGEST_SIDE = 256  # of a picture, in pixels
SUPPORT, OPPOSE = np.array([213, 94, 0]), np.array([0, 114, 178])  # vermilion and blue of Okabe and Ito, 2008


def image_url(image: Tensor) -> str:
    """Return an image (C, H, W). The range of values that are not bytes is scaled to 0 to 255."""
    return _png_url(_to_pixels(image))


def overlay_url(image: Tensor, attributions: Tensor) -> str:
    """Return an image (C, H, W) in pale grey. Positive attributions (C, H, W) are orange, negative ones are blue."""
    weights = attributions.sum(0).cpu().numpy()  # (H, W)
    weights = np.clip(weights / max(float(np.quantile(np.abs(weights), 0.99)), 1e-12), -1, 1)[..., None]
    grey = 255 - (255 - _to_pixels(image).mean(2, keepdims=True)) * 0.35
    colour = np.where(weights > 0, SUPPORT, OPPOSE)
    return _png_url((grey + (colour - grey) * np.abs(weights)).astype(np.uint8))


def _to_pixels(image: Tensor) -> np.ndarray:
    """Return (H, W, 3) of uint8."""
    values = image.float().cpu()
    if image.dtype.is_floating_point:
        values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12) * 255
    if len(values) not in (1, 3):
        values = values.mean(0, keepdim=True)
    return values.expand(3, -1, -1).permute(1, 2, 0).byte().numpy()


def _png_url(pixels: np.ndarray) -> str:
    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
