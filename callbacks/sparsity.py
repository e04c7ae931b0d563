"""Sets the smallest weights to zero during the training: gradual magnitude pruning.

Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878. The tensors keep their size, so the network is neither smaller nor
faster on ordinary hardware. `callbacks.pruning` makes it smaller. Lightning's ModelPruning does not save its masks, so a run
with it would not resume exactly.
"""

import math
from typing import Annotated, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from engine.contracts import Classifier, OptionError
from engine.terminal import print_line
from engine.training.checkpoints import forget_best

GROWTH = 0.75  # fraction of the epochs in which the sparsity grows; it is constant in the other epochs


class Sparsity(Callback):
    """Sets the smallest weights of the whole network to zero and keeps them at zero.

    Their number grows in the first 75 % of the epochs. Biases and normalization parameters do not change.

    Args:
        amount: Fraction of the weights that are zero at the end.

    Attributes:
        run_metrics: The fraction of the tested weights that are zero, for ``metrics.json``.
    """

    def __init__(self, amount: Annotated[float, "> 0, < 1"] = 0.5) -> None:
        self.amount = amount
        self.run_metrics: dict[str, float] = {}
        self._num_growing = 0  # epochs in which the sparsity grows
        self._masks: dict[str, Tensor] = {}  # 1 for a weight that is kept, by the name of its tensor

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        key = "callbacks.sparsity"
        if trainer.max_epochs is None or trainer.max_epochs < 2:
            raise OptionError(f"{key}: needs at least 2 epochs, whose number is known; set trainer.max_epochs")
        if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            raise OptionError(
                f"{key}: is not possible with {type(trainer.strategy).__name__}; set trainer.strategy=auto"
            )
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise OptionError(f"{key}: cannot be combined with weight averaging; averaged weights are not zero")
        self._num_growing = max(1, math.floor(GROWTH * trainer.max_epochs))
        if trainer.is_global_zero:
            print_line(
                f"sparsity grows until the end of epoch {self._num_growing}, to {self.amount:.0%} of the weights"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._masks = {name: mask.to(pl_module.device) for name, mask in self._masks.items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch >= self._num_growing:
            return
        progress = (trainer.current_epoch + 1) / self._num_growing
        weights = cast(Classifier, pl_module).weight_tensors()
        sizes = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
        count = round(self.amount * (1 - (1 - progress) ** 3) * len(sizes))
        kept = torch.ones_like(sizes)
        kept[sizes.argsort(stable=True)[:count]] = 0
        parts = kept.split([weight.numel() for weight in weights.values()])
        self._masks = {name: part.view_as(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)}
        self._apply(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self._num_growing:
            forget_best(trainer)  # its weights have fewer zeros

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._apply(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = cast(Classifier, pl_module).weight_tensors().values()
        num_zeros = sum(int((weight == 0).sum()) for weight in weights)
        self.run_metrics = {"sparsity": num_zeros / sum(weight.numel() for weight in weights)}

    def state_dict(self) -> dict[str, Any]:
        return {"masks": {name: mask.bool() for name, mask in self._masks.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._masks = state_dict["masks"]

    @torch.no_grad()
    def _apply(self, pl_module: LightningModule) -> None:
        weights = cast(Classifier, pl_module).weight_tensors() if self._masks else {}
        for name, mask in self._masks.items():
            weights[name].mul_(mask)
