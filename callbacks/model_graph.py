"""The network's operations, for TensorBoard's GRAPHS."""

import warnings
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage, has_whole_model
from engine.contracts import first_rows
from engine.terminal import print_line
from engine.training.loggers import PictureWriter, tensorboard_of


class ModelGraph(EvaluationCallback):
    """The graph of one sample, written at the first validation of a run (at the test if there is no validation)."""

    def __init__(self) -> None:
        super().__init__()
        self._sample: Any = None
        self._done = False  # also True if it was written before the run was resumed

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done |= state_dict["done"]  # the best checkpoint, which is tested, may be older than the graph

    def update(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        if self._sample is None:
            sample = first_rows(inputs, 1)
            self._sample = pl_module.normalized(sample) if isinstance(sample, Tensor) else sample  # type: ignore[operator]

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: PictureWriter, gathered: Any
    ) -> None:
        sample, self._sample, logger = self._sample, None, tensorboard_of(trainer)
        if self._done or sample is None or logger is None or not has_whole_model(trainer):
            return
        self._done = True
        try:
            # the tracer prints its errors as well; a compiled network has to run eagerly to be traced
            with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.compiler.set_stance("force_eager"):
                warnings.simplefilter("ignore")  # that tracing is deprecated, and what it cannot know about a network
                logger.writer("train").add_graph(pl_module.network, (sample,), use_strict_trace=False)  # type: ignore[arg-type]
        except Exception as error:  # some networks cannot be traced, and a picture is not worth a run
            reason = str(error).strip().partition("\n")[0]
            print_line(f"no graph of the network in TensorBoard: {type(error).__name__} {reason}")

    def _is_due(self, trainer: Trainer) -> bool:
        """Does not depend on the clock, because checkpoints of equal runs must be equal."""
        return not self._done and not trainer.sanity_checking
