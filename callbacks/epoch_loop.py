"""Going on in the middle of an epoch as if there had been no stop.

Lightning guesses from its counters at which hook a checkpoint was saved, and goes on accordingly: it skips a validation that
was due, or counts a step twice. Here a checkpoint is saved at two places only, between two training batches or before a
validation, with every counter complete; so there is nothing to guess.
"""

import random
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torchmetrics import Metric

from callbacks.clock import Clock
from callbacks.lean_step import LeanStep, is_plain


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, which starts where `progress` says that it was.

    Attributes:
        validation_due: Validate before the first batch: the stop came between the two.
        lean: Runs the batches, where nothing unusual is asked for.
        clock: Counts what the data take.
    """

    validation_due = False
    lean: LeanStep | None = None
    clock: Clock

    @property
    def done(self) -> bool:
        return not self.validation_due and super().done

    def reset(self) -> None:
        if self.restarting:
            self.restarting = False  # the counters are right as they are
            self.trainer.fit_loop._restarting = False  # its setter would not, where max_steps ends the run
        else:
            super().reset()
        self.lean = LeanStep(self.trainer) if is_plain(self.trainer) else None

    def advance(self, data_fetcher: _DataFetcher) -> None:
        if self.validation_due:
            self.validation_due = False  # the loop goes on to `on_advance_end`, which validates
        elif self.lean is None:
            super().advance(data_fetcher)
        else:
            self.val_loop.restarting = False
            batch, *_ = next(data_fetcher)
            self.batch_progress.is_last_batch = data_fetcher.done
            self.lean.run(batch, self.batch_idx + 1)

    def _on_before_fetch(self) -> None:
        super()._on_before_fetch()
        self.clock.begin("data")

    def _on_after_fetch(self) -> None:
        self.clock.end("data")
        super()._on_after_fetch()

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: `callbacks.checkpoints` sees to it that all processes stop at one step."""


def control(trainer: Trainer, timeout_minutes: float, clock: Clock | None = None) -> None:
    """Give `trainer` this loop, and what its own arguments do not reach.

    Args:
        trainer: Before it is used. Signals are ours (`callbacks.signals`), not its.
        timeout_minutes: Of every collective operation of several processes; Lightning's is half an hour.
        clock: That counts what the data take.
    """
    old = trainer.fit_loop.epoch_loop
    loop = trainer.fit_loop.epoch_loop = EpochLoop(trainer, min_steps=old.min_steps, max_steps=old.max_steps)
    loop.clock = clock or Clock()
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if hasattr(trainer.strategy, "_timeout"):
        trainer.strategy._timeout = timedelta(minutes=timeout_minutes)


def progress(trainer: Trainer) -> dict[str, Any]:
    """The state of the loops, of a batch that is about to begin or of a validation that is."""
    loops: dict[str, Any] = trainer.fit_loop.state_dict()
    batches = loops["epoch_loop.batch_progress"]
    for count in (batches["total"], batches["current"]):
        count["ready"] = count["completed"]  # the next batch is counted when it comes again
    batches["is_last_batch"] = batches["is_last_batch"] and trainer.validating
    return loops


def volatile_state(trainer: Trainer) -> dict[str, Any]:
    """What else a step depends on or adds to, of this process: random numbers (dropout), metrics of the epoch so far, and
    the last ones that were logged, which schedules and early stopping look at."""
    pl_module = trainer.lightning_module
    name, key, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(key, dtype=np.int64)), *rest],  # safe loading knows tensors only
        "python": random.getstate(),
        "metrics": {
            name: [metric._update_count, {one: _copied(getattr(metric, one)) for one in metric._defaults}]
            for name, metric in _metrics(pl_module)
            if metric._update_count
        },
        "logged": {name: _copied(value) for name, value in trainer._logger_connector._callback_metrics.items()},
    }
    if pl_module.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(pl_module.device)
    return state


def restore_volatile_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put back what `volatile_state` took."""
    pl_module = trainer.lightning_module
    for name, value in state["logged"].items():
        trainer._logger_connector._callback_metrics[name] = _moved(value, pl_module.device)
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), pl_module.device)
    for name, metric in _metrics(pl_module):
        if name in state["metrics"]:
            metric._update_count, values = state["metrics"][name]
            metric._computed = None
            for one, value in values.items():
                setattr(metric, one, _moved(value, metric.device))


def _metrics(pl_module: LightningModule) -> list[tuple[str, Metric]]:
    return [(name, module) for name, module in pl_module.named_modules() if isinstance(module, Metric)]


def _copied(value: Any) -> Any:
    return [one.clone() for one in value] if isinstance(value, list) else value.clone()


def _moved(value: Any, device: torch.device) -> Any:
    return [one.to(device) for one in value] if isinstance(value, list) else value.to(device)
