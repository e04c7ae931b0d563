"""Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599): probabilities that agree with the accuracy.

Logits are divided by one number, the temperature, so the predicted classes do not change. It minimizes the cross-entropy of
the validation set.
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
STEPS = 24  # of the bisection: the logarithm is exact to 4e-7
PRIOR_STD = 0.5  # of the logarithm, with mean 0: without a prior, a validation set without errors has temperature 0
MAX_VALUES = 2**27  # logits in memory in each process; further samples of the validation set are not used


class Calibration(Callback):
    """Fits the temperature of the best checkpoint on the validation that chose it, and stores it in the checkpoint.

    The model in training keeps temperature 1, so validation metrics and learning curves do not depend on it. This callback
    comes after all others, because some of them replace the weights in the checkpoint.

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
            if "temperature" in (state := checkpoint["state_dict"]):  # it is not if another process writes the weights
                state["temperature"] = torch.full_like(state["temperature"], temperature)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run_metrics = {"temperature": float(pl_module.temperature)}  # type: ignore[arg-type]


def fit_temperature(batches: Sequence[tuple[Tensor, Tensor]], add: Callable[[Tensor], Any] | None = None) -> float:
    """Return the temperature that minimizes the cross-entropy plus the negative logarithm of its prior.

    Args:
        batches: Logits (B, K) and labels (B,).
        add: Adds a tensor over all processes; None for a single process.
    """
    host = [(logits.cpu().double(), labels.cpu()) for logits, labels in batches]
    low, high = -MAX_LOG, MAX_LOG  # of the logarithm of 1 / temperature, which is the factor of the logits
    for _ in range(STEPS):
        middle = (low + high) / 2
        factor = math.exp(middle)
        slope = torch.zeros((), dtype=torch.float64)  # of the sum of the cross-entropies by the factor
        for logits, labels in host:
            expected = ((factor * logits).softmax(1) * logits).sum()
            slope += expected - logits.gather(1, labels[:, None]).sum()
        total = slope if add is None else add(slope.to(batches[0][0].device) if batches else slope)
        if float(total) * factor + middle / PRIOR_STD**2 > 0:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)
