"""The pictures, tables and texts of single callbacks, for cases that are hard to draw."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from callbacks import confusion_matrix, first_filters, projector, reliability_diagram
from callbacks.gallery import GAP, INNER_GAP, SIDE, Example, Gallery, draw_examples, escape, format_examples
from callbacks.pr_curves import PRCurves
from engine.drawing import BLUE, ORANGE, VERMILION, Canvas, replace_undrawable, shorten
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP

MODULE = SimpleNamespace(class_names=["a", "b", "c"], device=torch.device("cpu"), features=lambda inputs: 2 * inputs)
TRAINER = SimpleNamespace(global_step=7, is_global_zero=True, strategy=SingleDeviceStrategy())


def cells(counts: np.ndarray) -> np.ndarray:
    """The cells (P, 3) of a matrix (K, K) that are not 0."""
    return np.column_stack([*np.nonzero(counts), counts[counts > 0]])


@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
def test_confusion_matrix_can_be_drawn_for_any_number_of_classes(num_classes):
    counts = np.eye(num_classes, dtype=int) * 90 + 1
    counts[0] = 0  # a class without samples
    picture = confusion_matrix.draw_matrix(cells(counts), [f"class {i}" for i in range(num_classes)])
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert max(picture.shape) < 1200


def find(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Row and column (N, 2) of every pixel of a colour."""
    return np.argwhere((picture == colour).all(2))


def test_shade_of_a_cell_is_its_fraction_of_the_true_class():
    picture = confusion_matrix.draw_matrix(cells(np.array([[8, 2], [0, 10]])), ["cat", "dog"])
    shades = [
        confusion_matrix.blend(confusion_matrix.LIGHT, confusion_matrix.DARK, fraction)
        for fraction in (0.8, 0.2, 0.0, 1.0)
    ]
    cat_as_cat, cat_as_dog, dog_as_cat, dog_as_dog = (find(picture, shade).mean(0) for shade in shades)
    assert cat_as_cat[0] == pytest.approx(cat_as_dog[0], abs=3)
    assert dog_as_cat[0] == pytest.approx(dog_as_dog[0], abs=3)
    assert cat_as_cat[0] < dog_as_dog[0]  # a true class is a row
    assert cat_as_cat[1] == pytest.approx(dog_as_cat[1], abs=3)
    assert cat_as_cat[1] < dog_as_dog[1]


def test_most_confused_pairs_are_listed():
    counts = np.array([[5, 3, 0], [4, 5, 1], [0, 0, 9]])
    assert confusion_matrix.list_confused_pairs(cells(counts), ["cat", "dog", "frog"], 5, 300) == [
        "7 mistakes: cat (3) and dog (4)",
        "1 mistake: dog (1) and frog (0)",
    ]
    assert confusion_matrix.list_confused_pairs(cells(np.eye(3, dtype=int)), ["cat", "dog", "frog"], 5, 300) == []


@pytest.mark.parametrize("num_classes", [2, 10])
def test_long_names_leave_room_for_the_counts(num_classes):
    counts = np.full((num_classes, num_classes), 12_345)
    picture = confusion_matrix.draw_matrix(cells(counts), ["a name of some length" * 3] * num_classes)
    assert not (picture[:, -1] != 255).any()  # nothing is cut off


def test_title_above_few_classes_is_complete():
    picture = confusion_matrix.draw_matrix(cells(np.eye(2, dtype=int)), ["0", "1"])
    assert not (picture[:, :3] != 255).any()


def test_classes_with_the_most_mistakes_are_chosen():
    counts = np.diag(np.full(1000, 9))
    counts[7, 500] = counts[2, 3] = 1
    assert confusion_matrix.most_confused_classes(cells(counts), 1000, 4) == [2, 3, 7, 500]


@pytest.mark.parametrize(
    ("num_classes", "dtype"), [(2, torch.int64), (3, torch.int32), (50, torch.int64), (100, torch.uint8)]
)
def test_the_cells_are_those_of_torchmetrics(num_classes, dtype):
    generator = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(600, num_classes, generator=generator)
    labels = torch.randint(num_classes - 1, (600,), generator=generator)  # the last class has no samples
    found = confusion_matrix.Cells(num_classes)
    for rows in torch.arange(600).split(170):
        found.update(logits[rows], labels[rows].to(dtype))
    counts = multiclass_confusion_matrix(logits, labels, num_classes).numpy()
    assert found.compute().tolist() == cells(counts).tolist()
    by_class = confusion_matrix.count_by_class(cells(counts), num_classes)
    for vector, expected in zip(by_class, (counts.sum(1), counts.sum(0), counts.diagonal()), strict=True):
        assert vector.tolist() == expected.tolist()


