"""The training loop: the batches of an epoch, each by a fast step, and resumption in mid-epoch.

Lightning's loop guesses from its counters at which hook a checkpoint was saved, and skips a validation that was due or counts
a step twice. Here checkpoints are saved at two places only, between two training batches and before a validation, with every
counter complete, so nothing has to be guessed.

At some twenty points of every step Lightning calls a hook of each callback and of the model, most of them empty, each under a
profiler's context. For a small model that takes longer than the step. `FastStep` leaves out hooks that nobody overrides.
Everything else happens as in Lightning's loop and in its order, so that weights and counters end equal to the bit.
"""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from engine.terminal import print_line
from engine.training.clock import Clock

FAST_STEP_VERSIONS = ("2.6.6",)  # of Lightning, with which `FastStep` was tested; others use Lightning's own step
HOOKS = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    "on_train_batch_end",
)  # fmt: skip
TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# a model that overrides one of these is trained by Lightning's own step
STEPS = (
    "optimizer_step", "backward", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step",
    "on_train_batch_start", *TRANSFERS,
)  # fmt: skip


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, which can start in the middle of one.

    Attributes:
        validation_due: Validate before the first batch, because the run was stopped between training and validation.
        fast_step: Trains the batches; None if Lightning's own step does.
        epoch_start_rng: Random state when the iterator of an ordinary DataLoader was created, which decides its order.
        clock: Measures the time that loading data takes.
    """

    validation_due = False
    fast_step: "FastStep | None" = None
    epoch_start_rng: dict[str, Any] | None = None
    clock: Clock

    @property
    def done(self) -> bool:
        return not self.validation_due and super().done

    def reset(self) -> None:
        if self.restarting:
            self.restarting = False  # the counters are right as they are
            self.trainer.fit_loop._restarting = False  # its setter would not, if max_steps ends the run
        else:
            super().reset()
        self.fast_step = FastStep(self.trainer) if supports_fast_step(self.trainer) else None

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        if all(_resumes_itself(loader) for loader in data_fetcher.combined_loader.flattened):
            super().on_run_start(data_fetcher)
            return
        done, now = self.batch_progress.current.ready, rng_state()
        if done and self.epoch_start_rng is not None:
            set_rng_state(self.epoch_start_rng)
        else:
            self.epoch_start_rng = now
        iter(data_fetcher)
        if done:
            self._skip(data_fetcher, done)
            set_rng_state(now)
        data_fetcher._start_profiler, data_fetcher._stop_profiler = self._on_before_fetch, self._on_after_fetch

    def _skip(self, data_fetcher: _DataFetcher, done: int) -> None:
        """Load the batches that the run has trained on, and drop them."""
        loaders = data_fetcher.combined_loader.flattened
        changes = any(getattr(loader, "persistent_workers", False) for loader in loaders)
        note = "; random numbers of persistent workers are not repeated" if changes else ""
        if self.trainer.is_global_zero:
            print_line(f"the DataLoader skips the first {done:,} batches of this epoch{note}")
        for _ in range(done):
            next(data_fetcher)

    def advance(self, data_fetcher: _DataFetcher) -> None:
        if self.validation_due:
            self.validation_due = False  # the loop goes on to `on_advance_end`, which validates
        elif self.fast_step is None:
            super().advance(data_fetcher)
        else:
            self.val_loop.restarting = False
            batch, *_ = next(data_fetcher)
            self.batch_progress.is_last_batch = data_fetcher.done
            self.fast_step.run(batch, self.batch_idx + 1)

    def _on_before_fetch(self) -> None:
        super()._on_before_fetch()
        self.clock.begin("data")

    def _on_after_fetch(self) -> None:
        self.clock.end("data")
        super()._on_after_fetch()

    def _broadcast_sigterm_tensor(self) -> None:
        """Does nothing: `engine.training.checkpoints` makes all processes stop at the same step."""


def install_loop(trainer: Trainer, timeout_minutes: float, clock: Clock | None = None) -> None:
    """Give `trainer` an `EpochLoop`, and set what its arguments do not reach.

    Args:
        trainer: Before its fit. Its own signal handlers are switched off, because `engine.training.signals` has others.
        timeout_minutes: Timeout of collective operations of several processes. Lightning's is 30 minutes.
        clock: Measures the time that loading data takes.
    """
    old = trainer.fit_loop.epoch_loop
    loop = trainer.fit_loop.epoch_loop = EpochLoop(trainer, min_steps=old.min_steps, max_steps=old.max_steps)
    loop.clock = clock or Clock()
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if hasattr(trainer.strategy, "_timeout"):
        trainer.strategy._timeout = timedelta(minutes=timeout_minutes)


def supports_fast_step(trainer: Trainer) -> bool:
    """Whether `FastStep` can train the batches of this training."""
    module, strategy, plugin = trainer.lightning_module, trainer.strategy, trainer.precision_plugin
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    return (
        lightning.__version__ in FAST_STEP_VERSIONS
        and module.automatic_optimization
        and not any(is_overridden(name, module) for name in STEPS)
        and not (datamodule is not None and any(is_overridden(name, datamodule) for name in TRANSFERS))
        and trainer.accumulate_grad_batches == 1
        and len(trainer.optimizers) == 1
        and type(trainer.profiler) is PassThroughProfiler  # type: ignore[attr-defined]
        and type(plugin) in (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
        and getattr(plugin, "scaler", None) is None
        and type(strategy) in (SingleDeviceStrategy, DDPStrategy)
        and getattr(strategy, "_model_averager", None) is None
        and not isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher)
    )


class FastStep:
    """Trains on one batch after another, if `supports_fast_step`."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.loop, self.module = trainer, trainer.fit_loop.epoch_loop, trainer.lightning_module
        self.optimizer, self.strategy = trainer.optimizers[0], trainer.strategy
        self.device = trainer.strategy.root_device
        self.hooks = {name: _overridden_hooks(trainer, name) for name in HOOKS}
        self.takes_index = is_param_in_hook_signature(self.module.training_step, "batch_idx", min_args=2)
        self.output: Any = None

    def run(self, batch: Any, batch_idx: int) -> None:
        """Train on a batch. Of the loop's counters, those of batches and of optimizer steps are kept."""
        loop, connector = self.loop, self.trainer._logger_connector
        if not _is_on_device(batch, self.device):
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
        """The optimizer's closure: computes loss and gradients."""
        trainer, counts = self.trainer, self.loop.automatic_optimization.optim_progress.optimizer
        with torch.enable_grad():
            self.module._current_fx_name = "training_step"
            arguments = (batch, batch_idx) if self.takes_index else (batch,)
            loss, extra = self._checked_output(self.strategy.training_step(*arguments))
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

    def _checked_output(self, output: Any) -> tuple[Tensor | None, dict[str, Any]]:
        """The loss, and what else a training step returned. Lightning refuses other results."""
        if type(output) is Tensor:
            return output, {}
        if output is None:
            if self.trainer.world_size > 1:
                raise RuntimeError("`training_step` returned None; with several processes no process can skip a step")
            Closure.warning_cache.warn("`training_step` returned None, so such batches are skipped")
        result = ClosureResult.from_training_step_output(output)
        return result.closure_loss, result.extra

    def _call(self, name: str, *arguments: Any) -> None:
        if hooks := self.hooks[name]:
            self.module._current_fx_name = name  # `self.log` looks at it
            for hook in hooks:
                hook(*arguments)


