"""Embeddings of the columns of a table: each number and each category becomes a vector.

Numbers may be missing (NaN) and have any scale. All statistics come from the training set and are stored in checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

# N samples, B batch, D columns, R columns with numbers, S bins, F frequencies, E size of an embedding

NumericEmbedding = Literal["none", "piecewise_linear", "periodic"]
NUM_BINS = 64
NUM_FREQUENCIES, FREQUENCY_STD = 16, 0.1
SMOOTH_LIMIT = 3.0  # scaled numbers lie between -3 and 3
LARGEST = 1e18  # larger numbers would overflow in float32
MAX_ROWS = 1_000_000  # of the training set, for quantiles


class FeatureEmbeddings(nn.Module):
    """Maps rows of a table (B, D) to vectors (B, D, E).

    A number is scaled robustly: minus the median, divided by the interquartile range, and squeezed into (-3, 3) (Holzmüller
    et al. 2024, https://arxiv.org/abs/2407.04491). Its vector is a linear function of the scaled number, plus a function of
    the chosen embedding (Gorishniy et al. 2022, https://arxiv.org/abs/2203.05556). A missing number has the vector of the
    median plus a trained vector. A category has a trained vector; code 0 stands for missing and unknown categories.

    Args:
        num_categories: Number of categories of each column, with codes from 1 on; 0 for a column with numbers.
        size: Size of a vector (E).
        embedding: Additional embedding of numbers.
        std: Standard deviation of the initial weights.
    """

    numbers: Tensor
    categories: Tensor
    starts: Tensor
    scales: Tensor
    median: Tensor
    spread: Tensor
    offsets: Tensor
    sizes: Tensor
    order: Tensor

    def __init__(self, num_categories: Sequence[int], size: int, embedding: NumericEmbedding, std: float = 1.0) -> None:
        super().__init__()
        numbers = [column for column, count in enumerate(num_categories) if count == 0]
        categories = [column for column, count in enumerate(num_categories) if count > 0]
        self.kind, num = embedding, len(numbers)
        self.register_buffer("median", torch.zeros(num))
        self.register_buffer("spread", torch.ones(num))
        if num:
            self.weight = nn.Parameter(torch.randn(num, 2, size) * std)  # of the number, and of whether it is missing
            self.bias = nn.Parameter(torch.randn(num, size) * std)
            nn.init.zeros_(self.weight[:, 1])
        if num and embedding == "piecewise_linear":
            self.register_buffer("starts", torch.zeros(num, NUM_BINS))
            self.register_buffer("scales", torch.zeros(num, NUM_BINS))
            self.bin_weight = nn.Parameter(torch.randn(num, NUM_BINS, size) * std / math.sqrt(NUM_BINS))
        if num and embedding == "periodic":
            self.frequencies = nn.Parameter(torch.randn(num, NUM_FREQUENCIES) * FREQUENCY_STD)
            wave_weight = torch.randn(num, 2 * NUM_FREQUENCIES, size) * std / math.sqrt(2 * NUM_FREQUENCIES)
            self.wave_weight = nn.Parameter(wave_weight)
        offsets = [0]
        for column in categories:
            offsets.append(offsets[-1] + num_categories[column] + 1)
        self.register_buffer("offsets", torch.tensor(offsets[:-1]), persistent=False)
        self.register_buffer("sizes", torch.tensor([num_categories[c] for c in categories]), persistent=False)
        if categories:
            vectors = torch.randn(offsets[-1], size) * std
            vectors[offsets[:-1]] = 0  # unknown categories
            self.vectors = nn.Parameter(vectors)
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.int64), persistent=False)
        self.register_buffer("categories", torch.tensor(categories, dtype=torch.int64), persistent=False)
        self.register_buffer("order", torch.tensor(numbers + categories).argsort(), persistent=False)

    @torch.no_grad()
    def fit(self, inputs: Tensor) -> None:
        """Compute the statistics of the training set (N, D)."""
        chosen = inputs[:: max(1, len(inputs) // MAX_ROWS)]
        for i, column in enumerate(self.numbers.tolist()):
            values = chosen[:, column]
            values = values[~values.isnan()].double()
            if len(values) == 0:
                continue
            distinct, counts = torch.unique(values, return_counts=True)
            lower, middle, upper = (_quantile(distinct, counts.double(), q) for q in (0.25, 0.5, 0.75))
            spread = upper - lower or (distinct[-1] - distinct[0]) / 2 or torch.ones(())
            self.median[i], self.spread[i] = middle, spread
            if self.kind == "piecewise_linear":
                edges = bin_edges(distinct, counts)
                self.starts[i, : len(edges) - 1] = edges[:-1]
                self.scales[i, : len(edges) - 1] = (1 / edges.diff()).clamp(max=LARGEST)

    def forward(self, inputs: Tensor) -> Tensor:
        parts = []
        if len(self.numbers):
            parts.append(self._embed(inputs.index_select(1, self.numbers)))
        if len(self.categories):
            codes = inputs.index_select(1, self.categories).nan_to_num().long()
            codes = torch.where((codes < 0) | (codes > self.sizes), 0, codes)
            parts.append(nn.functional.embedding(codes + self.offsets, self.vectors))
        # indexing with [:, order] takes four times as long
        return torch.cat(parts, 1).index_select(1, self.order) if len(parts) == 2 else parts[0]

    def _embed(self, numbers: Tensor) -> Tensor:
        """Vectors (B, R, E) of numbers (B, R)."""
        is_missing = numbers.isnan()
        numbers = torch.where(is_missing, self.median, numbers)
        scaled = ((numbers - self.median) / self.spread).clamp(-LARGEST, LARGEST)
        scaled = scaled / (1 + (scaled / SMOOTH_LIMIT).square()).sqrt()
        values = torch.stack([scaled, is_missing.to(scaled.dtype)], 2)  # (B, R, 2)
        vectors = self.bias + torch.einsum("brv,rve->bre", values, self.weight)
        if self.kind == "piecewise_linear":
            filled = ((numbers[:, :, None] - self.starts) * self.scales).clamp(0, 1)  # (B, R, S)
            return vectors + torch.einsum("brs,rse->bre", filled, self.bin_weight)
        if self.kind == "periodic":
            angles = 2 * math.pi * scaled[:, :, None] * self.frequencies  # (B, R, F)
            waves = torch.cat([angles.cos(), angles.sin()], 2)
            return vectors + torch.einsum("brf,rfe->bre", waves, self.wave_weight).relu()
        return vectors


def bin_edges(distinct: Tensor, counts: Tensor) -> Tensor:
    """Return at most `NUM_BINS` + 1 edges of bins with about the same number of rows, in ascending order.

    A value that fills more than a bin, such as the 0 of a column that is mostly 0, counts as one bin, so that the other
    values keep their own bins.

    Args:
        distinct: Distinct values in ascending order.
        counts: Number of rows with each value.
    """
    if len(distinct) <= NUM_BINS + 1:
        return distinct
    weights = counts.double()
    for _ in range(8):
        weights = torch.minimum(counts.double(), weights.sum() / NUM_BINS)
    shares = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)[1:]
    return torch.unique(torch.cat([distinct[:1], *(_quantile(distinct, weights, share)[None] for share in shares)]))


def _quantile(distinct: Tensor, weights: Tensor, share: Tensor | float) -> Tensor:
    """Return a weighted quantile: the smallest value at which the cumulative weight reaches `share` of the total."""
    cumulative = weights.cumsum(0) / weights.sum()
    place = torch.searchsorted(cumulative, torch.as_tensor(share, dtype=torch.float64))
    return distinct[place.clamp(max=len(distinct) - 1)]
