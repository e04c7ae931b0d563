"""Logs the graph of the network's operations to TensorBoard (GRAPHS tab)."""

import copy
import warnings
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage, has_whole_model
from engine.contracts import Classifier, first_rows
from engine.training.loggers import PictureWriter


class ModelGraph(EvaluationCallback):
    """Logs the graph of the network at the first validation of a run, or at the test if there is no validation."""

    needs_tensorboard = True

    def __init__(self) -> None:
        super().__init__()
        self._sample: Any = None
        self._is_written = False

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._is_written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # the test loads the best checkpoint, which may have been saved before the graph was written
        self._is_written |= state_dict["done"]

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the graph is missing. This ignores the clock, because the state is part of every checkpoint."""
        return not self._is_written

    def update(self, pl_module: Classifier, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        if self._sample is None:
            sample = first_rows(inputs, 1)
            self._sample = pl_module.normalized(sample) if isinstance(sample, Tensor) else sample

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        if self._is_written or not has_whole_model(trainer):
            return
        self._is_written = True  # even if it fails: not every network can be traced
        sample, self._sample = self._sample, None
        network = copy.deepcopy(pl_module.network)  # the copy is not compiled, so it can be traced
        with warnings.catch_warnings(), redirect_stdout(StringIO()):  # the tracer also prints its errors
            warnings.simplefilter("ignore")  # about the tracer's deprecation and about the network
            PictureWriter(trainer, "train").add_graph(network, (sample,), use_strict_trace=False)
