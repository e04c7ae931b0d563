"""Training steps and evaluations stay on the device of the model, and do not synchronize with it.

The device is torch's `meta`, whose tensors have no values. torch does not mix them with tensors of other devices. It also
refuses operations that read a value, such as `.item()`. On a GPU, such an operation would wait for all earlier operations.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_models import optimizers
from lit_models.bert import LitBERT
from lit_models.classifier import LitClassifier
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP

IMAGES, NUMBERS = torch.rand(4, 3, 16, 16), torch.rand(4, 3)
TOKENS = {"input_ids": torch.ones(4, 6, dtype=torch.long), "attention_mask": torch.ones(4, 6, dtype=torch.bool)}
SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
MODELS: dict[str, tuple[Callable[[], LitClassifier], Any]] = {
    "mlp": (lambda: LitMLP((3,), 3, normalization="batch", dropout=0.1, class_weights="balanced"), NUMBERS),
    "mlp, ensemble": (lambda: LitMLP((3,), 3, num_members=2, l1_penalty=0.1), NUMBERS),
    "mlp, images": (lambda: LitMLP((3, 16, 16), 3), IMAGES),
    "cnn": (lambda: LitCNN((3, 16, 16), 3, widths=[4, 8], whitening=True), IMAGES),
    "cnn, two classes": (lambda: LitCNN((3, 16, 16), 2, widths=[4, 8], stem=True), IMAGES),
    "bert, features": (lambda: LitBERT((3,), 3, **SMALL), NUMBERS),
    "bert, images": (lambda: LitBERT((3, 16, 16), 3, patch_size=8, **SMALL), IMAGES),
    "bert, texts": (lambda: LitBERT((), 3, vocab_size=9, pad_id=0, max_length=8, **SMALL), TOKENS),
    "bert, mean": (lambda: LitBERT((), 3, vocab_size=9, pad_id=0, max_length=8, pooling="mean", **SMALL), TOKENS),
}


def to_meta(inputs: Any) -> Any:
    return inputs.to("meta") if isinstance(inputs, torch.Tensor) else {k: v.to("meta") for k, v in inputs.items()}


@pytest.mark.parametrize("name", MODELS)
def test_steps_and_evaluations_stay_on_their_device(name, monkeypatch):
    # `_log_step` reads the loss, but only in a few steps
    monkeypatch.setattr(LitClassifier, "_log_step", lambda *_: None)
    make, inputs = MODELS[name]
    model = make().to("meta")
    batch = to_meta(inputs), torch.tensor([0, 1, 0, 1], device="meta")
    optimizer = optimizers.adamw(model.network, lr=0.1)
    loss = model.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    assert loss.device.type == "meta"
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    model.eval()
    with torch.no_grad():
        assert model.test_step(batch, 0).device.type == "meta"


@pytest.mark.parametrize(
    "mistake", [lambda loss: loss.item(), lambda loss: loss + torch.ones(1), lambda loss: loss.cpu()]
)
def test_a_mistake_is_found(mistake, monkeypatch):
    loss = LitClassifier.loss
    monkeypatch.setattr(LitClassifier, "loss", lambda *arguments: mistake(loss(*arguments)))
    with pytest.raises((RuntimeError, NotImplementedError)):
        test_steps_and_evaluations_stay_on_their_device("mlp", monkeypatch)