def test_a_hundred_thousand_classes_need_no_square_matrix():
    """10^10 cells would need 80 GB."""
    num_classes = 100_000
    module = SimpleNamespace(class_names=list(map(str, range(num_classes))), device=torch.device("cpu"))
    callback, pictures = confusion_matrix.ConfusionMatrix(), {}
    callback.begin(module)
    labels = torch.tensor([0, 99_999, 99_999, 7])
    logits = torch.zeros(4, num_classes)
    logits[torch.arange(4), torch.tensor([0, 3, 3, 99_999])] = 1
    callback.update(module, None, logits, labels)
    gathered = callback.gather()
    assert gathered.tolist() == [[0, 0, 1], [7, 99_999, 1], [99_999, 3, 2]]
    writer = SimpleNamespace(add_image=lambda name, picture, *_, **__: pictures.update({name: picture.shape}))
    callback.show(TRAINER, module, "test", writer, gathered)
    assert set(pictures) == {"pictures/confusion_matrix", "pictures/class_accuracy"}
    assert confusion_matrix.list_confused_pairs(gathered.numpy(), module.class_names, 5, 300) == [
        "2 mistakes: 3 (0) and 99999 (2)",
        "1 mistake: 7 (1) and 99999 (0)",
    ]


@pytest.mark.parametrize("num_classes", [2, 26, 100, 1000])
def test_bars_can_be_drawn_for_any_number_of_classes(num_classes):
    correct = np.arange(num_classes)
    picture = confusion_matrix.draw_bars(correct, np.maximum(correct, 3), ["a name of some length" * 3] * num_classes)
    assert picture.shape[0] < 800
    assert not (picture[:, -1] != 255).any()  # nothing is cut off


def test_length_of_a_bar_is_the_accuracy_of_its_class():
    def lengths(correct: list[int], rows: int) -> list[int]:
        names = ["one"] * len(correct)
        picture = confusion_matrix.draw_bars(np.array(correct), np.full(len(correct), 100), names)
        lines = np.arange(rows) * confusion_matrix.ROW_HEIGHT + 24 + confusion_matrix.ROW_HEIGHT // 2
        return [len(find(picture[[line]], BLUE)) for line in lines]

    tenth, half, full = lengths([10, 50, 100], 3)
    assert tenth == pytest.approx(full / 10, abs=2)
    assert half == pytest.approx(full / 2, abs=2)
    worst_first = lengths(list(range(99, 39, -2)), 15)  # two columns of thirty classes
    assert worst_first == sorted(worst_first)
    assert worst_first[0] < worst_first[-1]


def diagram_sums(logits: torch.Tensor, labels: torch.Tensor, size: int = 37) -> np.ndarray:
    """The sums (3, BINS) of logits (N, K) and labels (N,) in batches of `size`."""
    diagram = reliability_diagram.ReliabilityDiagram()
    diagram.begin(MODULE)
    for rows in torch.arange(len(labels)).split(size):
        diagram.update(MODULE, None, logits[rows], labels[rows])
    return diagram.gather()


def test_reliability_diagram_shows_accuracy_and_its_gap_to_the_probability():
    logits = torch.tensor([[0.95, 0.05]]).log().expand(50, 2)
    picture = reliability_diagram.draw_diagram(*diagram_sums(logits, (torch.arange(50) >= 10).long()))
    heights = np.unique(find(picture, BLUE)[:, 1], return_counts=True)[1]
    assert heights.max() == pytest.approx(0.2 * reliability_diagram.SIDE, abs=4)
    gap = np.ptp(find(picture, ORANGE)[:, 0])
    assert gap == pytest.approx(0.75 * reliability_diagram.SIDE, abs=4)


def test_calibration_error_equals_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 4, generator=generator), torch.randint(0, 4, (500,), generator=generator)
    error = multiclass_calibration_error(logits, labels, num_classes=4, n_bins=reliability_diagram.BINS)
    sums = diagram_sums(logits, labels)
    assert sums[0].sum() == 500
    assert reliability_diagram.calibration_error(*sums) == pytest.approx(error.item(), abs=1e-5)


def test_sums_of_a_reliability_diagram_are_exact_for_many_samples():
    bins = reliability_diagram.Bins()
    bins.sums[:, -1] = 2**24 * 2**30  # float32 has no number between 2**24 and 2**24 + 2
    for _ in range(3):
        bins.update(torch.tensor([[9.0, 0.0]]), torch.tensor([0]))
    assert bins.compute()[:, -1].tolist() == pytest.approx([2**24 + 3, 2**24 + 3 * 0.99987661, 2**24 + 3], abs=1e-6)


