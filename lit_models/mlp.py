"""A multilayer perceptron: any input, flattened."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from lit_models.classifier import LitClassifier

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
NORMS = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLP(nn.Module):
    """Linear layers with normalisation, activation and dropout between them.

    Args:
        sizes: Widths from the flattened input to the last hidden layer.
        num_outputs: Width of the output.
        activation: A class of activation.
        norm: A class of normalisation that takes a width, or None.
        dropout: Probability of dropping a hidden unit.
    """

    def __init__(
        self, sizes: Sequence[int], num_outputs: int, activation: type[nn.Module], norm: Any, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, next_width in pairwise(sizes):
            layers.append(nn.Linear(width, next_width, bias=norm is None))  # a norm has a bias of its own
            layers += [norm(next_width)] if norm else []
            layers += [activation(), *([nn.Dropout(dropout)] if dropout > 0 else [])]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs.flatten(1))  # (B, K)


class LitMLP(LitClassifier):
    """Multilayer perceptron on features or images.

    Args:
        hidden_sizes: Width of each hidden layer; [] for a linear classifier.
        activation: After each hidden layer.
        dropout: Probability of dropping a hidden unit.
        normalization: Between each hidden layer and its activation.
        options: Those of `LitClassifier`.
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
