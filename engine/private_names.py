"""Every private name of another package that this project uses, and why. `tests/engine/test_private_names.py` checks each one.

A private name may change with any release, so `pyproject.toml` bounds the packages above.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PrivateName(NamedTuple):
    """A private name.

    Attributes:
        path: Its module and name, or the way to it from a `trainer`, a `metric` or a `writer` of TensorBoard.
        reason: What it is used for.
        replacement: What to do if it is gone.
    """

    path: str
    reason: str
    replacement: str


PRIVATE_NAMES = (
    PrivateName(
        "lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop",
        "base class of EpochLoop, which resumes in mid-epoch and runs the fast step",
        "a loop of our own around trainer.strategy",
    ),
    PrivateName("lightning.pytorch.loops.fetchers._DataFetcher", "type of an argument of the loop", "Any"),
    PrivateName(
        "lightning.pytorch.loops.fetchers._DataLoaderIterDataFetcher",
        "marks a training_step that takes the iterator, which FastStep does not support",
        "look for the argument dataloader_iter of training_step",
    ),
    PrivateName("trainer.fit_loop._restarting", "its setter forgets that the loop restarts", "set restarting"),
    PrivateName("trainer.fit_loop._data_fetcher", "to see which fetcher the loop uses", "as for the fetcher's class"),
    PrivateName("trainer.fit_loop.epoch_loop._on_before_fetch", "measures the time that data takes", "wrap the loader"),
    PrivateName("trainer.fit_loop.epoch_loop._on_after_fetch", "measures the time that data takes", "wrap the loader"),
    PrivateName(
        "trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor",
        "switched off, because it makes several processes wait in every step",
        "remove the override",
    ),
    PrivateName(
        "trainer.fit_loop.epoch_loop._num_ready_batches_reached",
        "tells FastStep that an epoch ends, for schedules",
        "compare batch_idx with num_training_batches",
    ),
    PrivateName(
        "lightning.pytorch.loops.fetchers._DataFetcher()._start_profiler",
        "hook before a batch is loaded",
        "wrap the loader",
    ),
    PrivateName(
        "lightning.pytorch.loops.fetchers._DataFetcher()._stop_profiler",
        "hook after a batch is loaded",
        "wrap the loader",
    ),
    PrivateName(
        "trainer._signal_connector",
        "its handlers are switched off, because they save in mid-step and hang several processes",
        "install ours after the trainer's",
    ),
    PrivateName(
        "trainer._logger_connector",
        "FastStep tells it when a batch starts and ends; checkpoints keep the metrics it has logged",
        "call trainer.fit_loop's own step",
    ),
    PrivateName("trainer._logger_connector._callback_metrics", "restored when a run is resumed", "log them again"),
    PrivateName(
        "lightning.pytorch.LightningModule()._current_fx_name", "`self.log` asks where it is called", "Lightning's step"
    ),
    PrivateName(
        "lightning.pytorch.strategies.DDPStrategy()._timeout", "sets run.timeout_minutes", "DDPStrategy(timeout=...)"
    ),
    PrivateName(
        "lightning.pytorch.strategies.DDPStrategy()._model_averager",
        "FastStep does not support it",
        "type of the strategy",
    ),
    PrivateName(
        "metric._update_count", "an epoch's metrics are saved in mid-epoch", "Metric.state_dict with persistence"
    ),
    PrivateName("metric._computed", "a cached result is dropped when a metric is restored", "Metric.reset"),
    PrivateName("metric._defaults", "the names of a metric's states", "Metric.metric_state"),
    PrivateName("writer._get_file_writer", "tells TensorBoard that a run starts again", "delete the old event file"),
    PrivateName(
        "torch._foreach_norm", "half the time of torch.nn.utils.get_total_norm, in every step", "get_total_norm"
    ),
)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm (a scalar tensor) of all values of `tensors`; 0 if there are none."""
    if not tensors:
        return torch.zeros(())
    norms = torch._foreach_norm(list(tensors))
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))