def test_logits_that_are_not_finite_have_a_bin():
    logits = torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0], [1000.0, 0.0]])
    assert diagram_sums(logits, torch.zeros(3, dtype=torch.int64))[0].tolist() == [2, *[0] * 13, 1]


def test_upward_text_does_not_cover_the_text_beside_it():
    canvas = Canvas(60, 60)
    for middle in (20, 29, 38):
        canvas.write_upwards(middle, 50, "bbb", 9)
    columns = (canvas.to_array() < 128).all(2).sum(0)
    assert columns[16:25].tolist() == columns[25:34].tolist() == columns[34:43].tolist()


def test_class_name_that_the_font_cannot_draw_becomes_its_index():
    assert replace_undrawable(["good", "好评", "not bad"]) == ["good", "1", "not bad"]


def test_long_name_ends_with_an_ellipsis():
    assert shorten("short", 100, 15) == "short"
    assert shorten("a very long name of a class", 60, 15).endswith("…")
    assert shorten("long" * 100_000, 60, 15) == shorten("long" * 10, 60, 15)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (LitCNN([3, 32, 32], 10), (32, 3, 3, 3)),
        (LitMLP([1, 28, 28], 10, [16]), (16, 1, 28, 28)),
        pytest.param(None, (32, 3, 8, 8), id="bert"),
        (LitMLP([4], 3), None),
    ],
)
def test_first_filters_are_the_weights_of_the_layer_that_sees_the_image(model, shape):
    if model is None:
        from lit_models.bert import LitBERT

        model = LitBERT([3, 32, 32], 10, patch_size=8, hidden_size=32)
    filters = first_filters.first_filters(model.eval())
    assert (None if filters is None else tuple(filters.shape)) == shape
    if filters is not None:
        grid = first_filters.make_grid(filters.detach())
        assert grid.shape[0] == 3
        assert 0 <= grid.min() <= grid.max() == 1


@pytest.mark.parametrize("shape", [(7, 1, 28, 28), (50, 3, 300, 200), (2, 5, 10, 10)])
def test_thumbnails_fit_into_one_picture(shape):
    images = torch.randint(0, 255, shape, dtype=torch.uint8)
    thumbnails = projector.make_thumbnails(images)
    side = int(np.ceil(np.sqrt(len(thumbnails))))
    assert thumbnails.shape[:2] == (shape[0], 3)
    assert side * max(thumbnails.shape[2:]) <= projector.MAX_SPRITE_SIDE
    assert 0 <= thumbnails.min() <= thumbnails.max() <= 1


def make_gallery(num_examples: int, stage: str = "test") -> Gallery:
    gallery = Gallery(num_examples)
    gallery._stage = stage
    gallery.begin(None)
    return gallery


def test_gallery_keeps_the_most_confident_mistakes_of_all_batches():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(300, 4, generator=generator), torch.randint(0, 4, (300,), generator=generator)
    inputs = torch.arange(300.0)[:, None]
    gallery = make_gallery(5)
    for rows in torch.arange(300).split(37):
        gallery.update(None, inputs[rows], logits[rows], labels[rows])
    probabilities, predicted = logits.softmax(1).max(1)
    expected = torch.where(predicted != labels, probabilities, -1.0).topk(5)
    assert [example.inputs.item() for example in gallery._mistakes] == expected.indices.tolist()
    assert [example.probability for example in gallery._mistakes] == pytest.approx(expected.values.tolist())
    assert sorted(gallery._hits) == [0, 1, 2, 3]
    assert all(hit.label == hit.predicted == predicted[int(hit.inputs)] for hit in gallery._hits.values())


def test_gallery_keeps_texts_without_padding():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    gallery = make_gallery(2)
    inputs = {"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": mask}
    gallery.update(None, inputs, torch.tensor([[2.0, 0.0]] * 2), torch.tensor([1, 1]))
    assert [example.inputs["input_ids"].tolist() for example in gallery._mistakes] == [[[5, 6]], [[7, 8, 9]]]


def test_special_characters_of_markdown_are_escaped():
    assert escape("a|b *c* <d> [e](f)") == r"a\|b \*c\* \<d\> \[e\]\(f\)"


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_of_any_type_can_be_drawn(channels, dtype):
    inputs = (torch.rand(1, channels, 20, 30) * 200).to(dtype)
    examples = [Example(inputs, 0, i % 2, 0.9) for i in range(7)]
    for attributions in (None, [torch.randn(channels, 20, 30)] * 7):
        picture = draw_examples(examples, attributions, ["a" * 40, "b"])
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert not (picture[:, -1] != 255).any()  # nothing is cut off


