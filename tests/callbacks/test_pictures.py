"""The pictures and tables of TensorBoard, for cases that are hard to draw."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torchmetrics.functional.classification import multiclass_calibration_error

from callbacks import confusion_matrix, first_filters, projector, reliability_diagram
from callbacks.gallery import GAP, SIDE, Example, Gallery, escaped, picture, table
from callbacks.parts.drawing import BLUE, ORANGE, VERMILION, blend, canvas, drawable, shortened, upwards
from callbacks.pr_curves import PRCurves
from lit_models.bert import LitBERT
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP


@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
def test_a_confusion_matrix_can_be_drawn_for_any_number_of_classes(num_classes):
    counts = np.eye(num_classes, dtype=int) * 90 + 1
    counts[0] = 0  # a class without samples
    shown = confusion_matrix.draw_matrix(counts, [f"class {i}" for i in range(num_classes)])
    assert shown.dtype == np.uint8
    assert shown.shape[2] == 3
    assert max(shown.shape) < 1200


def where(shown: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Row and column (N, 2) of every pixel of a colour."""
    return np.argwhere((shown == colour).all(2))


def test_a_cell_is_as_dark_as_its_share_of_the_true_class():
    shown = confusion_matrix.draw_matrix(np.array([[8, 2], [0, 10]]), ["cat", "dog"])
    shade = [blend(confusion_matrix.LIGHT, confusion_matrix.DARK, share) for share in (0.8, 0.2, 0.0, 1.0)]
    cats, taken_for_dogs, taken_for_cats, dogs = (where(shown, one).mean(0) for one in shade)
    assert cats[0] == pytest.approx(taken_for_dogs[0], abs=3)
    assert taken_for_cats[0] == pytest.approx(dogs[0], abs=3)
    assert cats[0] < dogs[0]  # a true class is a row
    assert cats[1] == pytest.approx(taken_for_cats[1], abs=3)
    assert cats[1] < dogs[1]


def test_the_pairs_that_are_confused_most_are_named():
    counts = np.array([[5, 3, 0], [4, 5, 1], [0, 0, 9]])
    assert confusion_matrix.confused(counts, ["cat", "dog", "frog"], 5, 300) == [
        "7 times cat (3) and dog (4)",
        "1 time dog (1) and frog (0)",
    ]
    assert confusion_matrix.confused(np.eye(3, dtype=int), ["cat", "dog", "frog"], 5, 300) == []


@pytest.mark.parametrize("num_classes", [2, 10])
def test_long_names_leave_room_for_the_counts(num_classes):
    counts = np.full((num_classes, num_classes), 12_345)
    shown = confusion_matrix.draw_matrix(counts, ["a name of some length" * 3] * num_classes)
    assert not (shown[:, -1] != 255).any()  # nothing is cut off


def test_the_title_is_whole_above_few_classes():
    shown = confusion_matrix.draw_matrix(np.eye(2, dtype=int), ["0", "1"])
    assert not (shown[:, :3] != 255).any()


def test_of_a_thousand_classes_those_are_drawn_that_are_confused_most():
    counts = np.diag(np.full(1000, 9))
    counts[7, 500] = counts[2, 3] = 1
    assert confusion_matrix.most_confused(counts, 4) == [2, 3, 7, 500]


@pytest.mark.parametrize("num_classes", [2, 26, 100, 1000])
def test_bars_for_any_number_of_classes(num_classes):
    hits = np.arange(num_classes)
    shown = confusion_matrix.draw_bars(hits, np.maximum(hits, 3), ["a name of some length" * 3] * num_classes)
    assert shown.shape[0] < 800
    assert not (shown[:, -1] != 255).any()  # nothing is cut off


def test_a_bar_is_as_long_as_the_share_that_is_recognised():
    def lengths(hits: list[int], rows: int) -> list[int]:
        shown = confusion_matrix.draw_bars(np.array(hits), np.full(len(hits), 100), ["one"] * len(hits))
        lines = np.arange(rows) * confusion_matrix.ROW + 24 + confusion_matrix.ROW // 2
        return [len(where(shown[[line]], BLUE)) for line in lines]

    tenth, half, full = lengths([10, 50, 100], 3)
    assert tenth == pytest.approx(full / 10, abs=2)
    assert half == pytest.approx(full / 2, abs=2)
    worst_first = lengths(list(range(99, 39, -2)), 15)  # two columns of thirty classes
    assert worst_first == sorted(worst_first)
    assert worst_first[0] < worst_first[-1]


def test_bars_of_a_reliability_diagram_are_what_was_right_beside_what_was_expected():
    shown = reliability_diagram.draw(np.full(50, 0.95), np.arange(50) < 10, 0.75)
    heights = np.unique(where(shown, BLUE)[:, 1], return_counts=True)[1]
    assert heights.max() == pytest.approx(0.2 * reliability_diagram.SIDE, abs=4)
    gap = np.ptp(where(shown, ORANGE)[:, 0])
    assert gap == pytest.approx(0.75 * reliability_diagram.SIDE, abs=4)


