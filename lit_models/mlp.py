"""A multilayer perceptron (MLP). Inputs of any shape are flattened."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from lit_models.classifier import LitClassifier

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
NORMS = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}

# B batch, K classes


class MLP(nn.Module):
    """Linear layers with normalization, activation and dropout between them.

    Args:
        sizes: Widths of the flattened input and of each hidden layer.
        num_outputs: Width of the output (K).
        activation: Module class of the activation.
        norm: Module class of the normalization, constructed with a width; None for no normalization.
        dropout: Probability of zeroing a hidden unit.
    """

    def __init__(
        self, sizes: Sequence[int], num_outputs: int, activation: type[nn.Module], norm: Any, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, next_width in pairwise(sizes):
            layers.append(nn.Linear(width, next_width, bias=norm is None))  # a norm adds its own bias
            layers += [norm(next_width)] if norm else []
            layers += [activation(), *([nn.Dropout(dropout)] if dropout > 0 else [])]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs.flatten(1))  # (B, K)


class LitMLP(LitClassifier):
    """Multilayer perceptron for features or images.

    Args:
        hidden_sizes: Width of each hidden layer; [] for a linear classifier.
        activation: Activation after each hidden layer.
        dropout: Probability of zeroing a hidden unit.
        normalization: Normalization between each hidden layer and its activation.
        options: Arguments of `LitClassifier`.
    """

    accepts = ("features", "image")

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_sizes: Annotated[Sequence[int], ">= 1"] = (128,),
        activation: Literal["relu", "gelu", "silu", "tanh"] = "relu",
        dropout: Annotated[float, ">= 0, < 1"] = 0.0,
        normalization: Literal["none", "batch", "layer"] = "none",
        **options: Any,
    ) -> None:
        super().__init__(input_shape, num_classes, **options)
        sizes = [math.prod(input_shape), *hidden_sizes]
        self.network = MLP(sizes, num_classes, ACTIVATIONS[activation], NORMS[normalization], dropout)
