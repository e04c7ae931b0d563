"""The network's operations, for TensorBoard's GRAPHS."""

import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.endings import say
from callbacks.evaluation import EvaluationCallback, Stage, holds_all
from callbacks.run_logger import RunLogger


class ModelGraph(EvaluationCallback):
    """The graph of one sample, as the first evaluation that is looked at finds it."""

    def __init__(self) -> None:
        super().__init__()
        self._sample: Any = None
        self._done = False  # also before the run was resumed

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done |= state_dict["done"]  # the best checkpoint, which is tested, may be older than the graph

    def see(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        if self._sample is None:
            tokens = isinstance(inputs, Mapping)
            one: Any = {name: part[:1] for name, part in inputs.items()} if tokens else inputs[:1]
            self._sample = one if tokens else pl_module.normalized(one)  # type: ignore[operator]

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: SummaryWriter, gathered: Any
    ) -> None:
        sample, self._sample = self._sample, None
        if self._done or sample is None or not holds_all(trainer):
            return
        self._done = True
        assert isinstance(trainer.logger, RunLogger)
        network: Any = pl_module.network
        compiled, network._compiled_call_impl = network._compiled_call_impl, None  # which cannot be traced
        try:
            with warnings.catch_warnings(), redirect_stdout(StringIO()):  # it prints what goes wrong, too
                warnings.simplefilter(
                    "ignore"
                )  # that tracing is deprecated, and what it cannot know of a user's network
                trainer.logger.writer("train").add_graph(network, (sample,), use_strict_trace=False)
        except Exception as error:  # a network may do what cannot be traced, and a picture is not worth a run
            reason = str(error).strip().partition("\n")[0]
            say(f"no graph of the network in TensorBoard: {type(error).__name__} {reason}")
        finally:
            network._compiled_call_impl = compiled
