"""Draws precision and recall against the threshold of a probability."""

import numpy as np

from engine.drawing import BLACK, BLUE, CARD_WIDTH, GREY, PALE, TEXT_SIZE, VERMILION, Canvas

# T candidates, H height, W width

LEFT, TOP, SIDE = 46, 30, 280  # in pixels: margins, side of the diagram


def draw_threshold(
    thresholds: np.ndarray, precision: np.ndarray, recall: np.ndarray, chosen: int, title: str
) -> np.ndarray:
    """Return a picture (H, W, 3).

    Args:
        thresholds: Probabilities (T,).
        precision: Precision of each (T,).
        recall: Recall of each (T,).
        chosen: Index of the threshold that is marked.
        title: Text above the diagram.
    """
    canvas = Canvas(CARD_WIDTH, TOP + SIDE + 66)
    right, bottom, middle = LEFT + SIDE, TOP + SIDE, LEFT + SIDE / 2
    canvas.write(middle, 8, title, size=TEXT_SIZE + 1, anchor="ma")
    for tick in range(0, 101, 20):
        x, y = LEFT + SIDE * tick / 100, bottom - SIDE * tick / 100
        canvas.pen.line((LEFT, y, right, y), PALE)
        canvas.write(LEFT - 6, y, str(tick), GREY, anchor="rm")
        canvas.write(x, bottom + 4, f"{tick / 100:g}", GREY, anchor="ma")
    for values, colour in ((precision, BLUE), (recall, VERMILION)):
        points = zip(LEFT + SIDE * thresholds, bottom - SIDE * values, strict=True)
        canvas.pen.line([(float(x), float(y)) for x, y in points], colour, 2, joint="curve")
    x = LEFT + SIDE * float(thresholds[chosen])
    canvas.pen.line((x, TOP, x, bottom), BLACK)
    canvas.pen.rectangle((LEFT, TOP, right, bottom), outline=GREY)
    canvas.write_upwards(10, TOP + SIDE / 2 + 40, "validation set, %")
    canvas.write(middle, bottom + 22, "threshold", GREY, anchor="ma")
    canvas.write(middle - 8, bottom + 42, f"precision {100 * precision[chosen]:.1f} %", BLUE, anchor="ra")
    canvas.write(middle + 8, bottom + 42, f"recall {100 * recall[chosen]:.1f} %", VERMILION)
    return canvas.to_array()
