"""Shows images and their attributions as PNG files in data URLs, which a page contains without a further request."""

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

from engine.inference.pictures import colour_attributions, to_pixels

# C channels, H height, W width

LONGEST_SIDE = 256  # of a picture, in pixels


def image_url(image: Tensor) -> str:
    """Return an image (C, H, W). The range of values that are not bytes is scaled to 0 to 255."""
    return _png_url(to_pixels(image))


def overlay_url(image: Tensor, attributions: Tensor) -> str:
    """Return an image (C, H, W) in pale grey. Positive attributions (C, H, W) are orange, negative ones are blue."""
    return _png_url(colour_attributions(to_pixels(image), attributions))


def _png_url(pixels: np.ndarray) -> str:
    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
