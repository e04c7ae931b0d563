"""The loop over the batches of an epoch: exact resumption in mid-epoch, and a fast training step.

Lightning's loop guesses from its counters at which hook a checkpoint was written. It can skip a validation that was due, or
count a step twice. This project writes checkpoints at two places only: before a training batch is loaded, and before a
validation. All counters are complete there, so the loop continues without guessing.

In every training step Lightning calls about twenty hooks of each callback and of the model, each in a profiler context. Most
hooks are empty. For a small model these calls take longer than the step itself. `FastStep` calls only the hooks that are
overridden. It does everything else as Lightning does, in the same order, so weights and counters are bitwise identical.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from engine.terminal import print_line
from engine.training.clock import Clock
from engine.training.hardware import run_recorded_operations
from engine.training.training_state import (
    generator_states,
    restore_rng_and_metric_state,
    rng_and_metric_state,
    rng_state,
    set_generator_states,
    set_rng_state,
)

FAST_STEP_VERSIONS = ("2.6.6",)  # of Lightning, with which `FastStep` was tested; others use Lightning's own step
HOOKS = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    "on_train_batch_end",
)  # fmt: skip
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# a model that overrides one of these methods is trained by Lightning's own step
STEP_METHODS = (
    "optimizer_step", "backward", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step",
    "on_train_batch_start", *TRANSFER_HOOKS,
)  # fmt: skip


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, which can start in the middle of an epoch.

    Attributes:
        before_batch: Called with the index of the next batch in the epoch, before that batch is loaded.
        before_validation: Called before a validation, before its loaders are started.
        validation_due: Whether to validate before the next batch, because the checkpoint was written before a validation.
        resume_state: Result of `process_state` to restore before the next batch.
        fast_step: Trains the batches; None if Lightning's own step does.
        clock: Measures the time that loading data takes.
    """

    before_batch: Callable[[int], None] = staticmethod(lambda batch_idx: None)
    before_validation: Callable[[], None] = staticmethod(lambda: None)
    validation_due = False
    resume_state: dict[str, Any] | None = None
    fast_step: "FastStep | None" = None

    def __init__(self, trainer: Trainer, clock: Clock, **limits: Any) -> None:
        super().__init__(trainer, **limits)
        self.clock = clock
        self._loaders: list[Any] = []
        self._epoch_start: dict[str, Any] | None = None  # random states when the iterators of the loaders were created
        validate = self.val_loop.run

        def call_hook_and_validate() -> Any:
            run_recorded_operations(self.trainer.strategy.root_device)
            self.before_validation()
            return validate()

        self.val_loop.run = call_hook_and_validate  # type: ignore[method-assign]

    @property
    def done(self) -> bool:
        return not self.validation_due and super().done

    def reset(self) -> None:
        if self.restarting:
            self.restarting = False  # the counters in the checkpoint are complete
            self.trainer.fit_loop._restarting = False  # with max_steps, the public setter would set it to True
        else:
            super().reset()
        self.fast_step = FastStep(self.trainer) if supports_fast_step(self.trainer) else None

    def on_run_start(self, data_fetcher: Any) -> None:
        # Lightning creates the iterators of the first epoch before the states of loaders and random generators can be
        # recorded or restored. So they are created again here.
        self._loaders = data_fetcher.combined_loader.flattened
        state, self.resume_state = self.resume_state, None
        if state is not None:
            self._resume_loaders(data_fetcher, **state["loaders"])
            restore_rng_and_metric_state(self.trainer, state)
        else:
            self._epoch_start = None
            if not all(map(_has_state, self._loaders)):
                self._epoch_start = {"rng": rng_state(), "generators": generator_states(self._loaders)}
            iter(data_fetcher)
        data_fetcher._start_profiler, data_fetcher._stop_profiler = self._on_before_fetch, self._on_after_fetch
        run_recorded_operations(self.trainer.strategy.root_device)

    def process_state(self) -> dict[str, Any]:
        """The state of this process that Lightning does not save."""
        return {**rng_and_metric_state(self.trainer), "loaders": self.loader_state()}

    def loader_state(self) -> dict[str, Any]:
        """The state of the training loaders: their position in the epoch, and the order of its samples."""
        return {
            "states": [loader.state_dict() for loader in self._loaders if _has_state(loader)],
            "epoch_start": self._epoch_start,
            "generators": generator_states(self._loaders),
        }

    def _resume_loaders(
        self, data_fetcher: Any, states: list[Any], epoch_start: dict[str, Any] | None, generators: list[Tensor]
    ) -> None:
        """Create iterators that continue at the batch of the checkpoint. The arguments are the result of `loader_state`.

        Loaders with a state (those of this project, torchdata's StatefulDataLoader) restore their position. Other loaders
        repeat the epoch from its start, and the batches that the run has trained on are skipped.
        """
        done, self._epoch_start = self.batch_progress.current.ready, epoch_start
        notes = _inexact_reasons(self._loaders, data_fetcher.length)
        if epoch_start is not None:
            set_rng_state(epoch_start["rng"])
            set_generator_states(self._loaders, epoch_start["generators"])
        if all(map(_has_state, self._loaders)):
            for loader, state in zip(self._loaders, states, strict=True):
                loader.load_state_dict(state)
            iter(data_fetcher)
            data_fetcher.fetched += done
        elif not self.batch_progress.is_last_batch:  # otherwise only the validation of this epoch is left
            iter(data_fetcher)
            notes += [f"loading and skipping the first {done:,} batches of this epoch"] if done else []
            for _ in range(done):
                next(data_fetcher)
        set_generator_states(self._loaders, generators)
        if notes and self.trainer.is_global_zero:
            print_line("\n".join(notes))

    def advance(self, data_fetcher: Any) -> None:
        if self.validation_due:
            self.validation_due = False  # the next method that Lightning calls is `on_advance_end`, which validates
            return
        self.before_batch(self.batch_progress.current.ready)
        if self.fast_step is None:
            super().advance(data_fetcher)
            return
        self.val_loop.restarting = False
        batch, *_ = next(data_fetcher)
        self.batch_progress.is_last_batch = data_fetcher.done
        self.fast_step.run(batch, self.batch_idx + 1)

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        """Also validate at the end of the training. Otherwise a short run would have no best checkpoint."""
        ends = self.trainer.enable_validation and is_last_batch(self.trainer)
        return ends or super()._should_check_val_fx(data_fetcher)

    def _on_before_fetch(self) -> None:
        super()._on_before_fetch()
        self.clock.begin("data")

    def _on_after_fetch(self) -> None:
        self.clock.end("data")
        super()._on_after_fetch()

    def _broadcast_sigterm_tensor(self) -> None:
        """Does nothing: `engine.training.checkpoints` makes all processes stop at the same step."""


