"""Make the pictures in docs/ from existing runs: ``python -m tests.screenshots RUNS``.

RUNS is a `run.root` with runs of iris_mlp, mnist_cnn, cifar10_cnn and sst2_bert. The pictures have 256 colours, because this
makes their files small.
"""

import sys
import time
from io import BytesIO
from pathlib import Path

from PIL import Image

from engine.config.signatures import PROJECT
from engine.drawing import BLACK, BLUE, CARD_WIDTH, GREY, ORANGE, PALE, Canvas
from tests.browser import Browser, browser, tensorboard
from tests.runs import curve, events

DOCS = PROJECT / "docs"
COLOURS = 256
SETTLE_SECONDS = 3.0  # until the animations of charts have ended
GAP = 24  # pixels between pictures
CLOSE_SETTINGS = "document.querySelector('button.settings-button, button[aria-label=\"Close\"]')?.click()"


def take_screenshot(
    page: Browser, url: str, size: tuple[int, int], *texts: str, script: str = "", dark: bool = False
) -> Image.Image:
    """A window of `size` at `url`, after `texts` have appeared and JavaScript has run."""
    page.open(url, *size, dark=dark)
    page.wait(*texts)
    if script:
        page.evaluate(script)
    time.sleep(SETTLE_SECONDS)
    with Image.open(BytesIO(page.screenshot())) as image:
        return image.convert("RGB")


def save(name: str, image: Image.Image) -> None:
    path = DOCS / f"{name}.png"
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(PROJECT)}: {image.width} x {image.height}, {path.stat().st_size / 1e3:.0f} kB")


def arrange_pictures(root: Path) -> Image.Image:
    """Learning curves and test pictures of the newest run below `root`, in three columns."""
    folder = max(root.iterdir(), key=lambda path: path.stat().st_mtime)
    test = events(folder, "test")

    def read(name: str) -> Image.Image:
        return Image.open(BytesIO(test.Images(f"pictures/{name}")[-1].encoded_image_string)).convert("RGB")

    mistakes, matrix, bars, diagram = map(
        read, ("mistakes", "confusion_matrix", "class_accuracy", "reliability_diagram")
    )
    curves = draw_curves(folder, mistakes.height - matrix.height - GAP)
    columns = [[curves, matrix], [diagram, bars], [mistakes]]
    page = Image.new("RGB", (len(columns) * (CARD_WIDTH + GAP) + GAP, mistakes.height + 2 * GAP), "white")
    for i, column in enumerate(columns):
        top = GAP
        for picture in column:
            page.paste(picture, (GAP + i * (CARD_WIDTH + GAP), top))
            top += picture.height + GAP
    return page


def draw_curves(folder: Path, height: int) -> Image.Image:
    """Accuracy of training and validation after each epoch."""
    left, top, right, bottom = 46, 26, CARD_WIDTH - 20, height - 44
    canvas = Canvas(CARD_WIDTH, height)
    curves = {stage: curve(folder, f"{stage}/accuracy") for stage in ("train", "val")}
    low = min(map(min, curves.values()))
    num_epochs = len(curves["train"])

    def place(epoch: int, accuracy: float) -> tuple[float, float]:
        return (
            left + (right - left) * (epoch - 1) / max(1, num_epochs - 1),
            bottom - (bottom - top) * (accuracy - low) / (1 - low),
        )

    canvas.write((left + right) / 2, 6, "accuracy, %", size=13, anchor="ma")
    for percent in range(0, 101, 20 if low < 0.6 else 5):
        if percent >= 100 * low:
            _, y = place(1, percent / 100)
            canvas.pen.line((left, y, right, y), PALE)
            canvas.write(left - 6, y, str(percent), GREY, anchor="rm")
    for (stage, accuracies), colour in zip(curves.items(), (BLUE, ORANGE), strict=True):
        # a validation may come only every few epochs
        epochs = [round((i + 1) * num_epochs / len(accuracies)) for i in range(len(accuracies))]
        canvas.pen.line([place(*point) for point in zip(epochs, accuracies, strict=True)], colour, 2)
        name, x = {"train": ("training", left), "val": ("validation", (left + right) / 2)}[stage]
        canvas.pen.line((x, bottom + 30, x + 18, bottom + 30), colour, 3)
        canvas.write(x + 24, bottom + 30, name, anchor="lm")
    canvas.pen.line((left, bottom, right, bottom), BLACK)
    for epoch in sorted({1, num_epochs}):
        canvas.write(place(epoch, low)[0], bottom + 4, str(epoch), GREY, anchor="ma")
    canvas.write((left + right) / 2, bottom + 4, "epoch", GREY, anchor="ma")
    return canvas.image


def main(root: Path) -> None:
    with browser() as page:
        with tensorboard(root / "iris_mlp") as url:
            texts = ("metrics", "/accuracy", "/loss")
            series = take_screenshot(page, f"{url}/#timeseries", (1240, 760), *texts, script=CLOSE_SETTINGS)
            save("tensorboard", series)
        with tensorboard(root / "mnist_cnn") as url:
            save("projector", take_screenshot(page, f"{url}/#projector", (1240, 760), "Points:", "PCA"))
        with tensorboard(root / "sst2_bert") as url:
            url += "/#text&tagFilter=examples%2Fmistakes"
            texts = ("examples/mistakes/text_summary", "predicted")
            save("texts", take_screenshot(page, url, (1240, 620), *texts, dark=True))
    save("pictures", arrange_pictures(root / "cifar10_cnn"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
