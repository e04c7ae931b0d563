"""A multilayer perceptron (MLP). Inputs of any shape are flattened."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from engine.contracts import OptionError, PrunableLayer
from lit_models.classifier import LitClassifier, mean_of_members
from lit_models.parts.feature_embeddings import FeatureEmbeddings

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
NORMS = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}

# B batch, D columns, E size of an embedding, F width of a layer, M members of an ensemble, K classes


class MLP(nn.Module):
    """Linear layers with normalization, activation and dropout between them.

    Args:
        sizes: Widths of the flattened input and of each hidden layer.
        num_outputs: Width of the output (K).
        activation: Module class of the activation.
        norm: Module class of the normalization, constructed with a width; None for no normalization.
        dropout: Probability of zeroing a hidden unit.
        embeddings: Layer that turns the columns of a table (B, D) into vectors (B, D, E); None for other inputs.
        num_members: Number of members of an ensemble, which share the hidden layers (M).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        num_outputs: int,
        activation: type[nn.Module],
        norm: Any,
        dropout: float,
        embeddings: FeatureEmbeddings | None = None,
        num_members: int = 1,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        layers: list[nn.Module] = []
        for width, next_width in pairwise(sizes):
            layers.append(nn.Linear(width, next_width, bias=norm is None))  # a norm adds its own bias
            layers += [norm(next_width)] if norm else []
            layers += [activation(), *([nn.Dropout(dropout)] if dropout > 0 else [])]
        last: nn.Module = nn.Linear(sizes[-1], num_outputs)
        self.layers = nn.Sequential(
            *layers, last if num_members == 1 else MemberHeads(num_members, sizes[-1], num_outputs)
        )
        self.members = MemberScales(num_members, sizes[0]) if num_members > 1 else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, K), or (B, M, K) of an ensemble."""
        return self.classify(inputs if self.embeddings is None else self.embeddings(inputs))

    def classify(self, inputs: Tensor) -> Tensor:
        """Return the same logits as `forward`. If the inputs are a table, its columns are already embedded (B, D, E)."""
        return self.layers(self.members(inputs.flatten(1)))


class MemberScales(nn.Module):
    """Scales inputs (B, F) for each member of an ensemble (B, M, F), so that the members differ.

    TabM-mini (Gorishniy et al. 2025, https://arxiv.org/abs/2410.24210).
    """

    def __init__(self, num_members: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(2.0 * torch.randint(0, 2, (num_members, width)) - 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, None, :] * self.weight


class MemberHeads(nn.Module):
    """A linear layer for each member: (B, M, F) to (B, M, K)."""

    def __init__(self, num_members: int, width: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_members, width, num_outputs) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(num_members, num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.einsum("bmf,mfk->bmk", inputs, self.weight) + self.bias


class LitMLP(LitClassifier):
    """Multilayer perceptron for features, tables or images.

    Args:
        hidden_sizes: Width of each hidden layer; [] for a linear classifier.
        activation: Activation after each hidden layer.
        dropout: Probability of zeroing a hidden unit.
        normalization: Normalization between each hidden layer and its activation.
        embedding_size: For a table: size of the vector of a column.
        numeric_embedding: For a table: function of a number that is added to its linear embedding.
        num_members: Number of ensemble members, which share the hidden layers. Predicted probabilities are averaged over the
            members.
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
        embedding_size: Annotated[int, ">= 1"] = 24,
        numeric_embedding: Literal["none", "piecewise_linear", "periodic"] = "none",
        num_members: Annotated[int, ">= 1"] = 1,
        **options: Any,
    ) -> None:
        super().__init__(input_shape, num_classes, **options)
        width, embeddings = math.prod(input_shape), None
        if (columns := self.hparams["columns"]) is not None:
            counts = [len(categories) for categories in columns.values()]
            embeddings, width = FeatureEmbeddings(counts, embedding_size, numeric_embedding), width * embedding_size
        if num_members > 1 and normalization == "batch":
            raise OptionError("model.normalization: batch is not possible for several members; choose layer or none")
        self.num_members = num_members
        self.network = MLP(
            [width, *hidden_sizes], num_classes, ACTIVATIONS[activation], NORMS[normalization], dropout,
            embeddings, num_members,
        )  # fmt: skip

    def initialize_from_data(self, inputs: Any, mean: Tensor, std: Tensor) -> None:
        """Set the normalization, and compute the statistics of the columns of a table."""
        super().initialize_from_data(inputs, mean, std)
        if isinstance(self.network, MLP) and self.network.embeddings is not None:
            self.network.embeddings.fit(inputs)

    def prunable_layers(self) -> list[PrunableLayer]:
        """Return the hidden layers."""
        assert isinstance(self.network, MLP)
        layers = self.network.layers
        starts = [index for index, module in enumerate(layers) if isinstance(module, nn.Linear | MemberHeads)]
        found = []
        for index, (start, end) in enumerate(pairwise(starts)):
            producers = [f"layers.{number}" for number in range(start, end)]  # with the norm; others have no tensors
            width = self.hparams["hidden_sizes"][index]
            found.append(PrunableLayer(("hidden_sizes", index), width, producers, [f"layers.{end}"]))
        return found

    def attribution_inputs(self, inputs: Any) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return what `LitClassifier.attribution_inputs` returns.

        For a table, the sample consists of its column vectors (1, D, E). The baseline is the vectors of a row in which all
        values are missing.
        """
        network = self.network
        if not isinstance(network, MLP) or network.embeddings is None:
            return super().attribution_inputs(inputs)

        def logits(vectors: Tensor) -> Tensor:
            found = network.classify(vectors)
            return found if self.num_members == 1 else mean_of_members(found)

        return network.embeddings(inputs), network.embeddings(torch.full_like(inputs, math.nan)), logits
