"""Distillation: a student learns to predict the probabilities of a trained model, its teacher.

Hinton et al. 2015, https://arxiv.org/abs/1503.02531. The probabilities of the wrong classes give the student information
that the label does not contain.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.build import component_class
from engine.contracts import COMMAND_LINE, ConfigError, OptionError
from engine.inference.trained_run import find_trained_run

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

# B batch, K classes


class Teacher:
    """A trained model with frozen weights.

    It is not an `nn.Module`, so a checkpoint of the student does not contain it.

    Args:
        model: The model.
        folder: Folder of its run.
        identity: SHA-256 of its checkpoint; None if it is not from a checkpoint.

    Attributes:
        logits: (N, K) for all training samples; None if the teacher computes the logits of each batch.
    """

    def __init__(self, model: "LightningModule", folder: Path = Path(), identity: str | None = None) -> None:
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
        try:
            run = find_trained_run(name)
        except ConfigError as error:  # a resumed run whose teacher is gone
            raise OptionError(f"model.teacher: {str(error).removeprefix(f'{COMMAND_LINE}: ')}") from None
        with run.checkpoint.open("rb") as file:
            identity = hashlib.file_digest(file, "sha256").hexdigest()
        model = component_class(run.config, "model").load_from_checkpoint(run.checkpoint, "cpu")
        return cls(model, run.folder, identity)

    @torch.no_grad()
    def __call__(self, inputs: Any) -> Tensor:
        """Return the logits (B, K) of inputs that are not normalized, in float32 or float64."""
        return self.model(inputs)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence of the softened predictions of teacher and student, averaged over the batch.

    The factor temperature^2 keeps its gradient comparable with that of the cross-entropy.

    Args:
        logits: Logits of the student (B, K).
        teacher_logits: Logits of the teacher (B, K).
        temperature: Divides all logits. A higher temperature gives more weight to unlikely classes.
    """
    student, teacher = (values.div(temperature).log_softmax(1) for values in (logits, teacher_logits.to(logits.dtype)))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
