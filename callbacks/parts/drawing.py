"""Drawing with Pillow, which TensorBoard needs anyway: Matplotlib would add half a second to every start.

Colours are those of Okabe and Ito, which colour-blind people can tell apart (https://jfly.uni-koeln.de/color/). Pictures
have a white ground of their own, so that they look alike in TensorBoard's dark mode, and are no wider than its cards where
that can be: it scales by leaving out pixels, and with them parts of letters.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CARD = 340  # pixels, the width of a picture in TensorBoard
TEXT = 12  # pixels, the height of most text

Colour = tuple[int, int, int]
BLACK, GREY, PALE, WHITE = (0, 0, 0), (110, 110, 110), (225, 225, 225), (255, 255, 255)
BLUE, SKY, ORANGE, VERMILION = (0, 114, 178), (86, 180, 233), (230, 159, 0), (213, 94, 0)


@lru_cache
def font(size: float) -> Any:
    """Pillow's own."""
    return ImageFont.load_default(size=size)


def drawable(names: Sequence[str]) -> list[str]:
    """`names`, with a class's number for one that the font has no glyphs for (Pillow's own has no Chinese ones)."""
    missing = bytes(font(13).getmask("\uffff"))
    return [
        str(i) if any(bytes(font(13).getmask(one)) == missing for one in name) else name for i, name in enumerate(names)
    ]


def shortened(text: str, width: float, size: float) -> str:
    """`text`, cut to so many pixels."""
    whole, text = text, text[: max(0, int(width))]  # no letter is narrower than a pixel
    if text == whole and font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A white picture, and a pen for it."""
    image = Image.new("RGB", (width, height), WHITE)
    return image, ImageDraw.Draw(image)


def upwards(image: Image.Image, text: str, middle: float, bottom: float, size: float) -> None:
    """Write `text` from `bottom` upwards, centred on x = `middle`."""
    strip = Image.new("L", (int(font(size).getlength(text)) + 2, int(size) + 5))
    ImageDraw.Draw(strip).text((1, 1), text, 255, font(size))
    turned = strip.rotate(90, expand=True)
    # as a mask, which covers nothing of the line beside it
    image.paste(BLACK, (int(middle) - turned.width // 2, int(bottom) - turned.height), turned)


def blend(one: Colour, other: Colour, share: float) -> Colour:
    """From `one` (0) to `other` (1)."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


def pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) of uint8, as TensorBoard takes it with ``dataformats="HWC"``."""
    return np.asarray(image)
