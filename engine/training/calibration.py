"""Calibrates probabilities by temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

The logits are divided by a number, the temperature, which minimizes the cross-entropy on the validation set. The predicted
classes do not change.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

# B batch, K classes

MAX_LOG = 3.0  # largest absolute logarithm of the temperature
STEPS = 24  # bisection steps; the error of the logarithm is at most 4e-7
# standard deviation of the logarithm in a normal prior with mean 0; without a prior, the temperature would go to 0 if the
# validation set has no errors
PRIOR_STD = 0.5
MAX_VALUES = 2**27  # logits that each process keeps in memory; it ignores the rest of the validation set


class Calibration(Callback):
    """Fits a temperature when the best checkpoint is saved after a validation, and stores it in the checkpoint.

    During training, the model keeps the temperature 1, so the validation metrics do not depend on it. This callback must be
    the last callback, because other callbacks replace the weights in the checkpoint.

    Attributes:
        run_metrics: The temperature of the tested checkpoint, for ``metrics.json``.
    """

    def __init__(self) -> None:
        self.run_metrics: dict[str, float] = {}
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._num_values, self._is_complete = 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.temperature.fill_(1)  # type: ignore[operator]  # a run may resume from the best checkpoint

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches, self._num_values, self._is_complete = [], 0, False

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *__: Any
    ) -> None:
        if isinstance(outputs, Tensor) and outputs.ndim == 2 and self._num_values < MAX_VALUES:
            self._batches.append((outputs.detach(), batch[1]))
            self._num_values += outputs.numel()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_complete = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._is_complete:
            add = partial(trainer.strategy.reduce, reduce_op="sum")
            temperature = fit_temperature(self._batches, add if trainer.world_size > 1 else None)
            if "temperature" in (state := checkpoint["state_dict"]):  # not in a process that does not write the weights
                state["temperature"] = torch.full_like(state["temperature"], temperature)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run_metrics = {"temperature": float(pl_module.temperature)}  # type: ignore[arg-type]


def fit_temperature(batches: Sequence[tuple[Tensor, Tensor]], add: Callable[[Tensor], Any] | None = None) -> float:
    """Return the temperature that minimizes the cross-entropy plus the negative logarithm of its prior.

    Args:
        batches: Logits (B, K) and labels (B,).
        add: Function that sums a tensor over all processes; None for a single process.
    """
    host = [(logits.cpu().double(), labels.cpu()) for logits, labels in batches]
    low, high = -MAX_LOG, MAX_LOG  # bounds of log(1 / temperature)
    for _ in range(STEPS):
        middle = (low + high) / 2
        factor = math.exp(middle)
        slope = torch.zeros(
            (), dtype=torch.float64
        )  # derivative of the summed cross-entropy with respect to the factor
        for logits, labels in host:
            expected = ((factor * logits).softmax(1) * logits).sum()
            slope += expected - logits.gather(1, labels[:, None]).sum()
        total = slope if add is None else add(slope.to(batches[0][0].device) if batches else slope)
        if float(total) * factor + middle / PRIOR_STD**2 > 0:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)