def test_a_reliability_diagram_shows_its_error():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 4, generator=generator), torch.randint(0, 4, (500,), generator=generator)
    sure, said = logits.softmax(1).max(1)
    bins = np.minimum((sure.numpy() * reliability_diagram.BINS).astype(int), reliability_diagram.BINS - 1)
    gaps = [
        abs((said == labels).float().numpy()[bins == i].mean() - sure.numpy()[bins == i].mean()) * (bins == i).mean()
        for i in set(bins)
    ]
    error = multiclass_calibration_error(logits, labels, num_classes=4, n_bins=reliability_diagram.BINS)
    assert sum(gaps) == pytest.approx(error.item(), abs=1e-5)  # its bins are those of the diagram
    assert reliability_diagram.draw(sure.numpy(), (said == labels).numpy(), error.item()).shape[2] == 3


def test_a_line_upwards_covers_nothing_of_the_one_beside_it():
    image, _ = canvas(60, 60)
    for middle in (20, 29, 38):
        upwards(image, "bbb", middle, 50, 9)
    columns = (np.asarray(image) < 128).all(2).sum(0)
    assert columns[16:25].tolist() == columns[25:34].tolist() == columns[34:43].tolist()


def test_a_class_name_that_the_font_cannot_draw_is_shown_by_its_number():
    assert drawable(["good", "好评", "not bad"]) == ["good", "1", "not bad"]


def test_a_long_name_is_cut_off_with_a_mark():
    assert shortened("short", 100, 15) == "short"
    assert shortened("a very long name of a class", 60, 15).endswith("…")
    assert shortened("long" * 100_000, 60, 15) == shortened("long" * 10, 60, 15)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (LitCNN([3, 32, 32], 10), (32, 3, 3, 3)),
        (LitMLP([1, 28, 28], 10, [16]), (16, 1, 28, 28)),
        (LitBERT([3, 32, 32], 10, patch_size=8, hidden_size=32), (32, 3, 8, 8)),
        (LitMLP([4], 3), None),
    ],
)
def test_first_filters_are_those_of_the_layer_that_sees_the_image(model, shape):
    found = first_filters.first_filters(model.eval())
    assert (None if found is None else tuple(found.shape)) == shape
    if found is not None:
        page = first_filters.grid(found.detach())
        assert page.shape[0] == 3
        assert 0 <= page.min() <= page.max() == 1


@pytest.mark.parametrize("shape", [(7, 1, 28, 28), (500, 3, 300, 200), (2, 5, 10, 10)])
def test_thumbnails_fit_into_one_picture(shape):
    images = (torch.rand(shape) * 255).to(torch.uint8)
    small = projector.thumbnails(images)
    side = int(np.ceil(np.sqrt(len(small))))
    assert small.shape[:2] == (shape[0], 3)
    assert side * max(small.shape[2:]) <= projector.LARGEST_SPRITE
    assert 0 <= small.min() <= small.max() <= 1


def gallery(num_examples: int, stage: str = "test") -> Gallery:
    one = Gallery(num_examples)
    one._stage = stage
    one.begin(None)
    return one


def test_the_gallery_keeps_the_surest_mistakes_of_all_batches():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(300, 4, generator=generator), torch.randint(0, 4, (300,), generator=generator)
    inputs = torch.arange(300.0)[:, None]
    kept = gallery(5)
    for rows in torch.arange(300).split(37):
        kept.see(None, inputs[rows], logits[rows], labels[rows])
    sure, said = logits.softmax(1).max(1)
    wrong = torch.where(said != labels, sure, -1.0).topk(5)
    assert [one.inputs.item() for one in kept._mistakes] == wrong.indices.tolist()
    assert [one.probability for one in kept._mistakes] == pytest.approx(wrong.values.tolist())
    assert sorted(kept._hits) == [0, 1, 2, 3]
    assert all(one.label == one.predicted == said[int(one.inputs)] for one in kept._hits.values())


def test_a_text_is_kept_without_its_padding():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    kept = gallery(2)
    ids = torch.tensor([[5, 6, 0], [7, 8, 9]])
    kept.see(None, {"input_ids": ids, "attention_mask": mask}, torch.tensor([[2.0, 0.0]] * 2), torch.tensor([1, 1]))
    assert [one.inputs["input_ids"].tolist() for one in kept._mistakes] == [[[5, 6]], [[7, 8, 9]]]


def test_what_a_text_says_is_no_markdown():
    assert escaped("a|b *c* <d> [e](f)") == r"a\|b \*c\* \<d\> \[e\]\(f\)"


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_galleries_of_any_images(channels, dtype):
    inputs = (torch.rand(1, channels, 20, 30) * 200).to(dtype)
    examples = [Example(inputs, 0, i % 2, 0.9) for i in range(7)]
    for shares in ([None] * 7, [torch.randn(channels, 20, 30)] * 7):
        shown = picture(examples, shares, ["a" * 40, "b"])
        assert shown.dtype == np.uint8
        assert not (shown[:, -1] != 255).any()  # nothing is cut off


