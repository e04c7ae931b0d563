"""What can be wrong with data before anything is trained: rows in two parts, missing classes, labels of other rows.

Each function looks at the parts of a datamodule and yields what it found as ``(level, title, text)``, level being "ok",
"note", "warning" or "WRONG". All of it takes about a second for 70,000 images.
"""

import math
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from engine.contracts import CheckResult, TokenTable, listed

Samples = tuple[Any, Tensor]  # inputs and labels of a split
# N rows, M of them with labels that are known, A others that are asked for, K classes, V tokens in the vocabulary
LEAST_ROWS, MOST_ROWS = 50, 2000  # that say whether labels fit inputs: fewer cannot, more cost time
SIDE = 32  # of the images that are compared; larger ones are averaged down to it
LEAST_DEVIATIONS = 3.0  # above chance: labels of other rows come as far once in 740 times
# Below them, this much may be a signal that drowns in chance, as that of 1,000 pictures of cats and dogs often does.
HINT, HINT_OF_FEW = 2.0, 1.0
RIDGE = 1.0  # beside the mean squared length of a standardised row, by the number of its values
# share of a part that may be in train, too, before its figures mean something else; of a tenth of SST-2, cut from train,
# 1.3 % are phrases that occur twice
MOST_SHARED = {"val": 0.05, "test": 0.01}
LEAST_COPIED, MOST_REPEATED = 5, 3  # rows; times their share within train (of rows from few values, twice is expected)
EARLIER = {"val": "train", "test": "train or val"}
MOST_CONTRADICTING = 0.01  # share of train; SST-2 has 0.01 %
MOST_UNEVEN = 10  # times the rows of the smallest class, before a mean over all rows hides that class


def check_data(datamodule: Any) -> Iterator[CheckResult]:
    """What is to be said of the data, once they are loaded."""
    parts: Mapping[Any, Samples] = datamodule.splits() if getattr(datamodule, "is_loaded", False) else {}
    if not parts or not all(isinstance(inputs, Tensor | TokenTable) for inputs, _ in parts.values()):
        yield (
            "note",
            "data",
            f"{type(datamodule).__name__} loads them in its own way: rows and labels are not looked at",
        )
        return
    yield from class_balance(datamodule.spec.class_names, {name: labels for name, (_, labels) in parts.items()})
    yield labels_fit(*parts["train"])
    yield from same_rows(parts)


def class_balance(class_names: tuple[str, ...], labels: Mapping[Any, Tensor]) -> Iterator[CheckResult]:
    """How many rows each class has in training, and classes that a part does not have.

    Args:
        class_names: K names.
        labels: (N,) of each part.
    """
    title, counts = "class balance", {part: one.bincount(minlength=len(class_names)) for part, one in labels.items()}
    missing = {part: [class_names[k] for k in (one == 0).nonzero().flatten().tolist()] for part, one in counts.items()}
    train = counts["train"]
    if len(missing["train"]) == len(class_names) - 1:
        name = class_names[int(train.argmax())]
        yield CheckResult(
            "WRONG", title, f"all {len(labels['train']):,} rows of train are {name!r}; look at how labels are read"
        )
    elif missing["train"]:
        mend = "leave them out of the classes, or look at how labels are read"
        yield CheckResult(
            "WRONG", title, f"train has no row of {listed([repr(name) for name in missing['train']])}; {mend}"
        )
    else:
        least, most = int(train.min()), int(train.max())
        text = f"train has {least:,}{f' to {most:,}' if most > least else ''} rows a class"
        if most > MOST_UNEVEN * least:
            weights = ", ".join(f"{len(labels['train']) / len(train) / int(one):.2g}" for one in train)
            evened = f"model.class_weights='[{weights}]'" if len(train) <= 10 else "model.class_weights"
            mend = f"{evened} evens them out, and run.monitor=val/f1 counts every class alike"
            yield CheckResult("warning", title, f"{text}, {most / least:.0f} times as many; {mend}")
        else:
            yield CheckResult("ok", title, text)
    for part, mend in (("val", "raise data.val_fraction"), ("test", "its figures will say nothing of them")):
        if missing.get(part) and not set(missing[part]) <= set(missing["train"]):
            yield CheckResult(
                "warning", title, f"{part} has no row of {listed([repr(name) for name in missing[part]])}; {mend}"
            )