def loop_state(trainer: Trainer) -> dict[str, Any]:
    """The state of the loops, before a training batch or before a validation."""
    loops: dict[str, Any] = trainer.fit_loop.state_dict()
    batches = loops["epoch_loop.batch_progress"]
    for count in (batches["total"], batches["current"]):
        count["ready"] = count["completed"]  # the next batch is counted when it comes again
    batches["is_last_batch"] = batches["is_last_batch"] and trainer.validating
    return loops


def rng_and_metric_state(trainer: Trainer) -> dict[str, Any]:
    """What else a step of this process depends on or adds to: random states, the metrics of the epoch so far, and the last
    logged metrics, which schedules and early stopping look at."""
    pl_module, loop = trainer.lightning_module, trainer.fit_loop.epoch_loop
    return {
        **rng_state(pl_module.device),
        "epoch_start_rng": getattr(loop, "epoch_start_rng", None),
        "metrics": {
            name: [metric._update_count, {state: _copy(getattr(metric, state)) for state in metric._defaults}]
            for name, metric in _metrics(pl_module)
            if metric._update_count
        },
        "logged": {name: _copy(value) for name, value in trainer._logger_connector._callback_metrics.items()},
    }


def restore_rng_and_metric_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """Restore the result of `rng_and_metric_state`."""
    pl_module, loop = trainer.lightning_module, trainer.fit_loop.epoch_loop
    for name, value in state["logged"].items():
        trainer._logger_connector._callback_metrics[name] = _move(value, pl_module.device)
    set_rng_state(state, pl_module.device)
    if isinstance(loop, EpochLoop):
        loop.epoch_start_rng = state["epoch_start_rng"]
    for name, metric in _metrics(pl_module):
        if name in state["metrics"]:
            metric._update_count, values = state["metrics"][name]
            metric._computed = None
            for attribute, value in values.items():
                setattr(metric, attribute, _move(value, metric.device))


def rng_state(device: torch.device | None = None) -> dict[str, Any]:
    """The states of all random number generators, in types that `torch.load` reads with ``weights_only=True``."""
    name, key, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(key, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Restore the result of `rng_state`."""
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and device is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _resumes_itself(loader: Any) -> bool:
    """Whether a loader finds its place in the epoch without skipping: ours, or one with a state, such as StatefulDataLoader."""
    return hasattr(getattr(loader, "batch_sampler", None), "resumed") or hasattr(loader, "load_state_dict")


def _overridden_hooks(trainer: Trainer, name: str) -> list[Callable[..., Any]]:
    """A hook of the callbacks and the model, in Lightning's order, where it is overridden."""
    callbacks = (callback for callback in trainer.callbacks if is_overridden(name, callback))  # type: ignore[attr-defined]
    module = trainer.lightning_module
    hooks: list[Callable[..., Any]] = [_bind(getattr(callback, name), trainer, module) for callback in callbacks]
    return [*hooks, getattr(module, name)] if is_overridden(name, module) else hooks


def _bind(hook: Callable[..., Any], trainer: Trainer, module: LightningModule) -> Callable[..., Any]:
    return lambda *arguments: hook(trainer, module, *arguments)


def _is_on_device(batch: Any, device: torch.device) -> bool:
    """Whether a batch is a tuple of tensors that are all on `device`."""
    return type(batch) is tuple and all(type(tensor) is Tensor and tensor.device == device for tensor in batch)


def _metrics(pl_module: LightningModule) -> list[tuple[str, Metric]]:
    return [(name, module) for name, module in pl_module.named_modules() if isinstance(module, Metric)]


def _copy(value: Any) -> Any:
    return [tensor.clone() for tensor in value] if isinstance(value, list) else value.clone()


def _move(value: Any, device: torch.device) -> Any:
    return [tensor.to(device) for tensor in value] if isinstance(value, list) else value.to(device)