def test_orange_speaks_for_the_predicted_class_and_blue_against_it():
    share = torch.ones(1, 10, 10)
    share[:, :, 5:] = -1
    shown = picture([Example(torch.full((1, 1, 10, 10), 0.5), 0, 1, 0.9)], [share], ["no", "yes"])
    begin = GAP + SIDE + 4
    beside = shown[GAP : GAP + SIDE, begin : begin + SIDE]
    assert len(where(beside[:, : SIDE // 2], VERMILION)) == len(where(beside[:, SIDE // 2 :], BLUE)) == SIDE * SIDE // 2
    assert len(where(beside[:, : SIDE // 2], BLUE)) == 0


def test_a_mistake_has_an_orange_caption_and_a_hit_a_blue_one():
    for label, colour, other in ((0, VERMILION, BLUE), (1, BLUE, VERMILION)):
        shown = picture([Example(torch.zeros(1, 1, 10, 10), label, 1, 0.9)], [None], ["no", "yes"])
        assert len(where(shown, colour)) > 0
        assert len(where(shown, other)) == 0


class Written:
    """A writer of TensorBoard that keeps what it is given."""

    def __init__(self, folder="") -> None:
        self.log_dir = folder
        self.curves: list[str] = []

    def add_pr_curve_raw(self, name, *_, **__) -> None:
        self.curves.append(name)

    def add_embedding(self, features, rows, images, step, name, header) -> None:
        self.features, self.rows, self.header = features, rows, header


MODULE = SimpleNamespace(
    hparams={"num_classes": 3, "class_names": ["a", "b", "c"]}, device=torch.device("cpu"), features=lambda rows: 2 * rows,
    trainer=SimpleNamespace(is_global_zero=True, global_step=7, strategy=SingleDeviceStrategy()),
)  # fmt: skip


def test_the_worst_classes_have_curves():
    labels = torch.arange(300) % 3
    logits = 5.0 * torch.nn.functional.one_hot(labels, 3)
    logits[:150, 1] = torch.randn(150, generator=torch.Generator().manual_seed(0))  # nothing is known of the second
    one, writer = PRCurves(num_classes=1), Written()
    one.begin(MODULE)
    one.see(MODULE, None, logits, labels)
    one.show(MODULE.trainer, MODULE, "test", writer, one.gather())
    assert writer.curves == ["pr_curves/b"]


@pytest.mark.parametrize("kind", [PRCurves, reliability_diagram.ReliabilityDiagram])
def test_logits_of_a_small_batch_are_not_taken_for_probabilities(kind):
    logits, labels = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    found = []
    for size in (1, 30):
        one = kind()
        one.begin(MODULE)
        for rows in torch.arange(30).split(size):
            one.see(MODULE, None, logits[rows], labels[rows])
        found.append(one.gather())
    one.begin(MODULE)
    one.see(MODULE, None, logits.log_softmax(1), labels)  # below 0, and of the same probabilities
    for gathered in found:
        for mine, theirs in zip(_listed(gathered), _listed(one.gather()), strict=True):
            assert np.allclose(mine, theirs, atol=1e-6)


def _listed(gathered) -> tuple:
    return gathered if isinstance(gathered, tuple) else (gathered,)


def test_the_projector_knows_true_and_predicted_classes(tmp_path):
    one, writer = projector.Projector(num_samples=3), Written(tmp_path)
    one.begin(MODULE)
    inputs, logits = torch.arange(8.0).view(4, 2), torch.eye(3)[[0, 1, 2, 2]]
    one.see(MODULE, inputs, logits, torch.tensor([0, 2, 1, 0]))
    one.show(MODULE.trainer, MODULE, "test", writer, None)
    assert writer.header == ["true", "predicted", "right"]
    assert writer.rows == [["a", "a", "yes"], ["c", "b", "no"], ["b", "c", "no"]]
    assert torch.equal(writer.features, 2 * inputs[:3])


def test_a_page_is_of_limited_length():
    module = SimpleNamespace(spec=SimpleNamespace(feature_names=()))
    shown = table([Example(torch.rand(1, 5000), 0, 1, 0.8)], [None], ["no", "yes\n| or so"], module)
    assert shown.count("feature ") == 12
    assert shown.endswith("… |")
    assert "*yes \\| or so (80 %)" in shown
    assert len(shown.splitlines()) == 3


def test_a_row_of_many_features_shows_those_that_decide():
    class Spec:
        feature_names = ()

    class Module:
        spec = Spec()

    shares = torch.zeros(30)
    shares[[3, 5, 17]] = torch.tensor([2.0, 1.0, -1.5])
    shown = table([Example(torch.arange(30.0)[None], 0, 1, 0.8)], [shares], ["no", "yes"], Module())
    assert "| *yes (80 %), is no:* " in shown
    assert r"**feature 3 3 +2.00** · feature 5 5 +1.00 ·" in shown  # the strongest, half of it
    assert r"**feature 17 17 -1.50**" in shown
    assert shown.count("feature ") == 12
