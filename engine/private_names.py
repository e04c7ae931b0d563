"""The private names of other packages that this project uses, and why.

A private name can change with any release. So `pyproject.toml` bounds the packages above, and
`tests/engine/test_private_names.py` checks every name of the table, and that no other one is used.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PrivateName(NamedTuple):
    """A private name of another package.

    Attributes:
        path: Names in a module, or attributes of a `trainer`, a `module`, a `metric` or `events` (an
            EventFileWriter of tensorboard). ``()`` creates an instance.
        reason: Why it is used.
        replacement: What to use if it is gone.
    """

    path: str
    reason: str
    replacement: str


PRIVATE_NAMES = (
    PrivateName(
        "lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop",
        "base class of EpochLoop, which resumes in mid-epoch and runs FastStep",
        "a training loop of our own",
    ),
    PrivateName(
        "trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor",
        "overridden, because it makes several processes wait in every step",
        "remove the override",
    ),
    PrivateName(
        "trainer.fit_loop.epoch_loop._should_check_val_fx",
        "overridden to validate at the end of the training",
        "validate in Checkpoints.on_train_end",
    ),
    PrivateName(
        "trainer.fit_loop.epoch_loop._on_before_fetch",
        "overridden to measure the time that loading takes",
        "measure `next` of the data fetcher",
    ),
    PrivateName(
        "trainer.fit_loop.epoch_loop._on_after_fetch",
        "overridden to measure the time that loading takes",
        "measure `next` of the data fetcher",
    ),
    PrivateName(
        "lightning.pytorch.loops.fetchers._DataFetcher()._start_profiler",
        "calls _on_before_fetch",
        "measure `next` of the data fetcher",
    ),
    PrivateName(
        "lightning.pytorch.loops.fetchers._DataFetcher()._stop_profiler",
        "calls _on_after_fetch",
        "measure `next` of the data fetcher",
    ),
    PrivateName(
        "trainer.fit_loop._restarting",
        "set to False when a run resumes, which the public setter does not do with max_steps",
        "the public setter `restarting`",
    ),
    PrivateName(
        "trainer._signal_connector.register_signal_handlers",
        "switched off, because Lightning's handlers save within a step and can hang several processes",
        "install our handlers after Lightning's",
    ),
    PrivateName(
        "trainer._logger_connector._callback_metrics",
        "saved and restored, because schedules and early stopping read it",
        "trainer.callback_metrics, which also computes metrics",
    ),
    PrivateName("trainer._logger_connector.on_batch_start", "called by FastStep", "Lightning's own step"),
    PrivateName("trainer._logger_connector.on_batch_end", "called by FastStep", "Lightning's own step"),
    PrivateName("trainer._logger_connector.update_train_step_metrics", "called by FastStep", "Lightning's own step"),
    PrivateName(
        "module._current_fx_name",
        "set by FastStep, because `self.log` needs the name of the hook",
        "Lightning's own step",
    ),
    PrivateName(
        "lightning.pytorch.strategies.DDPStrategy()._model_averager",
        "FastStep does not support it",
        "remove the condition",
    ),
    PrivateName(
        "lightning.pytorch.strategies.DDPStrategy()._timeout",
        "set to run.timeout_minutes",
        "the argument `timeout` of DDPStrategy",
    ),
    PrivateName(
        "metric._update_count",
        "restored with the state of a metric, because the public update_count is read-only",
        "states of metrics that are persistent",
    ),
    PrivateName(
        "events._file_name",
        "the name of an event file, which decides the order in which TensorBoard reads the files",
        "nothing, so that curves are in the wrong order if the clock was set back",
    ),
    PrivateName(
        "events._general_file_writer",
        "its file is renamed if the clock was set back",
        "nothing, so that curves are in the wrong order if the clock was set back",
    ),
    PrivateName(
        "torch._foreach_norm",
        "total_norm takes half the time of torch.nn.utils.get_total_norm in every step",
        "torch.nn.utils.get_total_norm",
    ),
)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm (a scalar tensor) of all values of `tensors`; 0 if there are no tensors."""
    if not tensors:
        return torch.zeros(())
    norms = torch._foreach_norm(list(tensors))
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))
