"""Learning-rate schedules by name: ``schedule: {name: cosine, warmup_fraction: 0.1}``.

A function's keyword-only parameters are the keys of the section. Everything is a fraction of the training, so that a
schedule means the same for one epoch or a thousand. Each returns Lightning's scheduler entries.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from engine.contracts import OptionError, is_lower_better

Entries = list[dict[str, Any]]


def constant(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
) -> Entries:
    """The same rate throughout.

    Args:
        warmup_fraction: Share of all steps in which the rate rises linearly to its peak.
    """
    return _by_step(optimizer, total_steps, warmup_fraction, lambda _: 1.0)


def cosine(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
    final_fraction: Annotated[float, ">= 0, <= 1"] = 0.0,
) -> Entries:
    """Half a cosine from the peak to the final rate (https://arxiv.org/abs/1608.03983, without restarts).

    Args:
        warmup_fraction: Share of all steps in which the rate rises linearly to its peak.
        final_fraction: The last rate as a share of the peak.
    """

    def factor(progress: float) -> float:
        return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2

    return _by_step(optimizer, total_steps, warmup_fraction, factor)


def linear(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
    final_fraction: Annotated[float, ">= 0, <= 1"] = 0.0,
) -> Entries:
    """A straight line from the peak to the final rate.

    Args:
        warmup_fraction: Share of all steps in which the rate rises linearly to its peak.
        final_fraction: The last rate as a share of the peak.
    """
    return _by_step(optimizer, total_steps, warmup_fraction, lambda progress: 1 - (1 - final_fraction) * progress)


def one_cycle(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, "> 0, < 1"] = 0.3,
    initial_fraction: Annotated[float, ">= 0, <= 1"] = 0.04,
    final_fraction: Annotated[float, ">= 0, <= 1"] = 0.0,
) -> Entries:
    """Up in half a cosine and down in another (https://arxiv.org/abs/1708.07120).

    Args:
        warmup_fraction: Share of all steps in which the rate rises to its peak.
        initial_fraction: The first rate as a share of the peak.
        final_fraction: The last rate as a share of the peak.
    """

    def factor(progress: float) -> float:
        if progress < warmup_fraction:
            return _between(initial_fraction, 1.0, progress / warmup_fraction)
        return _between(1.0, final_fraction, (progress - warmup_fraction) / (1 - warmup_fraction))

    return _by_step(optimizer, total_steps, 0.0, factor)


def step(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
    milestones: Annotated[Sequence[float], "> 0, < 1"] = (0.5, 0.75),
    factor: Annotated[float, "> 0, < 1"] = 0.1,
) -> Entries:
    """A drop at each milestone.

    Args:
        warmup_fraction: Share of all steps in which the rate rises linearly to its peak.
        milestones: Shares of the steps after warm-up at which the rate drops.
        factor: What the rate is multiplied by at each.
    """
    return _by_step(
        optimizer, total_steps, warmup_fraction, lambda progress: factor ** sum(progress >= one for one in milestones)
    )


def plateau(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
    factor: Annotated[float, "> 0, < 1"] = 0.1,
    patience: Annotated[int, ">= 0"] = 3,
    monitor: str = "val/loss",
) -> Entries:
    """A drop whenever the monitored metric has stopped improving.

    Args:
        warmup_fraction: Share of all steps in which the rate rises linearly to its peak.
        factor: What the rate is multiplied by.
        patience: Epochs without improvement that are waited for.
        monitor: The metric that is watched after every validation.
    """
    entries: Entries = []
    if warmup_fraction > 0:  # LinearLR multiplies the rate that is there, so the two do not undo each other
        steps = max(1, round(warmup_fraction * _finite(total_steps)))
        warmup = LinearLR(optimizer, start_factor=1 / (steps + 1), end_factor=1.0, total_iters=steps)
        entries.append({"scheduler": warmup, "interval": "step"})
    mode: Literal["min", "max"] = "min" if is_lower_better(monitor) else "max"
    drop = ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience)
    return [*entries, {"scheduler": drop, "interval": "epoch", "monitor": monitor}]


def _by_step(
    optimizer: Optimizer, total_steps: float, warmup_fraction: float, factor: Callable[[float], float]
) -> Entries:
    """Multiply the rate by a linear warm-up, then by `factor` of the share (0 to 1) of the steps after it."""

    def multiplier(step: int) -> float:
        warmup_steps = warmup_fraction * total_steps
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return factor(min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps)))

    if warmup_fraction == 0 and factor(0.0) == factor(0.5) == factor(1.0):
        return []  # a rate that never changes
    _finite(total_steps)
    return [{"scheduler": LambdaLR(optimizer, multiplier), "interval": "step"}]


def _finite(total_steps: float) -> float:
    if math.isinf(total_steps):
        raise OptionError(
            "schedule: needs to know where the training ends; set trainer.max_epochs or trainer.max_steps"
        )
    return total_steps


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
