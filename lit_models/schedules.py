"""Learning-rate schedules by name: ``schedule: {name: cosine, warmup_fraction: 0.1}`` in a config.

The keyword-only parameters of a function are the keys of the config section. Each function takes an optimizer with the peak
learning rate, and the number of optimizer steps in the training (infinite if unknown). It returns Lightning's scheduler
configurations. Durations are fractions of the training, so a schedule has the same shape for any number of epochs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from engine.contracts import OptionError, is_lower_better

SchedulerConfigs = list[dict[str, Any]]


def constant(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
) -> SchedulerConfigs:
    """Keep the learning rate constant.

    Args:
        warmup_fraction: Fraction of all steps in which the learning rate rises linearly to its peak.
    """
    if warmup_fraction == 0:
        return []
    return _by_step(optimizer, total_steps, warmup_fraction, lambda _: 1.0)


def cosine(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
    final_fraction: Annotated[float, ">= 0, <= 1"] = 0.0,
) -> SchedulerConfigs:
    """Follow half a cosine from the peak to the final learning rate (https://arxiv.org/abs/1608.03983, without restarts).

    Args:
        warmup_fraction: Fraction of all steps in which the learning rate rises linearly to its peak.
        final_fraction: Last learning rate as a fraction of the peak.
    """
    return _by_step(
        optimizer, total_steps, warmup_fraction, lambda progress: _half_cosine(1.0, final_fraction, progress)
    )


def linear(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
    final_fraction: Annotated[float, ">= 0, <= 1"] = 0.0,
) -> SchedulerConfigs:
    """Decrease the learning rate linearly from the peak to the final learning rate.

    Args:
        warmup_fraction: Fraction of all steps in which the learning rate rises linearly to its peak.
        final_fraction: Last learning rate as a fraction of the peak.
    """
    return _by_step(optimizer, total_steps, warmup_fraction, lambda progress: 1 - (1 - final_fraction) * progress)


def one_cycle(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, "> 0, < 1"] = 0.3,
    initial_fraction: Annotated[float, ">= 0, <= 1"] = 0.04,
    final_fraction: Annotated[float, ">= 0, <= 1"] = 0.0,
) -> SchedulerConfigs:
    """Increase the learning rate along half a cosine, and decrease it along another one (https://arxiv.org/abs/1708.07120).

    Args:
        warmup_fraction: Fraction of all steps in which the learning rate rises to its peak.
        initial_fraction: First learning rate as a fraction of the peak.
        final_fraction: Last learning rate as a fraction of the peak.
    """

    def factor(progress: float) -> float:
        if progress < warmup_fraction:
            return _half_cosine(initial_fraction, 1.0, progress / warmup_fraction)
        return _half_cosine(1.0, final_fraction, (progress - warmup_fraction) / (1 - warmup_fraction))

    return _by_step(optimizer, total_steps, 0.0, factor)


def step(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
    milestones: Annotated[Sequence[float], "> 0, < 1"] = (0.5, 0.75),
    factor: Annotated[float, "> 0, < 1"] = 0.1,
) -> SchedulerConfigs:
    """Multiply the learning rate by a factor at each milestone.

    Args:
        warmup_fraction: Fraction of all steps in which the learning rate rises linearly to its peak.
        milestones: Fractions of the steps after warm-up at which the learning rate drops.
        factor: Factor of the learning rate at each milestone.
    """

    def multiplier(progress: float) -> float:
        return factor ** sum(progress >= milestone for milestone in milestones)

    return _by_step(optimizer, total_steps, warmup_fraction, multiplier)


def plateau(
    optimizer: Optimizer,
    total_steps: float,
    *,
    warmup_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
    factor: Annotated[float, "> 0, < 1"] = 0.1,
    patience: Annotated[int, ">= 0"] = 3,
    monitor: str = "val/loss",
) -> SchedulerConfigs:
    """Multiply the learning rate by a factor whenever a metric has stopped improving.

    Args:
        warmup_fraction: Fraction of all steps in which the learning rate rises linearly to its peak.
        factor: Factor of the learning rate.
        patience: Validations without improvement before the learning rate drops.
        monitor: Metric of the validation.
    """
    configs: SchedulerConfigs = []
    if warmup_fraction > 0:  # LinearLR multiplies the current learning rate, so it does not undo the other scheduler
        steps = max(1, round(warmup_fraction * _finite(total_steps)))
        warmup = LinearLR(optimizer, start_factor=1 / (steps + 1), end_factor=1.0, total_iters=steps)
        configs.append({"scheduler": warmup, "interval": "step"})
    mode: Literal["min", "max"] = "min" if is_lower_better(monitor) else "max"
    drop = ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience)
    return [*configs, {"scheduler": drop, "interval": "epoch", "monitor": monitor}]


def _by_step(
    optimizer: Optimizer, total_steps: float, warmup_fraction: float, factor: Callable[[float], float]
) -> SchedulerConfigs:
    """Scale the learning rate by a linear warm-up, and then by `factor` of the fraction (0 to 1) of the remaining steps."""
    _finite(total_steps)

    def multiplier(step: int) -> float:
        warmup_steps = warmup_fraction * total_steps
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return factor(min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps)))

    return [{"scheduler": LambdaLR(optimizer, multiplier), "interval": "step"}]


def _finite(total_steps: float) -> float:
    if math.isinf(total_steps):
        raise OptionError("schedule: the number of steps must be known; set trainer.max_epochs or trainer.max_steps")
    return total_steps


def _half_cosine(start: float, end: float, progress: float) -> float:
    """Interpolate from `start` (progress 0) to `end` (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
