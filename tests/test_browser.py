"""Every tab of TensorBoard in headless Chromium, for real runs: the page must show the logged values."""

import os
import shutil
from pathlib import Path

import pytest

from engine.config.signatures import PROJECT
from tests import files
from tests.browser import CHROMIUM, Browser, browser, tensorboard
from tests.runs import run

pytestmark = [
    pytest.mark.needs("bert", "text"),
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
RUNS = ("images/mnist_cnn/one", "images/mnist_cnn/one/val", "images/mnist_cnn/one/test", "texts/text_bert/one")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run of images with histograms, and a run of texts."""
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
def page(runs):
    """A browser, and the address of TensorBoard."""
    with tensorboard(runs) as address, browser() as page:
        yield page, address


def visible_text(page: tuple[Browser, str], tab: str, *texts: str) -> str:
    """Everything that a tab shows, once it shows `texts`."""
    window, address = page
    window.open(f"{address}/#{tab}", width=1600, height=3000)  # TensorBoard draws only what is inside the window
    return window.wait(*texts)


def test_time_series_start_with_the_metrics(page):
    names = ("metrics", "/accuracy", "/calibration_error", "/f1", "/loss", "pictures")
    text = visible_text(page, "timeseries", *names, *RUNS)
    assert text.index("metrics") < text.index("parameters") < text.index("pictures")


def test_scalars(page):
    text = visible_text(page, "scalars", "metrics/accuracy", "metrics/loss", "speed", "training", "tested", *RUNS)
    assert "No scalar data" not in text


def test_custom_scalars_start_with_learning_curves(page):
    curve = "metrics/loss (images/mnist_cnn/one/val)"
    visible_text(page, "custom_scalars", "learning and overfitting", curve, "learning rate")


def test_images(page):
    names = ("class_accuracy", "confusion_matrix", "first_filters", "hits", "mistakes", "reliability_diagram")
    visible_text(page, "images", *(f"pictures/{name}" for name in names[:4]), *["picture http"] * len(names))
    widths = page[0].evaluate(
        """(() => { const found = []; const look = node => {
          if (node.tagName === 'IMG' && node.naturalWidth) found.push([node.naturalWidth, node.clientWidth]);
          if (node.shadowRoot) node.shadowRoot.childNodes.forEach(look);
          node.childNodes.forEach(look); };
          look(document.body); return found; })()"""
    )
    assert all(shown >= natural for natural, shown in widths)  # scaling down would damage small letters


def test_hparams_have_keys_and_metrics(page):
    visible_text(page, "hparams", "optimizer.lr", "0.062500", "0.031250", "test/accuracy", "tested/val_accuracy")


def test_pr_curves(page):
    text = visible_text(page, "pr_curves", "pr_curves/0", "images/mnist_cnn/one/test", "images/mnist_cnn/one/val")
    assert "no PR" not in text


def test_texts_are_all_open(page):
    texts = [f"run/{name}/text_summary" for name in ("command", "config", "environment")]
    text = visible_text(page, "text", *texts, "examples/hits/text_summary", "hidden_size: ", "predicted", "[CLS] ")
    assert "packages" in text


def test_graphs(page):
    visible_text(page, "graphs", "images/mnist_cnn/one", "CNN", "input", "output")


def test_histograms(page):
    visible_text(page, "histograms", "parameters/head.weight", "parameters/head.weight.gradient")


def test_projector(page):
    text = visible_text(page, "projector", "features:", "Points:", "images/mnist_cnn/one/test", "x128")
    assert "Error" not in text


def test_two_hundred_runs_are_selected(tmp_path):
    """TensorBoard itself selects none of more than 40 entries, and a run has three."""
    first = run(tmp_path / "runs", "--config", "configs/iris_mlp.yaml", "trainer.max_epochs=2", "run.name=r000")
    for i in range(1, 200):
        folder = first.parent / f"r{i:03}"
        folder.mkdir()
        shutil.copy(first / "config.yaml", folder)
        for path in first.rglob("events.out.tfevents.*"):
            target = folder / path.relative_to(first)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    ticked = """(() => { let found = 0; const look = node => {
        if (node.tagName === 'PAPER-CHECKBOX' && node.checked && node.closest && node.id !== '') found += 1;
        if (node.shadowRoot) node.shadowRoot.childNodes.forEach(look);
        node.childNodes.forEach(look); };
        look(document.body); return found; })()"""
    with tensorboard(tmp_path / "runs", selects_all=True) as address, browser() as page:
        page.open(f"{address}/#scalars", width=1600, height=3000)
        page.wait("metrics/accuracy", "iris_mlp/r000/val", "iris_mlp/r199/val")
        assert page.evaluate(ticked) >= 600
