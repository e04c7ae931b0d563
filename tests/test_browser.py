"""TensorBoard's page, tab by tab, in headless Chromium over real runs: what was logged must be what is shown."""

import os
from pathlib import Path

import pytest

from engine.config.signatures import PROJECT
from tests import files
from tests.browser import CHROMIUM, Browser, browser, tensorboard
from tests.runs import run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A run of images with histograms, and one of texts."""
    os.chdir(PROJECT)
    with pytest.MonkeyPatch.context() as patch:
        data = files.write_all(tmp_path_factory.mktemp("data") / "data", patch)
        short = ["trainer.max_epochs=2", "trainer.limit_train_batches=3", "trainer.log_every_n_steps=1", "run.name=one"]
        root = tmp_path_factory.mktemp("runs")
        images = ["--config", "configs/mnist_cnn.yaml", f"data.root={data}", "callbacks.histograms={every_n_steps: 1}"]
        run(root / "images", *images, "optimizer.lr=0.0625", *short)
        texts = [f"data.{key}={value}" for key, value in files.options("text", data).items()]
        texts += ["data.test=null", "data.text_column=text", "optimizer.lr=0.03125"]
        run(root / "texts", "--config", "configs/text_bert.yaml", *texts, *short)
    return root


@pytest.fixture(scope="module")
def shown(page):
    """A browser, and TensorBoard's address."""
    with tensorboard(page) as address, browser() as one:
        yield one, address


def seen(shown: tuple[Browser, str], tab: str, *wanted: str) -> str:
    one, address = shown
    one.open(f"{address}/#{tab}", width=1600, height=3000)  # what is out of sight is not drawn
    return one.wait(*wanted)


RUNS = ("images/mnist_cnn/one", "images/mnist_cnn/one/val", "images/mnist_cnn/one/test", "texts/text_bert/one")


def test_time_series_open_on_the_metrics(shown):
    text = seen(shown, "timeseries", "metrics", "/accuracy", "/calibration_error", "/f1", "/loss", "pictures", *RUNS)
    assert text.index("metrics") < text.index("parameters") < text.index("pictures")


def test_scalars(shown):
    text = seen(shown, "scalars", "metrics/accuracy", "metrics/loss", "speed", "training", "tested", *RUNS)
    assert "No scalar data" not in text


def test_custom_scalars_open_on_what_matters(shown):
    seen(
        shown,
        "custom_scalars",
        "does it learn, does it overfit",
        "metrics/loss (images/mnist_cnn/one/val)",
        "learning rate",
    )


def test_images(shown):
    names = ("class_accuracy", "confusion_matrix", "first_filters", "hits", "mistakes", "reliability_diagram")
    one, _ = shown
    text = seen(shown, "images", *(f"pictures/{name}" for name in names[:4]), "picture http")
    assert text.count("picture http") >= 6
    widths = one.evaluate(
        """(() => { const found = []; const look = node => {
          if (node.tagName === 'IMG' && node.naturalWidth) found.push([node.naturalWidth, node.clientWidth]);
          if (node.shadowRoot) node.shadowRoot.childNodes.forEach(look);
          node.childNodes.forEach(look); };
          look(document.body); return found; })()"""
    )
    assert all(shown >= natural for natural, shown in widths)  # none is scaled down, which would spoil its letters


def test_hparams_have_keys_and_metrics(shown):
    seen(shown, "hparams", "optimizer.lr", "0.062500", "0.031250", "test/accuracy", "tested/val_accuracy")


def test_pr_curves(shown):
    text = seen(shown, "pr_curves", "pr_curves/0", "images/mnist_cnn/one/test", "images/mnist_cnn/one/val")
    assert "no PR" not in text


def test_texts_are_all_open(shown):
    texts = [f"run/{name}/text_summary" for name in ("command", "config", "environment")]
    text = seen(shown, "text", *texts, "examples/hits/text_summary", "hidden_size: ", "predicted", "[CLS] ")
    assert "packages" in text


def test_graphs(shown):
    seen(shown, "graphs", "images/mnist_cnn/one", "CNN", "input", "output")


def test_histograms(shown):
    seen(shown, "histograms", "parameters/head.weight", "parameters/head.weight.gradient")


def test_projector(shown):
    text = seen(shown, "projector", "features:", "Points:", "images/mnist_cnn/one/test", "x128")
    assert "Error" not in text
