"""Divide the rows of a data set into training, validation and test set, or into the folds of a cross-validation."""

from collections.abc import Container, Sequence

import torch
from torch import Generator, Tensor

from datamodules.parts.batches import derive_seed
from engine.contracts import DataError, Split
from engine.terminal import count_of

# N rows


def hold_out(
    labels: dict[Split, Tensor],
    fractions: dict[Split, float],
    seed: int,
    groups: Tensor | None = None,
    num_folds: int | None = None,
    fold: int = 0,
    class_names: Sequence[str] = (),
) -> dict[Split, tuple[Split, Tensor]]:
    """Return, for each split, the source of its rows and their indices in this source.

    A split without a source gets a fraction of the rows of "train". With folds, the first such split of `fractions` gets the
    rows of a fold instead.

    Args:
        labels: (N,) of each source.
        fractions: For each split without a source: its fraction of the remaining training rows.
        seed: Seed of the random choice.
        groups: (N,) group of each row of "train", as for `group_split`; None for a stratified choice.
        num_folds: Number of folds of the rows of "train"; None for no folds.
        fold: Number of the fold that is held out, from 0.
        class_names: Names of the classes, for errors.

    Raises:
        DataError: if a set would be empty, or if there are folds and "test" and "val" have their own sources.
    """
    rows = {split: (split, torch.arange(len(values))) for split, values in labels.items()}
    if num_folds is not None:
        held_out = held_out_split(labels)
        if held_out in labels:
            hint = "set data.val=null or data.num_folds=null"
            problem = "with data.test and data.num_folds, the validation set is a fold of data.train"
            raise DataError(f"data.val: {problem}; {hint}")
        is_in_fold = assign_folds(labels["train"], num_folds, seed, groups, class_names) == fold
        rows["train"] = "train", torch.nonzero(~is_in_fold).flatten()
        rows[held_out] = "train", torch.nonzero(is_in_fold).flatten()
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


def held_out_split(sources: Container[Split]) -> Split:
    """Return the split that a fold becomes: "test", or "val" if `sources` contains a test set."""
    return "val" if "test" in sources else "test"


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
    group_of = _number_groups(groups)
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


def assign_folds(
    labels: Tensor, num_folds: int, seed: int, groups: Tensor | None = None, class_names: Sequence[str] = ()
) -> Tensor:
    """Divide rows into folds for a cross-validation.

    Without groups, the numbers of rows of a class in two folds differ by at most 1, and so do the sizes of the folds. With
    groups, the rows of a group are in one fold, and the classes are balanced approximately.

    Args:
        labels: (N,).
        num_folds: Number of folds.
        seed: Seed of the random choice.
        groups: (N,) number of the group of each row, as for `group_split`; None for a stratified choice.
        class_names: Names of the classes, for errors.

    Returns:
        (N,) number of the fold of each row, from 0.

    Raises:
        DataError: if a class has fewer rows than folds, or if there are fewer groups than folds.
    """
    counts = labels.bincount()
    present = torch.nonzero(counts).flatten()
    rarest = int(present[counts[present].argmin()])
    if (smallest := int(counts[rarest])) < num_folds:
        name = repr(class_names[rarest]) if class_names else rarest
        hint = f"choose at most {smallest} folds" if smallest > 1 else "add samples of this class or remove it"
        raise DataError(
            f"data.num_folds: class {name} has {count_of(smallest, 'sample')} for {num_folds} folds; {hint}"
        )
    generator = Generator().manual_seed(derive_seed(seed, num_folds))
    if groups is not None:
        return _assign_groups(labels, _number_groups(groups), num_folds, generator)
    folds, start = torch.empty_like(labels), 0
    for label in present:
        rows = torch.nonzero(labels == label).flatten()
        # each class continues at the fold at which the class before it ended, so that all folds have similar sizes
        dealt = (start + torch.arange(len(rows))) % num_folds
        folds[rows[torch.randperm(len(rows), generator=generator)]] = dealt
        start += len(rows)
    return folds


def _assign_groups(labels: Tensor, groups: Tensor, num_folds: int, generator: Generator) -> Tensor:
    """Return the fold of each row (N,).

    Large groups come first. A group is assigned to the fold that has the fewest rows of the group's most frequent class.
    """
    num_classes, sizes = int(labels.max()) + 1, groups.bincount()
    if len(sizes) < num_folds:
        problem = f"data.group_column has {count_of(len(sizes), 'group')} for {num_folds} folds"
        raise DataError(f"data.num_folds: {problem}; choose fewer folds")
    pairs, counts = (groups * num_classes + labels).unique(return_counts=True)  # sorted by group
    ends = (pairs // num_classes).bincount().cumsum(0).tolist()
    classes, numbers = (pairs % num_classes).tolist(), counts.tolist()
    order = torch.randperm(len(sizes), generator=generator)
    order = order[sizes[order].argsort(descending=True, stable=True)]
    rows = [[0] * (num_classes + 1) for _ in range(num_folds)]  # of each class in each fold, and of all classes
    fold_of = torch.empty_like(sizes)
    for group in order.tolist():
        part = slice(ends[group - 1] if group else 0, ends[group])
        _, largest = max(zip(numbers[part], classes[part], strict=True))
        _, _, fold = min((count[largest], count[-1], fold) for fold, count in enumerate(rows))
        fold_of[group] = fold
        for number, label in zip(numbers[part], classes[part], strict=True):
            rows[fold][label] += number
            rows[fold][-1] += number
    return fold_of[groups]


def _number_groups(groups: Tensor) -> Tensor:
    """Return the number of the group of each row (N,), without gaps. A row with -1 becomes a group of its own."""
    alone = torch.nonzero(groups < 0).flatten()
    own = groups.clone()
    own[alone] = int(groups.max()) + 1 + torch.arange(len(alone))
    return own.unique(return_inverse=True)[1]