def labels_fit(inputs: Tensor | TokenTable, labels: Tensor) -> CheckResult:
    """Whether labels can be told from the inputs better than by chance, by models that need no training.

    One half of at most 2,000 rows predicts the other: by nearest neighbours and by a linear model for numbers, by naive
    Bayes for tokens. Labels of other rows agree with these predictions as any permutation of them does, of which mean and
    variance are known (Hoeffding 1951, https://doi.org/10.1214/aoms/1177729446); so a frequent class does not look like
    knowledge.

    Args:
        inputs: (N, ...), or `TokenTable`.
        labels: (N,) of 0..K-1.
    """
    title = "labels fit inputs"
    chosen = torch.randperm(len(labels), generator=Generator().manual_seed(0))[:MOST_ROWS]
    if len(chosen) < LEAST_ROWS:
        return CheckResult("note", title, f"{len(chosen)} rows of train are too few to tell")
    known_rows, asked_rows = chosen.tensor_split(2)
    known, asked = labels[known_rows], labels[asked_rows]
    if isinstance(inputs, TokenTable):
        predictions = {"naive Bayes is": naive_bayes(inputs, known_rows, asked_rows, known)}
    else:
        products = standardised_products(inputs, known_rows, asked_rows)
        predictions = {
            "nearest neighbours are": nearest_neighbours(*products, known),
            "a linear model is": ridge(*products, known),
        }
    (deviations, hits, chance), judge = max((_above_chance(one, asked), name) for name, one in predictions.items())
    if deviations == -math.inf:
        return CheckResult(
            "note", title, f"{len(chosen):,} rows of train are too much alike, or nearly all of one class, to tell"
        )
    text = f"{judge} right for {hits:.0%} of {len(asked):,} rows of train, where chance is {chance:.0%}"
    if deviations >= LEAST_DEVIATIONS:
        return CheckResult("ok", title, text)
    if isinstance(inputs, TokenTable) and inputs.second_starts is not None:
        return CheckResult(
            "note", title, f"{text}; what matters may be how the two texts go together, of which it knows nothing"
        )
    if deviations > (HINT if len(chosen) == MOST_ROWS else HINT_OF_FEW):
        return CheckResult(
            "warning", title, f"{text}; they may be hard to tell, or labels and inputs are not in one order"
        )
    return CheckResult("WRONG", title, f"{text}; look whether labels and inputs are in one order")


