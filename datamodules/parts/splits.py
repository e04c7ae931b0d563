"""Divide the rows of a data set into training, validation and test set."""

import torch
from torch import Generator, Tensor

from datamodules.parts.batches import derive_seed
from engine.contracts import DataError, Split
from engine.terminal import count_of

# N rows


def hold_out(
    labels: dict[Split, Tensor], fractions: dict[Split, float], seed: int, groups: Tensor | None = None
) -> dict[Split, tuple[Split, Tensor]]:
    """Return, for each split, the source of its rows and their indices in this source.

    A split without a source gets a fraction of the rows of "train".

    Args:
        labels: (N,) of each source.
        fractions: For each split without a source: its fraction of the remaining training rows.
        seed: Seed of the random choice.
        groups: (N,) group of each row of "train", as for `group_split`; None for a stratified choice.

    Raises:
        DataError: if a set would be empty.
    """
    rows = {split: (split, torch.arange(len(values))) for split, values in labels.items()}
    for split, fraction in fractions.items():
        if split in rows:
            continue
        training, key = rows["train"][1], f"data.{split}_fraction"
        if groups is None:
            first, second = stratified_split(labels["train"][training], fraction, seed, key)
        else:
            first, second = group_split(groups[training], fraction, seed, key)
        rows["train"], rows[split] = ("train", training[first]), ("train", training[second])
    return rows


def stratified_split(labels: Tensor, fraction: float, seed: int, key: str = "fraction") -> tuple[Tensor, Tensor]:
    """Split rows into two sets, so that the second set has the same fraction of every class.

    Args:
        labels: (N,).
        fraction: Fraction of the rows in the second set, rounded per class.
        seed: Seed of the random choice.
        key: Config key of the fraction, for errors.

    Returns:
        Row indices of the first and of the second set, both in ascending order.

    Raises:
        DataError: if one of the sets would be empty.
    """
    is_second = torch.zeros(len(labels), dtype=torch.bool)
    generator, largest = Generator().manual_seed(derive_seed(seed)), 0
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        chosen = torch.randperm(len(rows), generator=generator)[: round(fraction * len(rows))]
        is_second[rows[chosen]] = True
        largest = max(largest, len(rows))
    first, second = torch.nonzero(~is_second).flatten(), torch.nonzero(is_second).flatten()
    if min(len(first), len(second)) == 0:
        problem = f"{fraction} of {len(labels)} samples leaves sets of {len(first)} and {len(second)}"
        hint = f"it is rounded in each class, and the largest class has {count_of(largest, 'sample')}"
        raise DataError(f"{key}: {problem}; choose another fraction: {hint}")
    return first, second


def group_split(groups: Tensor, fraction: float, seed: int, key: str = "fraction") -> tuple[Tensor, Tensor]:
    """Split rows into two sets so that the rows of a group are in one set.

    Args:
        groups: (N,) number of the group of each row; -1 for a row that is a group of its own.
        fraction: Fraction of the rows in the second set, approximately.
        seed: Seed of the random choice.
        key: Config key of the fraction, for errors.

    Returns:
        Row indices of the first and of the second set, both in ascending order.

    Raises:
        DataError: if one of the sets would be empty.
    """
    alone = torch.nonzero(groups < 0).flatten()
    own = groups.clone()
    own[alone] = int(groups.max()) + 1 + torch.arange(len(alone))
    group_of = own.unique(return_inverse=True)[1]
    sizes = group_of.bincount()
    order = torch.randperm(len(sizes), generator=Generator().manual_seed(derive_seed(seed)))
    limit = max(fraction * len(groups), int(sizes.min()))
    order = order[sizes[order] <= limit]  # a larger group is in the first set
    ends = sizes[order].cumsum(0)
    # a group belongs to the second set if its middle lies within the fraction
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    chosen[order] = ends - sizes[order] / 2 <= limit
    second = chosen[group_of]
    if second.all() or not second.any():
        hint = f"data.group_column has {count_of(len(sizes), 'group')}; choose another fraction"
        raise DataError(f"{key}: {fraction} of {len(groups)} rows leaves an empty set; {hint}")
    return torch.nonzero(~second).flatten(), torch.nonzero(second).flatten()
