"""The importance of each hyperparameter of a search.

The importance of a hyperparameter is the fraction of the variance between trials that it alone explains. A least-squares fit
predicts the rank of a trial's metric from one hyperparameter: a parabola for a range (on its logarithm for a logarithmic
range), the mean of each value for choices. The importance is the adjusted R^2 of this fit (Ezekiel, Methods of Correlation
Analysis, 1930). Ranks limit the effect of diverged trials. An F test decides whether the importance is significant.

Optuna's evaluators are not used. PED-ANOVA (https://arxiv.org/abs/2304.10255) compares the best trials with the other
trials. With 12 to 40 trials of TPE it misses choices, because TPE soon avoids the bad values in all trials. fANOVA needs
scikit-learn. Both divide 100 % among the hyperparameters even if none of them matters.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.studies.results import Range, Space
from engine.studies.statistics import check_scipy

# N trials, P columns of a fit

MIN_TRIALS = 10  # with fewer trials, most importances are chance
LEVEL = 0.05  # significance level of the F tests of all hyperparameters together (Bonferroni)


@dataclass(frozen=True)
class Importance:
    """The importance of a hyperparameter.

    Attributes:
        share: Adjusted R^2, 0 to 1.
        is_visible: Whether it is significant.
    """

    share: float
    is_visible: bool


def importances(
    trials: Sequence[Mapping[str, Any]], metric: Sequence[float], vary: Mapping[str, Space]
) -> dict[str, Importance]:
    """Return the importance of each hyperparameter, the largest first.

    The shares do not add up to 1, because hyperparameters may act together, and because a part of the differences is chance.

    Args:
        trials: The values of each finished trial.
        metric: The metric of each trial, finite numbers.
        vary: The space of each hyperparameter.

    Returns:
        Empty if there are fewer than 10 trials, or if all trials have the same metric. A hyperparameter is left out if it
        has only one value, or too many choices for the number of trials.
    """
    import numpy as np

    check_scipy()
    from scipy.special import fdtrc
    from scipy.stats import rankdata

    if len(trials) < MIN_TRIALS or min(metric) == max(metric):
        return {}
    ranks = rankdata(metric)  # (N,), equal metrics get their mean rank
    total = float(np.square(ranks - ranks.mean()).sum())
    found = {}
    for key, space in vary.items():
        columns = np.array(_columns([trial[key] for trial in trials], space), float).T  # (N, P)
        degrees = len(trials) - columns.shape[1]
        if columns.shape[1] < 2 or degrees < len(trials) / 2:
            continue
        rest = float(np.square(ranks - columns @ np.linalg.lstsq(columns, ranks)[0]).sum())
        explained = max(0.0, total - rest) / (columns.shape[1] - 1)
        p_value = float(fdtrc(columns.shape[1] - 1, degrees, explained / max(rest / degrees, 1e-12 * total)))
        share = max(0.0, 1 - (rest / degrees) / (total / (len(trials) - 1)))
        found[key] = Importance(share, p_value < LEVEL / len(vary))
    return dict(sorted(found.items(), key=lambda item: -item[1].share))


def _columns(values: Sequence[Any], space: Space) -> list[list[float]]:
    """Return P lists of N numbers; one list if all values are equal."""
    choices: dict[Hashable, None] = dict.fromkeys(map(repr, values))
    if not isinstance(space, Range) or len(choices) < 3:
        return [[float(repr(value) == choice) for value in values] for choice in choices]
    numbers = [math.log(value) if space.is_log else float(value) for value in values]
    middle, half = (max(numbers) + min(numbers)) / 2, (max(numbers) - min(numbers)) / 2
    scaled = [(number - middle) / half for number in numbers]  # -1 to 1
    return [[1.0] * len(scaled), scaled, [number**2 for number in scaled]]
