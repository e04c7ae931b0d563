"""Attributions: cases with known results, and the axiom of completeness."""

import pytest
import torch
from torch import Tensor, nn

from callbacks.gallery import _sample
from engine.inference.integrated_gradients import integrated_gradients
from lit_models.classifier import LitClassifier
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP
from tests import files


class Linear(LitClassifier):
    """The logits are a matrix times the input."""

    accepts = ("features",)

    def __init__(self, input_shape, num_classes, **options) -> None:
        super().__init__(input_shape, num_classes, **options)
        self.network = nn.Linear(input_shape[0], num_classes)


def bert(*arguments, **options) -> LitClassifier:
    from lit_models.bert import LitBERT

    return LitBERT(*arguments, **options)


def test_linear_model_has_attributions_of_weight_times_difference():
    torch.manual_seed(0)
    model = Linear((4,), 3).eval()
    model.set_normalization(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 0.5, 1.0]))
    sample = torch.tensor([[5.1, 3.5, 1.4, 0.2]])
    first, second = model(sample)[0].topk(2).indices.tolist()
    weight = model.network.weight
    known = (weight[first] - weight[second]) * (sample[0] - model.input_mean) / model.input_std
    with torch.inference_mode():  # as in a test
        attributions = integrated_gradients(model, sample.clone())
    assert torch.allclose(attributions, known.detach(), atol=1e-5)


@pytest.mark.needs("bert")
def test_sum_over_words_has_attributions_of_each_term(monkeypatch):
    """The logits are a sum over words, so the contribution of each word is known."""
    model = bert((), 2, vocab_size=20, max_length=8, hidden_size=32).eval()

    def attribution_inputs(inputs):
        words, ids = model.network.encoder.get_input_embeddings(), inputs["input_ids"]
        zeros = torch.zeros(1, ids.shape[1], words.embedding_dim)
        return words(ids), zeros, lambda given: model.network.head(given.sum(1))

    monkeypatch.setattr(model, "attribution_inputs", attribution_inputs)
    ids = torch.tensor([[3, 7, 11, 2]])
    vectors = model.network.encoder.get_input_embeddings()(ids)[0]  # (T, E)
    first, second = model.network.head(vectors.sum(0)).topk(2).indices.tolist()
    known = vectors @ (model.network.head.weight[first] - model.network.head.weight[second])
    attributions = integrated_gradients(model, {"input_ids": ids}).sum(1)
    assert torch.allclose(attributions, known.detach(), atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "bert on images", "bert on words"])
def test_attributions_add_up_to_the_explained_value(kind):
    """The axiom of completeness does not hold if a part of the input is forgotten or a step is wrong."""
    torch.manual_seed(0)
    inputs: Tensor | dict[str, Tensor] = torch.randint(0, 256, (1, 1, 28, 28), dtype=torch.uint8)
    if kind == "mlp":
        model = LitMLP((1, 28, 28), 10, [32], activation="gelu")
    elif kind == "cnn":
        model = LitCNN((1, 28, 28), 10)
    elif kind == "bert on images":
        model = bert((1, 28, 28), 10, patch_size=7, hidden_size=32)
    else:
        model = bert((), 2, vocab_size=30, max_length=16, hidden_size=32)
        inputs = {"input_ids": torch.randint(1, 30, (1, 9))}
    model.eval()
    if isinstance(inputs, Tensor):
        model.set_normalization(torch.full((1, 1, 1), 128.0), torch.full((1, 1, 1), 74.0))
    sample, baseline, compute_logits = model.attribution_inputs(inputs)
    first, second = model(inputs)[0].topk(2).indices.tolist()
    ends = [(logits[0, first] - logits[0, second]).item() for logits in map(compute_logits, (sample, baseline))]
    attributions = integrated_gradients(model, inputs, steps=300)
    assert attributions.shape == sample.shape[1:]
    assert float(attributions.sum()) == pytest.approx(ends[0] - ends[1], rel=0.02, abs=2e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


TOKENIZED = {
    "tensors": {"return_tensors": "pt"},
    "offsets": {"return_tensors": "pt", "return_offsets_mapping": True},
    "lengths": {"return_tensors": "pt", "return_length": True, "return_special_tokens_mask": True},
    "overflow": {"return_tensors": "pt", "return_overflowing_tokens": True, "truncation": True, "max_length": 16},
    "padding": {"return_tensors": "pt", "padding": "max_length", "max_length": 16},
    "padding on the left": {"return_tensors": "pt", "padding": "max_length", "max_length": 16, "padding_side": "left"},
    "only ids": {"return_tensors": "pt", "return_attention_mask": False, "return_token_type_ids": False},
    "a pair": {"return_tensors": "pt", "text_pair": "it is long", "return_offsets_mapping": True},
}


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(files.minilm())


@pytest.mark.needs("bert")
@pytest.mark.parametrize("kind", TOKENIZED)
@pytest.mark.parametrize("extra", [{}, {"text": ["a nice film"], "row": 3, "weight": torch.ones(1), "none": None}])
def test_what_a_model_takes_from_a_tokenizer_can_be_explained(kind, extra, tokenizer):
    model = bert((), 2, vocab_size=len(tokenizer), max_length=16, hidden_size=32, num_layers=1).eval()
    inputs = {**tokenizer("a nice film", **TOKENIZED[kind]), **extra}
    with torch.inference_mode():
        assert model(inputs).shape == (1, 2)
        attributions = integrated_gradients(model, inputs, steps=2)
    assert attributions.shape == (inputs["input_ids"].shape[1], 32)


@pytest.mark.needs("bert")
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sample_has_no_padding_on_either_side(side, tokenizer):
    batch = {**tokenizer(["a nice film", "bad"], return_tensors="pt", padding=True, padding_side=side)}
    batch |= {"rows": torch.arange(2), "texts": ["a", "b"], "offsets": torch.zeros(2, 5, 2)}
    sample = _sample(batch, 1)
    assert sample["input_ids"].tolist() == [tokenizer("bad")["input_ids"]]
    assert set(sample) == {"input_ids", "token_type_ids", "attention_mask"}
    assert sample["attention_mask"].all()


@pytest.mark.needs("bert")
def test_features_are_the_input_of_the_last_layer():
    for model in (LitMLP((4,), 3, [8]), bert((4,), 3, hidden_size=32)):
        model.eval()
        inputs = torch.randn(5, 4)
        head = [layer for layer in model.network.modules() if isinstance(layer, nn.Linear)][-1]
        assert torch.allclose(head(model.features(inputs)), model(inputs), atol=1e-6)
    headless = Linear((4,), 3)
    headless.network = nn.Sequential(nn.Linear(4, 7), nn.Softmax(1))
    assert headless.features(torch.randn(2, 4)) is None
