"""Chooses the decision threshold for the second of two classes on the validation set of a run.

The second class is predicted if its probability is at least the threshold. The default is equivalent to a threshold of 0.5.
Another threshold is better if false positives and false negatives have different costs, or if one class is rare. The test
set must not be used for this choice.
"""

import re
from dataclasses import dataclass

import numpy as np

from engine.contracts import COMMAND_LINE, ConfigError

# n samples, T candidates


@dataclass(frozen=True)
class Rule:
    """A rule that chooses a threshold.

    Attributes:
        name: ``f1`` for the largest F1 score, ``youden`` for the largest sum of recall and specificity (Youden 1950,
            https://doi.org/10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3), ``recall`` or ``precision`` for
            at least `bound`.
        bound: Lower bound, 0 to 1; 0 for the other rules.
    """

    name: str
    bound: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}>={self.bound:g}" if self.bound else self.name


@dataclass(frozen=True)
class Curve:
    """Precision and recall of the second class for each candidate, the highest first.

    Attributes:
        thresholds: The distinct probabilities of the second class (T,), in descending order.
        precision: Fraction of the predictions of the second class that are correct (T,).
        recall: Fraction of the samples of the second class that are found (T,).
        specificity: Fraction of the samples of the first class that are predicted correctly (T,).
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    specificity: np.ndarray


def parse_threshold(text: str) -> float | Rule:
    """Return a threshold or a rule.

    Raises:
        ConfigError: if `text` is neither a number nor a rule.
    """
    if text in ("f1", "youden"):
        return Rule(text)
    bounded = re.fullmatch(r"(recall|precision)>=(.*)", text)
    try:
        value = float(bounded[2] if bounded else text)
    except ValueError:
        problem = f"{text!r} is not a number, f1, youden, recall>=R or precision>=P"
        raise ConfigError(COMMAND_LINE, "--threshold", problem) from None
    if not 0 < value < 1 and not (bounded and value == 1):
        raise ConfigError(COMMAND_LINE, "--threshold", f"{text} is not between 0 and 1")
    return Rule(bounded[1], value) if bounded else value


def threshold_curve(probabilities: np.ndarray, labels: np.ndarray) -> Curve:
    """Return the curve of the probabilities (n,) of the second class. Labels (n,) are 0 and 1."""
    order = np.argsort(-probabilities, kind="stable")
    ordered, hits = probabilities[order], labels[order].cumsum()
    last = np.flatnonzero(np.append(ordered[:-1] != ordered[1:], True))  # the last of several equal probabilities
    found, predicted = hits[last], last + 1
    num_first, num_second = (labels == 0).sum(), (labels == 1).sum()
    return Curve(ordered[last], found / predicted, found / num_second, 1 - (predicted - found) / num_first)


def choose_index(curve: Curve, rule: Rule) -> int:
    """Return the index of the candidate that a rule chooses.

    Raises:
        ConfigError: if no candidate has the precision.
    """
    precision, recall = curve.precision, curve.recall
    if rule.name == "f1":
        return int(np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-12)))
    if rule.name == "youden":
        return int(np.argmax(recall + curve.specificity))
    if rule.name == "recall":  # recall rises with the index, so the first one has the highest threshold
        return int(np.argmax(recall >= rule.bound))
    possible = np.flatnonzero(precision >= rule.bound)
    if len(possible) == 0:
        problem = f"no threshold has this precision on the validation set; the highest is {precision.max():.4f}"
        raise ConfigError(COMMAND_LINE, "--threshold", f"{rule}: {problem}")
    return int(possible[-1])
