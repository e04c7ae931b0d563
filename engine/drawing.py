"""Drawing with Pillow, which TensorBoard needs anyway. Matplotlib would add half a second to the start of every run.

The colours are the colour-blind safe palette of Okabe and Ito (https://jfly.uni-koeln.de/color/). Pictures have a white
background, so that they look the same in TensorBoard's dark mode. Where possible, they are as wide as TensorBoard's cards.
TensorBoard shrinks wider pictures by dropping pixels, which makes small letters unreadable.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# All lengths are in pixels. x and y are measured from the upper left corner.

CARD_WIDTH = 340  # width of a picture in TensorBoard
TEXT_SIZE = 12  # size of most text

Colour = tuple[int, int, int]
BLACK, GREY, PALE, WHITE = (0, 0, 0), (110, 110, 110), (225, 225, 225), (255, 255, 255)
BLUE, ORANGE, VERMILION = (0, 114, 178), (230, 159, 0), (213, 94, 0)


class Canvas:
    """A white picture. `pen` draws lines and rectangles on it (`PIL.ImageDraw`)."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), WHITE)
        self.pen = ImageDraw.Draw(self.image)

    def write(
        self,
        x: float,
        y: float,
        text: str,
        colour: Colour = BLACK,
        size: float = TEXT_SIZE,
        anchor: str = "la",
        halo: int = 0,
    ) -> None:
        """Write text at (x, y).

        Args:
            x: Place of the anchor.
            y: Place of the anchor.
            text: The text.
            colour: Its colour.
            size: Its size.
            anchor: Aligns it as in Pillow: "la" is left and top, "mm" is the centre.
            halo: Width of a white margin around each letter, which keeps it readable on lines.
        """
        self.pen.text((x, y), text, colour, _font(size), anchor, stroke_width=halo, stroke_fill=WHITE)

    def write_upwards(self, x: float, bottom: float, text: str, size: float = TEXT_SIZE) -> None:
        """Write text that reads from `bottom` upwards, centred on `x`."""
        strip = Image.new("L", (int(text_width(text, size)) + 2, int(size) + 5))
        ImageDraw.Draw(strip).text((1, 1), text, 255, _font(size))
        turned = strip.rotate(90, expand=True)
        # the strip is used as a mask, so it does not cover text beside it
        self.image.paste(BLACK, (int(x) - turned.width // 2, int(bottom) - turned.height), turned)

    def to_array(self) -> np.ndarray:
        """Return the pixels (H, W, 3) of uint8, for ``add_image(..., dataformats="HWC")``."""
        return np.asarray(self.image)


def blend(start: Colour, end: Colour, fraction: float) -> Colour:
    """Interpolate between the colours `start` (fraction 0) and `end` (fraction 1)."""
    return tuple(round(a + (b - a) * fraction) for a, b in zip(start, end, strict=True))  # type: ignore[return-value]


def text_width(text: str, size: float = TEXT_SIZE) -> float:
    return float(_font(size).getlength(text))


def shorten(text: str, width: float, size: float = TEXT_SIZE) -> str:
    """Cut a text that is wider than `width`, and end it with an ellipsis."""
    start = text[: max(0, int(width))]  # a character has at least one pixel; measuring a very long text would be slow
    if start == text and text_width(text, size) <= width:
        return text
    while start and text_width(start + "…", size) > width:
        start = start[:-1]
    return start + "…"


def replace_undrawable(names: Sequence[str]) -> list[str]:
    """Replace a class name by its index if the font has no glyph for a character, such as a Chinese character."""
    font, characters = _font(TEXT_SIZE), set("".join(names))
    missing = bytes(font.getmask("\uffff"))
    undrawable = {character for character in characters if bytes(font.getmask(character)) == missing}
    return [name if undrawable.isdisjoint(name) else str(i) for i, name in enumerate(names)]


@lru_cache
def _font(size: float) -> Any:
    return ImageFont.load_default(size=size)
