"""Checks of the data before training: missing classes, labels that do not fit the inputs, rows that are in two splits.

All checks together take about a second for 70,000 images.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from engine.contracts import CheckResult, Labelled, Rows, TokenTable, listed

# N rows, M rows with known labels, A rows whose labels are predicted, K classes, V tokens in the vocabulary

MIN_ROWS, MAX_ROWS = 50, 2000  # for `check_labels`: fewer rows are not significant, more rows take too long
MAX_COMPARED = 2_000_000  # rows, for `check_duplicates`, whose table of digests takes 250 bytes per row
CHUNK = 1024  # rows that are read at a time
SIDE = 32  # larger images are averaged down to this side before they are compared
MIN_DEVIATIONS = 3.0  # standard deviations above chance; random labels exceed it with a probability of 1/740
# Above these deviations, labels may depend weakly on inputs, as in 1,000 pictures of cats and dogs. The second value is used
# for fewer than `MAX_ROWS` rows.
WEAK_DEVIATIONS, WEAK_DEVIATIONS_OF_FEW_ROWS = 2.0, 1.0
RIDGE = 1.0  # the regularization of the linear model, relative to the mean square of a standardized value
# Fraction of a split that may also be in train. If a tenth of SST-2 is split off train, 1.3 % of it are repeated phrases.
MAX_SHARED = {"val": 0.05, "test": 0.01}
# Rows of test that are also in train count as copies if there are at least five of them, and if they are three times as
# frequent as repeated rows within train. Data with few distinct values has many repeated rows.
MIN_COPIED, MAX_REPEATED = 5, 3
EARLIER_SPLITS = {"val": "train", "test": "train or val"}
MAX_CONTRADICTING = 0.01  # fraction of train; SST-2 has 0.01 %
MAX_IMBALANCE = (
    10  # ratio of the largest class to the smallest; above it, accuracy hardly depends on the smallest class
)


def check_data(datamodule: Any) -> Iterator[CheckResult]:
    """Check the splits of a datamodule that is set up."""
    splits: Mapping[Any, Labelled] = datamodule.splits() if getattr(datamodule, "is_loaded", False) else {}
    if not splits or not all(isinstance(inputs, Rows | TokenTable) for inputs, _ in splits.values()):
        name = type(datamodule).__name__
        yield CheckResult("note", "data", f"{name} loads its data itself, so rows and labels are not checked")
        return
    yield from check_balance(datamodule.spec.class_names, {split: labels for split, (_, labels) in splits.items()})
    yield check_labels(*splits["train"])
    yield from check_duplicates(splits, getattr(datamodule, "place", place_in_split))


def check_balance(class_names: tuple[str, ...], labels: Mapping[Any, Tensor]) -> Iterator[CheckResult]:
    """Compare the sizes of the classes in train, and find classes that are missing in a split.

    Args:
        class_names: K names.
        labels: (N,) of each split.
    """
    title = "class balance"
    counts = {split: values.bincount(minlength=len(class_names)) for split, values in labels.items()}
    missing = {
        split: [repr(name) for name, count in zip(class_names, values, strict=True) if count == 0]
        for split, values in counts.items()
    }
    train, num_train = counts["train"], len(labels["train"])
    smallest, largest = int(train.min()), int(train.max())
    if len(missing["train"]) == len(class_names) - 1:
        name = class_names[int(train.argmax())]
        yield CheckResult("WRONG", title, f"all {num_train:,} rows of train are {name!r}; check how labels are read")
    elif missing["train"]:
        hint = "remove the class, or check how labels are read"
        yield CheckResult("WRONG", title, f"train has no row of {listed(missing['train'])}; {hint}")
    elif largest > MAX_IMBALANCE * smallest:
        weights = ", ".join(f"{num_train / len(train) / int(count):.2g}" for count in train)
        option = f"model.class_weights='[{weights}]'" if len(train) <= 10 else "model.class_weights"
        text = f"train has {smallest:,} to {largest:,} rows per class, a ratio of {largest / smallest:.0f}"
        hint = f"{option} compensates for it, and run.monitor=val/f1 counts all classes equally"
        yield CheckResult("warning", title, f"{text}; {hint}")
    else:
        most = f" to {largest:,}" if largest > smallest else ""
        yield CheckResult("ok", title, f"train has {smallest:,}{most} rows per class")
    for split, hint in (("val", "raise data.val_fraction"), ("test", "its metrics leave out this class")):
        if missing.get(split) and not set(missing[split]) <= set(missing["train"]):
            yield CheckResult("warning", title, f"{split} has no row of {listed(missing[split])}; {hint}")


def check_labels(inputs: Rows | TokenTable, labels: Tensor) -> CheckResult:
    """Check whether simple models predict labels from inputs better than by chance.

    Up to 2,000 rows are split into two halves, and the labels of one half are predicted from the other half. The models are
    nearest neighbours and ridge regression for numbers, and naive Bayes for tokens. The number of correct predictions is
    compared with its mean and variance for randomly permuted labels (Hoeffding 1951,
    https://doi.org/10.1214/aoms/1177729446). By this measure, always predicting a frequent class is not better than chance.

    Args:
        inputs: (N, ...), or a `TokenTable`.
        labels: (N,) of 0..K-1.
    """
    title = "labels fit inputs"
    chosen = torch.randperm(len(labels), generator=Generator().manual_seed(0))[:MAX_ROWS]
    if len(chosen) < MIN_ROWS:
        return CheckResult("note", title, f"{len(chosen)} rows of train are too few to judge")
    known, others = chosen.tensor_split(2)
    if isinstance(inputs, TokenTable):
        predictions = {"naive Bayes": predict_naive_bayes(inputs, known, others, labels[known])}
    else:
        products = standardized_products(inputs, known, others)
        predictions = {
            "nearest neighbours": predict_nearest_neighbours(*products, labels[known]),
            "a linear model": predict_ridge(*products, labels[known]),
        }
    agreements = [(_agreement(predicted, labels[others]), name) for name, predicted in predictions.items()]
    (deviations, accuracy, chance), best = max(agreements)
    if deviations == -math.inf:
        problem = "have nearly equal inputs or labels, so the check is not possible"
        return CheckResult("note", title, f"{len(chosen):,} rows of train {problem}")
    text = f"accuracy of {best}: {accuracy:.0%} of {len(others):,} rows of train; by chance: {chance:.0%}"
    if deviations >= MIN_DEVIATIONS:
        return CheckResult("ok", title, text)
    if isinstance(inputs, TokenTable) and inputs.second_starts is not None:
        return CheckResult("note", title, f"{text}; this check does not compare the two texts of a pair")
    if deviations > (WEAK_DEVIATIONS if len(chosen) == MAX_ROWS else WEAK_DEVIATIONS_OF_FEW_ROWS):
        problem = "the labels are hard to predict, or labels and inputs are not in the same order"
        return CheckResult("warning", title, f"{text}; {problem}")
    problem = "the labels do not depend on the inputs: check that both are in the same order"
    return CheckResult("WRONG", title, f"{text}; {problem}")


def _agreement(predicted: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Return the accuracy of predictions (A,) in standard deviations above chance, as a fraction, and by chance."""
    count, hits = len(labels), int((predicted == labels).sum())
    num_classes = int(max(predicted.max(), labels.max())) + 1
    predicted_counts, counts = (values.bincount(minlength=num_classes).double() for values in (predicted, labels))
    pairs = float(predicted_counts @ counts)  # number of pairs (i, j) with predicted[i] == labels[j]
    mean = pairs / count
    squares = float(predicted_counts @ counts.square() + counts @ predicted_counts.square())
    variance = (pairs - squares / count + mean**2) / (count - 1)
    return (hits - mean) / variance**0.5 if variance > 0 else -math.inf, hits / count, mean / count


def place_in_split(split: str, row: int) -> str:
    return f"row {row} (from 0) of {split}"


def check_duplicates(
    splits: Mapping[Any, Labelled], place: Callable[[Any, int], str] = place_in_split
) -> Iterator[CheckResult]:
    """Find rows with the inputs of a row in an earlier split, and rows of train with equal inputs but different labels.

    `place` returns the origin of a row, as text for the message.
    """
    title = "duplicate rows"
    if (num_rows := sum(len(labels) for _, labels in splits.values())) > MAX_COMPARED:
        yield CheckResult(
            "note", title, f"{num_rows:,} rows are not compared, because they are more than {MAX_COMPARED:,}"
        )
        return
    first_places: dict[bytes, tuple[str, int]] = {}  # digest of the inputs -> split and row
    num_train, repeated, contradicting = len(splits["train"][1]), 0, 0
    for split in ("train", "val", "test"):
        inputs, labels = splits[split][0], splits[split][1].tolist()
        shared = []  # row, and split and row of its first occurrence
        for row, digest in enumerate(_digests(inputs)):
            first_split, first_row = first_places.setdefault(digest, (split, row))
            if first_split != split:
                shared.append((row, first_split, first_row))
            elif split == "train" and first_row != row:
                repeated += 1
                contradicting += labels[first_row] != labels[row]
        if split == "train":
            continue
        if not shared:
            yield CheckResult("ok", title, f"no row of {split} is in {EARLIER_SPLITS[split]}")
            continue
        fraction, (row, first_split, first_row) = len(shared) / len(labels), shared[0]
        example = f"{place(split, row)} equals {place(first_split, first_row)}"
        text = f"{len(shared):,} of {len(labels):,} rows of {split} are also in {EARLIER_SPLITS[split]} ({example})"
        if fraction <= MAX_SHARED[split]:
            yield CheckResult("note", title, text)
            continue
        # if rows are repeated within train, they are also expected in a correct test set
        are_copies = len(shared) >= MIN_COPIED and fraction > MAX_REPEATED * repeated / num_train
        hint = f"remove them from one split, because they make the metrics of {split} too good"
        yield CheckResult("WRONG" if split == "test" and are_copies else "warning", title, f"{text}; {hint}")
    if contradicting:
        text = f"{contradicting:,} of {num_train:,} rows of train have the same inputs as an earlier row, but another label"
        yield CheckResult("note" if contradicting <= MAX_CONTRADICTING * num_train else "warning", title, text)


def _digests(inputs: Rows | TokenTable) -> Iterator[bytes]:
    """Yield a hash of 16 bytes for each row."""
    if isinstance(inputs, TokenTable):
        ids, starts = inputs.ids.numpy(), inputs.starts.tolist()
        second_starts = [0] * len(starts) if inputs.second_starts is None else inputs.second_starts.tolist()
        for start, length, second_start in zip(starts, inputs.lengths.tolist(), second_starts, strict=True):
            row = ids[start : start + length].tobytes() + second_start.to_bytes(4)
            yield blake2b(row, digest_size=16).digest()
    else:
        for chunk in inputs.split(CHUNK):
            for values in chunk.contiguous().numpy():
                yield blake2b(values.data, digest_size=16).digest()


def standardized_products(inputs: Rows, known: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean products of standardized rows: `known` with `known` (M, M), and `others` with `known` (A, M)."""
    chunks = [inputs[rows].float() for rows in torch.cat([known, others]).split(100)]
    if inputs.ndim == 4 and max(inputs.shape[2:]) > SIDE:
        chunks = [F.adaptive_avg_pool2d(chunk, SIDE) for chunk in chunks]
    values = torch.cat(chunks).flatten(1)
    values = torch.where(values.isnan(), values.nanmean(0).nan_to_num(), values)  # missing values of a table
    std = values.std(0)
    values = (values - values.mean(0)) / torch.where(std > 0, std, 1.0)
    known_values, other_values = values.split([len(known), len(others)])
    return known_values @ known_values.T / values.shape[1], other_values @ known_values.T / values.shape[1]


def predict_nearest_neighbours(within: Tensor, between: Tensor, labels: Tensor) -> Tensor:
    """Predict labels (A,) by the nearest of M rows with `labels` (M,). The products are from `standardized_products`."""
    return labels[(between - within.diagonal() / 2).argmax(1)]  # the smallest squared distance


def predict_ridge(within: Tensor, between: Tensor, labels: Tensor) -> Tensor:
    """Predict classes (A,) by ridge regression in which all classes have the same weight."""
    one_hot = F.one_hot(labels).double()
    counts = one_hot.sum(0)
    regularized = within.double() + RIDGE * torch.eye(len(labels), dtype=torch.float64)
    scores = between.double() @ torch.linalg.solve(regularized, one_hot / counts.clamp(min=1))
    return scores.where(counts > 0, -math.inf).argmax(1)


def predict_naive_bayes(rows: TokenTable, known: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """Predict classes (A,) of the rows `others` by naive Bayes with equal priors. `labels` (M,) belong to `known`."""
    num_classes, vocab_size = int(labels.max()) + 1, int(rows.ids.max()) + 1
    ids, row_numbers = _tokens(rows, known)
    counts = (labels[row_numbers] * vocab_size + ids).bincount(minlength=num_classes * vocab_size)
    smoothed = counts.view(num_classes, vocab_size) + 1.0
    log_likelihoods = (smoothed / smoothed.sum(1, keepdim=True)).log()  # (K, V)
    ids, row_numbers = _tokens(rows, others)
    return torch.zeros(len(others), num_classes).index_add_(0, row_numbers, log_likelihoods.T[ids]).argmax(1)


def _tokens(rows: TokenTable, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return all token ids of the chosen rows, and for each token the index of its row in `chosen`."""
    lengths = rows.lengths[chosen]
    row_numbers = torch.arange(len(chosen)).repeat_interleave(lengths)
    columns = torch.arange(len(row_numbers)) - (lengths.cumsum(0) - lengths)[row_numbers]
    return rows.ids[rows.starts[chosen][row_numbers] + columns].long(), row_numbers
