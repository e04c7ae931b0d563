"""Tables in models: embeddings of columns, missing values, ensembles, class weights that balance."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.functional.classification import binary_auroc

from engine.contracts import OptionError
from lit_models.classifier import mean_of_members
from lit_models.mlp import LitMLP
from lit_models.parts.feature_embeddings import NUM_BINS, FeatureEmbeddings, bin_edges
from lit_models.parts.metrics import BinaryRanking

COLUMNS = {"age": [], "colour": ["blue", "green", "red"], "income": []}


def make_rows(count: int = 500) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(count, 2, generator=generator) * torch.tensor([10.0, 1e5]) + 40
    colours = torch.randint(0, 4, (count, 1), generator=generator).float()
    rows = torch.cat([numbers[:, :1], colours, numbers[:, 1:]], 1)
    rows[::7, 2] = torch.nan
    return rows


def make(**options) -> LitMLP:
    torch.manual_seed(0)
    model = LitMLP([3], 2, columns=COLUMNS, **options)
    model.initialize_from_data(make_rows(), torch.zeros(3), torch.ones(3))
    return model.eval()


@pytest.mark.parametrize("kind", ["none", "piecewise_linear", "periodic"])
def test_vectors_of_raw_rows_are_finite_at_any_scale(kind):
    embeddings = make(numeric_embedding=kind).network.embeddings
    rows = torch.tensor([[1e30, 2.0, -1e30], [torch.nan, torch.nan, torch.nan], [40.0, 99.0, 0.0], [0.0, -3.0, 1e-30]])
    vectors = embeddings(rows)
    assert vectors.shape == (4, 3, 24)
    assert vectors.isfinite().all()
    assert torch.equal(vectors[1:, 1], embeddings.vectors[:1].expand(3, -1))  # missing and unknown categories


def test_scaled_numbers_are_monotonic_and_limited():
    embeddings = make().network.embeddings
    nn.init.zeros_(embeddings.bias)
    nn.init.ones_(embeddings.weight)
    rows = torch.zeros(9, 3)
    rows[:, 0] = torch.tensor([-3e38, -1e30, -1e3, 30.0, 40.0, 50.0, 1e3, 1e30, 3e38])
    found = embeddings(rows)[:, 0, 0]
    assert (found.diff() >= 0).all()
    assert found[0].item() == pytest.approx(-3)
    assert found[-1].item() == pytest.approx(3)


@pytest.mark.parametrize("values", [[0.0, 1e-44, 3e-44], [1e38, -1e38, 3e38], [1e-30] * 3 + [1.0]])
def test_extreme_training_data(values):
    rows = torch.tensor(values)[:, None]
    embeddings = FeatureEmbeddings([0], 4, "piecewise_linear")
    embeddings.fit(rows)
    assert embeddings(rows).isfinite().all()


def test_a_missing_number_is_the_median_and_an_indicator():
    embeddings = make(numeric_embedding="piecewise_linear").network.embeddings
    nn.init.ones_(embeddings.weight)
    median = make_rows()[:, 2].nanmedian()
    row = torch.tensor([[30.0, 1.0, median], [30.0, 1.0, torch.nan]])
    known, missing = embeddings(row)[:, 2]
    torch.testing.assert_close(missing, known + 1)


def test_the_order_of_columns_is_kept():
    embeddings = make().network.embeddings
    first, second = embeddings(make_rows(2))
    changed = make_rows(2)
    changed[1] = changed[0]
    changed[1, 1] = (changed[0, 1] + 1) % 4
    differs = (embeddings(changed)[0] != embeddings(changed)[1]).any(1)
    assert differs.tolist() == [False, True, False]
    assert (first != second).any()


def test_robust_scaling():
    embeddings = make().network.embeddings
    values = make_rows()[:, 2]
    values = values[~values.isnan()]
    torch.testing.assert_close(embeddings.median[1], values.quantile(0.5), rtol=0, atol=2000)
    torch.testing.assert_close(embeddings.spread[1], values.quantile(0.75) - values.quantile(0.25), rtol=0.02, atol=0)


def test_bins_of_a_column_that_is_mostly_0():
    """As capital_gain of Adult: 92 % are 0, and the rest decides the class."""
    values = torch.cat([torch.zeros(9200), torch.arange(1, 801)])
    edges = bin_edges(*torch.unique(values.double(), return_counts=True))
    assert len(edges) > 0.9 * NUM_BINS
    assert edges.tolist() == sorted(set(edges.tolist()))
    assert (edges[0], edges[-1]) == (0, 800)


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [0.0, 1.0], list(range(NUM_BINS + 1)), list(range(1000))])
def test_bins_of_few_and_of_many_values(values):
    rows = torch.tensor(values)[:, None]
    embeddings = FeatureEmbeddings([0], 4, "piecewise_linear")
    embeddings.fit(rows)
    assert embeddings(rows).isfinite().all()
    filled = ((rows[:, :, None] - embeddings.starts) * embeddings.scales).clamp(0, 1).sum(2)
    assert (filled.diff(dim=0) >= 0).all()  # larger values fill more bins


def test_a_column_without_a_value():
    rows = torch.full((10, 1), torch.nan)
    embeddings = FeatureEmbeddings([0], 4, "piecewise_linear")
    embeddings.fit(rows)
    assert embeddings(rows).isfinite().all()


@pytest.mark.parametrize("kind", ["none", "piecewise_linear", "periodic"])
def test_a_checkpoint_takes_raw_rows(kind, tmp_path):
    from lightning.pytorch import Trainer

    model = make(numeric_embedding=kind, num_members=3)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_epochs=0, barebones=True)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = LitMLP.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    assert torch.equal(again(make_rows()), model(make_rows()))
    assert again.hparams["columns"] == COLUMNS


def test_an_ensemble_predicts_the_mean_of_the_probabilities():
    model = make(num_members=4)
    members = model.network(make_rows())
    assert members.shape == (500, 4, 2)
    torch.testing.assert_close(model(make_rows()).softmax(1), members.softmax(2).mean(1))
    assert (members[:, 0] != members[:, 1]).any()
    torch.testing.assert_close(mean_of_members(members[:, :1]).softmax(1), members[:, 0].softmax(1))


@pytest.mark.parametrize("options", [{}, {"class_weights": [1.0, 3.0], "label_smoothing": 0.1}])
def test_an_ensemble_is_trained_on_the_mean_of_the_losses(options, monkeypatch):
    model = make(num_members=4, **options)
    monkeypatch.setattr(model, "_log_step", lambda *_: None)
    labels = torch.arange(500) % 2
    members = model.network(make_rows())
    losses = [model.loss(members[:, i], labels) for i in range(4)]
    torch.testing.assert_close(model.training_step((make_rows(), labels), 0), torch.stack(losses).mean())


def test_members_and_batch_normalization():
    with pytest.raises(OptionError, match=r"model.normalization: batch is not possible for several members"):
        make(num_members=2, normalization="batch")
    assert make(num_members=2, normalization="layer")(make_rows()).isfinite().all()


def test_balanced_class_weights():
    model = LitMLP([3], 3, class_weights="balanced")
    model.balance_classes(torch.tensor([50, 25, 0]))
    torch.testing.assert_close(model.class_weights, torch.tensor([0.5, 1.0, 25.0]))
    labels = torch.tensor([0, 0, 1])
    expected = F.cross_entropy(torch.eye(3), labels, torch.tensor([0.5, 1.0, 25.0]))
    assert model.loss(torch.eye(3), labels) == expected
    with pytest.raises(OptionError, match="balanced needs a datamodule with splits; give one weight per class"):
        model.initialize_without_data()
    plain = LitMLP([3], 3, class_weights=[1.0, 2.0, 3.0])
    plain.balance_classes(torch.tensor([50, 25, 0]))
    assert plain.class_weights.tolist() == [1.0, 2.0, 3.0]


def test_attributions_of_a_table_add_up():
    from engine.inference.integrated_gradients import integrated_gradients

    model = make(num_members=3, numeric_embedding="piecewise_linear")
    row = make_rows()[3:4]
    found = integrated_gradients(model, row, steps=400)
    assert found.shape == (3, 24)
    with torch.no_grad():
        (first, second), *_ = model(row).topk(2).indices.tolist()
        difference = [
            logits[0, first] - logits[0, second] for logits in (model(row), model(torch.full_like(row, torch.nan)))
        ]
    torch.testing.assert_close(found.sum(), difference[0] - difference[1], rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_roc_auc_is_that_of_all_samples(batch_size):
    generator = torch.Generator().manual_seed(0)
    logits, labels = 30 * torch.randn(400, 2, generator=generator), torch.arange(400) % 2
    logits[:, 1] += 20 * labels
    metric = BinaryRanking()
    for rows in torch.arange(400).split(batch_size):
        metric.update(logits[rows], labels[rows])
    found = metric.compute()
    scores = (logits[:, 1] - logits[:, 0]).double()
    ranks = scores.argsort().argsort() / 400  # only the order matters; probabilities would be equal at 1
    assert found["roc_auc"].item() == pytest.approx(binary_auroc(ranks, labels).item(), abs=1e-6)
    assert 0.5 < found["average_precision"] < 1


def test_balanced_weights_in_a_run(tmp_path):
    import train
    from tests.runs import IRIS

    assert (
        train.main(["--config", IRIS, "model.class_weights=balanced", "trainer.max_epochs=1", f"run.root={tmp_path}"])
        == 0
    )
