"""The graph of the network's operations, for TensorBoard's GRAPHS."""

import copy
import warnings
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage, has_whole_model
from engine.contracts import Classifier, first_rows
from engine.terminal import print_line
from engine.training.loggers import PictureWriter


class ModelGraph(EvaluationCallback):
    """The graph of the network, written at the first validation of a run, or at the test if there is no validation."""

    needs_tensorboard = True

    def __init__(self) -> None:
        super().__init__()
        self._sample: Any = None
        self._is_written = False

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._is_written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # the test loads the best checkpoint, which may be older than the graph
        self._is_written |= state_dict["done"]

    def is_due(self, trainer: Trainer) -> bool:
        """The state is part of every checkpoint, so it must not depend on the clock."""
        return not self._is_written

    def update(self, pl_module: Classifier, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        if self._sample is None:
            sample = first_rows(inputs, 1)
            self._sample = pl_module.normalized(sample) if isinstance(sample, Tensor) else sample

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        if self._is_written or not has_whole_model(trainer):
            return
        self._is_written = True
        try:
            network = copy.deepcopy(pl_module.network)  # not compiled, because a compiled network cannot be traced
            with warnings.catch_warnings(), redirect_stdout(StringIO()):  # the tracer also prints its errors
                warnings.simplefilter("ignore")  # of the tracer, about its own deprecation and about the network
                PictureWriter(trainer, "train").add_graph(network, (self._sample,), use_strict_trace=False)
        except Exception as error:  # not every network can be traced
            reason = str(error).strip().partition("\n")[0]
            print_line(f"TensorBoard gets no graph of the network: {type(error).__name__}: {reason}")
        self._sample = None