def install_loop(trainer: Trainer, timeout_minutes: float, clock: Clock | None = None) -> None:
    """Replace the epoch loop of `trainer` by an `EpochLoop`, and set what the arguments of `Trainer` cannot set.

    Lightning's signal handlers are switched off, because `engine.training.signals` handles signals.

    Args:
        trainer: Before its fit.
        timeout_minutes: Timeout of collective operations of several processes. Lightning's is 30 minutes.
        clock: Measures the time that loading data takes.
    """
    old = trainer.fit_loop.epoch_loop
    clock = clock or Clock()
    trainer.fit_loop.epoch_loop = EpochLoop(trainer, clock, min_steps=old.min_steps, max_steps=old.max_steps)
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if hasattr(trainer.strategy, "_timeout"):
        trainer.strategy._timeout = timedelta(minutes=timeout_minutes)


def epoch_loop_of(trainer: Trainer) -> EpochLoop:
    """The loop that `install_loop` has given to `trainer`."""
    loop = trainer.fit_loop.epoch_loop
    assert isinstance(loop, EpochLoop)
    return loop


def is_last_batch(trainer: Trainer) -> bool:
    """Whether training ends after the current batch, because of `max_epochs`, `max_steps` or `should_stop`."""
    is_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
    has_all_steps = 0 <= trainer.max_steps <= trainer.global_step
    return trainer.fit_loop.epoch_loop.done and (is_last_epoch or has_all_steps or trainer.should_stop)


