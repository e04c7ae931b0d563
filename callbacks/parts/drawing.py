"""Drawing with Pillow, which TensorBoard needs anyway. Matplotlib would add half a second to the start of every run.

The colours are those of Okabe and Ito, which colour-blind people can tell apart (https://jfly.uni-koeln.de/color/). Pictures
have a white background, so that they look the same in TensorBoard's dark mode. They are as wide as TensorBoard's cards where
possible, because TensorBoard shrinks a wider picture by dropping pixels, which damages small letters.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# All lengths are in pixels. x and y are measured from the upper left corner.

CARD = 340  # width of a picture in TensorBoard
TEXT = 12  # size of most text

Colour = tuple[int, int, int]
BLACK, GREY, PALE, WHITE = (0, 0, 0), (110, 110, 110), (225, 225, 225), (255, 255, 255)
BLUE, ORANGE, VERMILION = (0, 114, 178), (230, 159, 0), (213, 94, 0)


class Canvas:
    """A white picture. `pen` draws lines and rectangles on it (`PIL.ImageDraw`)."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), WHITE)
        self.pen = ImageDraw.Draw(self.image)

    def write(
        self, x: float, y: float, text: str, colour: Colour = BLACK, size: float = TEXT, anchor: str = "la"
    ) -> None:
        """Write text. `anchor` is the point of the text at (x, y), as in Pillow: "la" left and top, "mm" middle."""
        self.pen.text((x, y), text, colour, _font(size), anchor)

    def write_upwards(self, x: float, bottom: float, text: str, size: float = TEXT) -> None:
        """Write text that reads from `bottom` upwards, centred on `x`."""
        strip = Image.new("L", (int(text_width(text, size)) + 2, int(size) + 5))
        ImageDraw.Draw(strip).text((1, 1), text, 255, _font(size))
        turned = strip.rotate(90, expand=True)
        # the strip is a mask, so it does not cover the text beside it
        self.image.paste(BLACK, (int(x) - turned.width // 2, int(bottom) - turned.height), turned)

    def to_array(self) -> np.ndarray:
        """The pixels (H, W, 3) of uint8, which TensorBoard takes with ``dataformats="HWC"``."""
        return np.asarray(self.image)


def text_width(text: str, size: float = TEXT) -> float:
    return float(_font(size).getlength(text))


def shorten(text: str, width: float, size: float = TEXT) -> str:
    """The text if it is at most `width` wide, else its start with an ellipsis."""
    start = text[
        : max(0, int(width))
    ]  # no character is narrower than a pixel; measuring a very long text would be slow
    if start == text and text_width(text, size) <= width:
        return text
    while start and text_width(start + "…", size) > width:
        start = start[:-1]
    return start + "…"


def replace_undrawable(names: Sequence[str]) -> list[str]:
    """The class names. A name with a character that the font does not have, such as a Chinese one, becomes its index."""
    missing = bytes(_font(TEXT).getmask("\uffff"))
    return [
        str(i) if any(bytes(_font(TEXT).getmask(character)) == missing for character in name) else name
        for i, name in enumerate(names)
    ]


@lru_cache
def _font(size: float) -> Any:
    return ImageFont.load_default(size=size)