def test_orange_is_for_the_predicted_class_and_blue_against_it():
    attributions = torch.ones(1, 10, 10)
    attributions[:, :, 5:] = -1
    example = Example(torch.full((1, 1, 10, 10), 0.5), 0, 1, 0.9)
    picture = draw_examples([example], [attributions], ["no", "yes"])
    left = GAP + SIDE + INNER_GAP
    drawn = picture[GAP : GAP + SIDE, left : left + SIDE]
    assert len(find(drawn[:, : SIDE // 2], VERMILION)) == len(find(drawn[:, SIDE // 2 :], BLUE)) == SIDE * SIDE // 2
    assert len(find(drawn[:, : SIDE // 2], BLUE)) == 0


def test_caption_of_a_mistake_is_orange_and_that_of_a_hit_is_blue():
    for label, colour, other in ((0, VERMILION, BLUE), (1, BLUE, VERMILION)):
        picture = draw_examples([Example(torch.zeros(1, 1, 10, 10), label, 1, 0.9)], None, ["no", "yes"])
        assert len(find(picture, colour)) > 0
        assert len(find(picture, other)) == 0


class Writer:
    """Records the curves and the embedding that it is given."""

    def __init__(self, folder="") -> None:
        self.log_dir = folder
        self.curves: list[str] = []

    def add_pr_curve_raw(self, name, *_, **__) -> None:
        self.curves.append(name)

    def add_embedding(self, features, rows, images, step, name, header) -> None:
        self.features, self.rows, self.header = features, rows, header


def test_classes_with_the_lowest_average_precision_have_curves():
    labels = torch.arange(300) % 3
    logits = 5.0 * torch.nn.functional.one_hot(labels, 3)
    logits[:150, 1] = torch.randn(150, generator=torch.Generator().manual_seed(0))  # noise for the second class
    curves, writer = PRCurves(max_classes=1), Writer()
    curves.begin(MODULE)
    curves.update(MODULE, None, logits, labels)
    curves.show(TRAINER, MODULE, "test", writer, curves.gather())
    assert writer.curves == ["pr_curves/b"]


@pytest.mark.parametrize("kind", [PRCurves, reliability_diagram.ReliabilityDiagram])
def test_logits_of_a_small_batch_are_not_taken_for_probabilities(kind):
    logits, labels = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3

    def gather(logits: torch.Tensor, size: int) -> np.ndarray:
        callback = kind()
        callback.begin(MODULE)
        for rows in torch.arange(30).split(size):
            callback.update(MODULE, None, logits[rows], labels[rows])
        return np.asarray(callback.gather())

    expected = gather(logits.log_softmax(1), 30)  # below 0, with the same probabilities
    for size in (1, 30):
        assert np.allclose(gather(logits, size), expected, atol=1e-5)


def test_projector_writes_true_and_predicted_classes(tmp_path):
    callback, writer = projector.Projector(num_samples=3), Writer(tmp_path)
    callback.begin(MODULE)
    inputs, logits = torch.arange(8.0).view(4, 2), torch.eye(3)[[0, 1, 2, 2]]
    callback.update(MODULE, inputs, logits, torch.tensor([0, 2, 1, 0]))
    callback.show(TRAINER, MODULE, "test", writer, None)
    assert writer.header == ["true", "predicted", "correct"]
    assert writer.rows == [["a", "a", "yes"], ["c", "b", "no"], ["b", "c", "no"]]
    assert torch.equal(writer.features, 2 * inputs[:3])


DATAMODULE = SimpleNamespace(spec=SimpleNamespace(feature_names=()))


def test_table_of_examples_has_limited_length():
    table = format_examples([Example(torch.rand(1, 5000), 0, 1, 0.8)], None, ["no", "yes\n| or so"], DATAMODULE)
    assert table.count("feature ") == 12
    assert table.endswith("… |")
    assert "*yes \\| or so (80 %)" in table
    assert len(table.splitlines()) == 3


def test_features_with_the_largest_attributions_are_shown():
    attributions = torch.zeros(30)
    attributions[[3, 5, 17]] = torch.tensor([2.0, 1.0, -1.5])
    table = format_examples([Example(torch.arange(30.0)[None], 0, 1, 0.8)], [attributions], ["no", "yes"], DATAMODULE)
    assert "| *yes (80 %), is no:* " in table
    assert r"**feature 3 3 +2.00** · feature 5 5 +1.00 ·" in table  # the strongest, and half of it
    assert r"**feature 17 17 -1.50**" in table
    assert table.count("feature ") == 12
