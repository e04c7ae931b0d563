"""A training batch with the hooks that somebody has, and no others.

At some twenty points of every step Lightning calls a hook of each callback and of the model, most of them empty, each under
a profiler's context: for a small model that takes longer than its step. Here hooks that nobody has overridden are left out.
Everything else is as in Lightning's loop, in its order, so that weights and counters end equal to the bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

HOOKS = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    "on_train_batch_end",
)  # fmt: skip
TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# a model that changes one of these has its batches trained by Lightning's own loop
STEPS = (
    "optimizer_step", "backward", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step",
    "on_train_batch_start", *TRANSFERS,
)  # fmt: skip


def is_plain(trainer: Trainer) -> bool:
    """Whether a step of this training is one that `LeanStep` knows."""
    module, strategy, plugin = trainer.lightning_module, trainer.strategy, trainer.precision_plugin
    changed = any(is_overridden(name, module) for name in STEPS)
    loader = trainer.datamodule is not None and any(is_overridden(name, trainer.datamodule) for name in TRANSFERS)  # type: ignore[attr-defined]
    return (
        module.automatic_optimization
        and not changed
        and not loader
        and trainer.accumulate_grad_batches == 1
        and len(trainer.optimizers) == 1
        and type(trainer.profiler) is PassThroughProfiler  # type: ignore[attr-defined]
        and type(plugin) in (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
        and getattr(plugin, "scaler", None) is None
        and type(strategy) in (SingleDeviceStrategy, DDPStrategy)
        and getattr(strategy, "_model_averager", None) is None
        and not isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher)
    )


class LeanStep:
    """One batch of a training for which `is_plain` holds.

    Args:
        trainer: In its fit.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.loop, self.module = trainer, trainer.fit_loop.epoch_loop, trainer.lightning_module
        self.optimizer, self.strategy = trainer.optimizers[0], trainer.strategy
        self.device = trainer.strategy.root_device
        self.hooks = {name: _overridden(trainer, name) for name in HOOKS}
        self.takes_index = is_param_in_hook_signature(self.module.training_step, "batch_idx", min_args=2)
        self.output: Any = None

    def run(self, batch: Any, batch_idx: int) -> None:
        """Train on a batch; of the loop's counters those of batches and of optimizer steps are kept."""
        loop, connector = self.loop, self.trainer._logger_connector
        if not _is_there(batch, self.device):
            batch = self.strategy.batch_to_device(batch)
        batch = self.trainer.precision_plugin.convert_input(batch)
        loop.batch_progress.increment_ready()
        connector.on_batch_start(batch)
        self._call("on_train_batch_start", batch, batch_idx)
        loop.batch_progress.increment_started()
        counts = loop.automatic_optimization.optim_progress.optimizer
        counts.step.increment_ready()
        self.optimizer.step(lambda: self._loss(batch, batch_idx))
        counts.step.increment_completed()
        loop.batch_progress.increment_processed()
        if loop.trainer.lr_scheduler_configs:
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            if loop._num_ready_batches_reached():
                loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._call("on_train_batch_end", self.output, batch, batch_idx)
        self.output = None  # a validation may need the memory
        connector.on_batch_end()
        loop.batch_progress.increment_completed()
        connector.update_train_step_metrics()

    def _loss(self, batch: Any, batch_idx: int) -> Any:
        """The closure of a step: gradients, ready for the optimizer."""
        trainer, counts = self.trainer, self.loop.automatic_optimization.optim_progress.optimizer
        with torch.enable_grad():
            self.module._current_fx_name = "training_step"
            arguments = (batch, batch_idx) if self.takes_index else (batch,)
            loss, extra = self._checked(self.strategy.training_step(*arguments))
            counts.zero_grad.increment_ready()
            self._call("on_before_zero_grad", self.optimizer)
            counts.zero_grad.increment_started()
            self.optimizer.zero_grad()
            counts.zero_grad.increment_completed()
            if loss is not None:
                self._call("on_before_backward", loss)
                loss.backward()
                self.strategy.post_backward(loss)
                self._call("on_after_backward")
        self.output = {} if loss is None else {"loss": loss.detach(), **extra}
        self._call("on_before_optimizer_step", self.optimizer)
        if trainer.gradient_clip_val:
            self.module.configure_gradient_clipping(
                self.optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            )
        return loss

    def _checked(self, output: Any) -> tuple[Tensor | None, dict[str, Any]]:
        """The loss, and what else a training step has returned; Lightning refuses what is no result."""
        if type(output) is Tensor:
            return output, {}
        if output is None:
            if self.trainer.world_size > 1:
                raise RuntimeError("`training_step` returned None: no process can leave out a step that others take")
            Closure.warning_cache.warn("`training_step` returned None: there is no step for such a batch")
        result = ClosureResult.from_training_step_output(output)
        return result.closure_loss, result.extra

    def _call(self, name: str, *arguments: Any) -> None:
        if hooks := self.hooks[name]:
            self.module._current_fx_name = name  # `self.log` asks where it is
            for hook in hooks:
                hook(*arguments)


def _overridden(trainer: Trainer, name: str) -> list[Callable[..., Any]]:
    """A hook of the callbacks and the model, in Lightning's order, where it is not the empty one."""
    callbacks = (one for one in trainer.callbacks if is_overridden(name, one))  # type: ignore[attr-defined]
    module = trainer.lightning_module
    hooks: list[Callable[..., Any]] = [_bound(getattr(one, name), trainer, module) for one in callbacks]
    return [*hooks, getattr(module, name)] if is_overridden(name, module) else hooks


def _bound(hook: Callable[..., Any], trainer: Trainer, module: LightningModule) -> Callable[..., Any]:
    return lambda *arguments: hook(trainer, module, *arguments)


def _is_there(batch: Any, device: torch.device) -> bool:
    """Whether a batch is a tuple of tensors, all on `device`."""
    return type(batch) is tuple and all(type(one) is Tensor and one.device == device for one in batch)
