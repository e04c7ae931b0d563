"""Logs features of test samples to TensorBoard (PROJECTOR tab). The features are the input of the last layer."""

import math
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage, has_whole_model
from engine.contracts import Classifier, first_rows
from engine.training.loggers import PictureWriter

# N samples, F features, C channels, H height, W width

MAX_SPRITE_SIDE = 8192  # pixels; TensorBoard does not load a larger picture of all thumbnails
MAX_THUMBNAIL_SIDE = 64  # pixels


class Projector(EvaluationCallback):
    """Logs `features` of the first test samples, with true and predicted class and, for images, a thumbnail.

    With several processes, only samples of the first process are shown.

    Args:
        num_samples: Maximum number of samples.
    """

    needs_tensorboard = True

    def __init__(self, num_samples: Annotated[int, ">= 1"] = 500) -> None:
        super().__init__()
        self.num_samples = num_samples

    def is_due(self, trainer: Trainer) -> bool:
        """Return False, because only the test is shown."""
        return False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and has_whole_model(trainer):
            super().on_test_start(trainer, pl_module)

    def begin(self, pl_module: Classifier) -> None:
        self._features: list[Tensor] = []
        self._images: list[Tensor] = []
        self._classes: list[tuple[int, int]] = []  # true, predicted

    def update(self, pl_module: Classifier, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        room = self.num_samples - len(self._classes)
        if room <= 0:
            return
        inputs = first_rows(inputs, room)
        features = pl_module.features(inputs)
        if features is not None:
            self._features.append(features.float().cpu())
            self._classes += zip(labels[:room].tolist(), logits[:room].argmax(1).tolist(), strict=True)
            if isinstance(inputs, Tensor) and inputs.ndim == 4:
                self._images.append(inputs.cpu())

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        if not self._features:
            return
        names = pl_module.class_names
        header = ["true", "predicted", "correct"]  # TensorBoard labels points by the first column that is not a number
        rows = [
            [names[true], names[predicted], "yes" if true == predicted else "no"] for true, predicted in self._classes
        ]
        images = make_thumbnails(torch.cat(self._images)) if self._images else None
        folder = Path(writer.log_dir) / f"{trainer.global_step:05}/features"
        shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted test
        writer.add_embedding(torch.cat(self._features), rows, images, trainer.global_step, "features", header)
        self.begin(pl_module)  # frees the memory


def make_thumbnails(images: Tensor) -> Tensor:
    """Convert images (N, C, H, W) to thumbnails (N, 3, H', W') with values from 0 to 1. All of them fit into one picture."""
    if images.shape[1] not in (1, 3):
        images = images.float().mean(1, keepdim=True)
    side = min(MAX_THUMBNAIL_SIDE, MAX_SPRITE_SIDE // (math.isqrt(len(images)) + 1))
    low, high = images.amin().float(), images.amax().float()
    images = (images.float() - low) / (high - low).clamp(min=1e-12)
    if max(images.shape[2:]) > side:
        images = F.adaptive_avg_pool2d(images, side)
    return images.expand(-1, 3, -1, -1)
