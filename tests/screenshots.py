"""The pictures of TensorBoard in docs/, from runs that are there: ``python -m tests.screenshots RUNS``.

RUNS is a `run.root` with runs of iris_mlp, mnist_cnn, cifar10_cnn and sst2_bert. Pictures have 256 colours, which keeps
them small.
"""

import sys
import time
from io import BytesIO
from pathlib import Path

from PIL import Image

from engine.config.signatures import PROJECT
from tests.browser import Browser, browser, tensorboard

DOCS = PROJECT / "docs"
COLOURS = 256
SETTLED_SECONDS = 3.0  # that charts take to move to their places


def taken(
    page: Browser, url: str, size: tuple[int, int], *wanted: str, click: str = "", dark: bool = False
) -> Image.Image:
    """What a window of `size` shows at `url`, once `wanted` are there and `click` (JavaScript) has been done."""
    page.open(url, *size, dark=dark)
    page.wait(*wanted)
    if click:
        page.evaluate(click)
    time.sleep(SETTLED_SECONDS)
    path = DOCS / "new.png"
    page.screenshot(path)
    with Image.open(BytesIO(path.read_bytes())) as image:
        image.load()
    path.unlink()
    return image.convert("RGB")


def kept(name: str, image: Image.Image) -> None:
    path = DOCS / f"{name}.png"
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(PROJECT)}: {image.width} x {image.height}, {path.stat().st_size / 1e3:.0f} kB")


def pictures(root: Path, *names: str) -> Image.Image:
    """Pictures of the newest run below `root`, of its test, side by side, as they are in its event files."""
    from tests.runs import events

    folder = max(root.iterdir(), key=lambda one: one.stat().st_mtime)
    seen = events(folder, "test")
    images = [Image.open(BytesIO(seen.Images(f"pictures/{name}")[-1].encoded_image_string)) for name in names]
    page = Image.new("RGB", (sum(one.width + 12 for one in images) - 12, max(one.height for one in images)), "white")
    left = 0
    for one in images:
        page.paste(one, (left, 0))
        left += one.width + 12
    return page


def main(root: Path) -> None:
    with browser() as page:
        with tensorboard(root / "iris_mlp") as url:
            kept("tensorboard", taken(page, f"{url}/#timeseries", (1240, 760), "metrics", "/accuracy", "/loss"))
        with tensorboard(root / "mnist_cnn") as url:
            kept("projector", taken(page, f"{url}/#projector", (1240, 760), "Points:", "PCA"))
        with tensorboard(root / "sst2_bert") as url:
            texts = f"{url}/#text&tagFilter=examples%2Fmistakes"
            kept("texts", taken(page, texts, (1240, 620), "examples/mistakes/text_summary", "predicted", dark=True))
    kept(
        "pictures",
        pictures(root / "cifar10_cnn", "confusion_matrix", "class_accuracy", "reliability_diagram", "mistakes"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