def supports_fast_step(trainer: Trainer) -> bool:
    """Whether `FastStep` can train the batches of this training."""
    module, strategy, plugin = trainer.lightning_module, trainer.strategy, trainer.precision_plugin
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    return (
        lightning.__version__ in FAST_STEP_VERSIONS
        and module.automatic_optimization
        and not any(is_overridden(name, module) for name in STEP_METHODS)
        and not (datamodule is not None and any(is_overridden(name, datamodule) for name in TRANSFER_HOOKS))
        and not is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True)
        and trainer.accumulate_grad_batches == 1
        and len(trainer.optimizers) == 1
        and type(trainer.profiler) is PassThroughProfiler  # type: ignore[attr-defined]
        and type(plugin) in (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
        and getattr(plugin, "scaler", None) is None
        and type(strategy) in (SingleDeviceStrategy, DDPStrategy)
        and getattr(strategy, "_model_averager", None) is None
    )


class FastStep:
    """Performs training steps as Lightning does, without calling empty hooks. `supports_fast_step` has its limits."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.loop, self.module = trainer, trainer.fit_loop.epoch_loop, trainer.lightning_module
        self.optimizer, self.strategy = trainer.optimizers[0], trainer.strategy
        self.device = trainer.strategy.root_device
        self.hooks = {name: _overridden_hooks(trainer, name) for name in HOOKS}
        self.takes_index = is_param_in_hook_signature(self.module.training_step, "batch_idx", min_args=2)
        self.output: Any = None

    def run(self, batch: Any, batch_idx: int) -> None:
        """Train on a batch. Only the counters of batches and of optimizer steps are updated."""
        loop, connector = self.loop, self.trainer._logger_connector
        progress = loop.batch_progress
        if not _is_on_device(batch, self.device):
            batch = self.strategy.batch_to_device(batch)
        batch = self.trainer.precision_plugin.convert_input(batch)
        progress.increment_ready()
        connector.on_batch_start(batch)
        self._call("on_train_batch_start", batch, batch_idx)
        progress.increment_started()
        counts = loop.automatic_optimization.optim_progress.optimizer
        counts.step.increment_ready()
        self.optimizer.step(lambda: self._loss(batch, batch_idx))
        counts.step.increment_completed()
        progress.increment_processed()
        if self.trainer.lr_scheduler_configs:
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            if progress.is_last_batch or progress.current.ready == self.trainer.num_training_batches:
                loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._call("on_train_batch_end", self.output, batch, batch_idx)
        self.output = None  # a validation may need the memory
        connector.on_batch_end()
        progress.increment_completed()
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
        """The loss and the other values that a training step returned. Lightning raises an error for a wrong type."""
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
            self.module._current_fx_name = name  # `self.log` reads it
            for hook in hooks:
                hook(*arguments)


def _has_state(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _inexact_reasons(loaders: list[Any], num_batches: int | None) -> list[str]:
    """Reasons why training with these loaders may not resume exactly, in lines for the user."""
    has_persistent_workers = any(getattr(loader, "persistent_workers", False) for loader in loaders)
    reasons = {
        "persistent workers of a DataLoader do not repeat their random numbers": has_persistent_workers,
        "a DataLoader has no length, so one batch was loaded in advance": num_batches is None,
        "there are several DataLoaders": len(loaders) > 1,
    }
    return [f"resuming may not be exact: {reason}" for reason, holds in reasons.items() if holds]


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
