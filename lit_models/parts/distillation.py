"""Distillation: a student learns to predict the probabilities of a trained model, its teacher.

Hinton et al. 2015, https://arxiv.org/abs/1503.02531. The probabilities of the wrong classes tell the student more about a
sample than its label.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.build import component_class
from engine.contracts import OptionError
from engine.inference.trained_run import find_trained_run

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

# B batch, K classes

# hyperparameters that describe the data
DATA_ARGUMENTS = {
    "input_shape": "inputs of the shape", "num_classes": "classes:", "class_names": "the classes", "columns": "the columns",
    "vocab_size": "a vocabulary of the size", "pad_id": "a padding token with the id",
}  # fmt: skip


class Teacher:
    """A trained model that is not trained further.

    It is not an `nn.Module`, so a checkpoint of the student does not contain it.

    Args:
        model: The model.
        folder: Folder of its run; None if it has none.
        identity: SHA-256 of its checkpoint; None if it has none.

    Attributes:
        logits: (N, K) for all training samples, if they are not augmented.
    """

    def __init__(self, model: "LightningModule", folder: Path | None = None, identity: str | None = None) -> None:
        self.model, self.folder, self.identity = model.eval().requires_grad_(False), folder, identity
        self.logits: Tensor | None = None

    @classmethod
    def load(cls, name: str) -> "Teacher":
        """Load the model of a run.

        Args:
            name: Folder of the run, or a checkpoint in it.

        Raises:
            UserError: if there is no such run, or if its checkpoint is damaged.
        """
        run = find_trained_run(name)
        with run.checkpoint.open("rb") as file:
            identity = hashlib.file_digest(file, "sha256").hexdigest()
        model = component_class(run.config, "model").load_from_checkpoint(run.checkpoint, "cpu")
        return cls(model, run.folder, identity)

    @torch.no_grad()
    def __call__(self, inputs: Any) -> Tensor:
        """Return the logits (B, K) of inputs in the units of the data, in float32 or float64."""
        return self.model(inputs)

    def check_data(self, student: Mapping[str, Any], datamodule: Any) -> None:
        """Raise an `OptionError` if the teacher was trained on other data than the student.

        Args:
            student: Hyperparameters of the student.
            datamodule: Its data. A datamodule of texts compares the tokenizers.
        """
        for argument, title in DATA_ARGUMENTS.items():
            ours, theirs = (_as_list(values.get(argument)) for values in (student, self.model.hparams))
            if ours != theirs:
                problem = f"{self.folder} was trained with {title} {_short(theirs)}, and the data has {_short(ours)}"
                raise OptionError(f"model.teacher: {problem}; choose a run with the same data")
        if (student.get("max_length") or 0) > (most := self.model.hparams.get("max_length") or 0):
            raise OptionError(
                f"model.teacher: {self.folder} takes at most {most} tokens; set data.max_length={most} or choose another run"
            )
        has_tokenizer_of = getattr(datamodule, "has_tokenizer_of", None)
        if has_tokenizer_of is not None and self.folder is not None and not has_tokenizer_of(self.folder):
            problem = f"{self.folder} has another tokenizer than the data"
            raise OptionError(f"model.teacher: {problem}; set data.tokenizer={self.folder / 'tokenizer'}")


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the divergence of the student from its teacher, both softened by a temperature, averaged over the batch.

    It is multiplied by the squared temperature, so that its gradient has the size of that of the cross-entropy.

    Args:
        logits: Of the student (B, K).
        teacher_logits: (B, K).
        temperature: Divides all logits. A higher temperature gives more weight to unlikely classes.
    """
    student, teacher = (values.div(temperature).log_softmax(1) for values in (logits, teacher_logits.to(logits.dtype)))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    text = str(list(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