def _above_chance(predicted: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """By how many standard deviations predictions (A,) are better than chance, their share of hits, and that of chance."""
    count, hits = len(labels), int((predicted == labels).sum())
    num_classes = int(max(predicted.max(), labels.max())) + 1
    said, true = (one.bincount(minlength=num_classes).double() for one in (predicted, labels))
    pairs = float(said @ true)  # of a prediction and a label that agree, whichever rows they are of
    mean = pairs / count
    variance = (pairs - float(said @ true.square() + true @ said.square()) / count + mean**2) / (count - 1)
    return (hits - mean) / variance**0.5 if variance > 0 else -math.inf, hits / count, mean / count


def same_rows(parts: Mapping[Any, Samples]) -> Iterator[CheckResult]:
    """Rows of a part whose inputs are in an earlier one, too; and equal inputs in train with unequal labels."""
    title = "same rows"
    first: dict[bytes, tuple[str, int]] = {}  # part and row that have these inputs
    clean, repeated, contradicting, num_train = [], 0, 0, len(parts["train"][1])
    for part in ("train", "val", "test"):
        labels, earlier = parts[part][1].tolist(), []  # row, and the part and the row that it repeats
        for row, digest in enumerate(_digests(parts[part][0])):
            where, twin = first.setdefault(digest, (part, row))
            if where != part:
                earlier.append((row, where, twin))
            elif part == "train" and twin != row:
                repeated += 1
                contradicting += labels[twin] != labels[row]
        if earlier:
            share, (row, where, twin) = len(earlier) / len(labels), earlier[0]
            text = f"{len(earlier):,} of {len(labels):,} rows of {part} are in {EARLIER[part]}, too"
            text = f"{text} (row {row} is row {twin} of {where})"
            if share <= MOST_SHARED[part]:
                yield CheckResult("note", title, text)
            else:
                mend = f"leave them out of one, or figures of {part} are better than the model"
                # rows that repeat themselves within train do so in any test
                copied = (
                    part == "test" and len(earlier) >= LEAST_COPIED and share > MOST_REPEATED * repeated / num_train
                )
                yield CheckResult(("WRONG" if copied else "warning"), title, f"{text}; {mend}")
        elif part != "train":
            clean.append(f"of {part} is in {EARLIER[part]}")
    if clean:
        yield CheckResult("ok", title, f"no row {', none '.join(clean)}")
    if contradicting:
        text = f"{contradicting:,} of {num_train:,} rows of train have the inputs of an earlier one and another label"
        yield CheckResult(("note" if contradicting <= MOST_CONTRADICTING * num_train else "warning"), title, text)


def _digests(inputs: Tensor | TokenTable) -> Iterator[bytes]:
    """Sixteen bytes for the values of each row."""
    if isinstance(inputs, TokenTable):
        ids, starts = inputs.ids.numpy(), inputs.starts.tolist()
        seconds = [0] * len(starts) if inputs.second_starts is None else inputs.second_starts.tolist()
        for start, length, second in zip(starts, inputs.lengths.tolist(), seconds, strict=True):
            yield blake2b(ids[start : start + length].tobytes() + second.to_bytes(4), digest_size=16).digest()
    else:
        for row in inputs.contiguous().numpy():
            yield blake2b(row.data, digest_size=16).digest()


def standardised_products(inputs: Tensor, known: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Of M rows `known` and A rows `asked`, by their standardised values: products (M, M) and (A, M), by their number."""
    chunks = [inputs[some].float() for some in torch.cat([known, asked]).split(100)]
    if inputs.ndim == 4 and max(inputs.shape[2:]) > SIDE:
        chunks = [F.adaptive_avg_pool2d(one, SIDE) for one in chunks]
    values = torch.cat(chunks).flatten(1)
    std = values.std(0)
    values = (values - values.mean(0)) / torch.where(std > 0, std, 1.0)
    there, here = values.split([len(known), len(asked)])
    return there @ there.T / values.shape[1], here @ there.T / values.shape[1]


def nearest_neighbours(within: Tensor, between: Tensor, labels: Tensor) -> Tensor:
    """The label (A,) of the nearest of M rows with known labels (M,); products as of `standardised_products`."""
    return labels[(between - within.diagonal() / 2).argmax(1)]  # half the squared distance, but for what is in common


def ridge(within: Tensor, between: Tensor, labels: Tensor) -> Tensor:
    """The class (A,) of the largest score of a linear model with squared error, were all classes equally frequent."""
    one_hot = F.one_hot(labels).double()
    counts = one_hot.sum(0)
    regular = within.double() + RIDGE * torch.eye(len(labels), dtype=torch.float64)
    scores = between.double() @ torch.linalg.solve(regular, one_hot / counts.clamp(min=1))
    return scores.where(counts > 0, -math.inf).argmax(1)


def naive_bayes(rows: TokenTable, known: Tensor, asked: Tensor, labels: Tensor) -> Tensor:
    """The class of whose rows the tokens of each row `asked` are most typical, were all classes equally frequent; `labels`
    are those of the rows `known`."""
    num_classes, vocab_size = int(labels.max()) + 1, int(rows.ids.max()) + 1
    ids, owners = _tokens(rows, known)
    counts = (labels[owners] * vocab_size + ids).bincount(minlength=num_classes * vocab_size)
    smoothed = counts.view(num_classes, vocab_size) + 1.0
    likelihoods = (smoothed / smoothed.sum(1, keepdim=True)).log()  # (K, V)
    ids, owners = _tokens(rows, asked)
    return torch.zeros(len(asked), num_classes).index_add_(0, owners, likelihoods.T[ids]).argmax(1)


def _tokens(rows: TokenTable, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """All token ids of the chosen rows, and which of these each belongs to."""
    lengths = rows.lengths[chosen]
    owners = torch.arange(len(chosen)).repeat_interleave(lengths)
    columns = torch.arange(len(owners)) - (lengths.cumsum(0) - lengths)[owners]
    return rows.ids[rows.starts[chosen][owners] + columns].long(), owners
