"""How the model sees test samples: what its last layer is given, for TensorBoard's PROJECTOR."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage, has_whole_model
from engine.training.loggers import PictureWriter

# N samples, F features, C channels, H, W

LARGEST_SPRITE = 8192  # pixels; TensorBoard loads no larger one
LARGEST_THUMBNAIL = 64


class Projector(EvaluationCallback):
    """`features` of the first test samples of the first process, with true and predicted class and, of images, a thumbnail.

    Args:
        num_samples: Of the test.
    """

    def __init__(self, num_samples: Annotated[int, ">= 1"] = 500) -> None:
        super().__init__()
        self.num_samples = num_samples

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation is not looked at."""

    def begin(self, pl_module: LightningModule) -> None:
        self._features: list[Tensor] = []
        self._images: list[Tensor] = []
        self._classes: list[tuple[int, int]] = []  # true, predicted

    def update(self, pl_module: LightningModule, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        room = self.num_samples - len(self._classes)
        if room <= 0 or not pl_module.trainer.is_global_zero or not has_whole_model(pl_module.trainer):
            return
        some = {name: one[:room] for name, one in inputs.items()} if isinstance(inputs, Mapping) else inputs[:room]
        features = pl_module.features(some)  # type: ignore[operator]
        if features is not None:
            self._features.append(features.float().cpu())
            self._classes += zip(labels[:room].tolist(), logits[:room].argmax(1).tolist(), strict=True)
            if isinstance(some, Tensor) and some.ndim == 4:
                self._images.append(some.cpu())

    def show(
        self, trainer: Trainer, pl_module: LightningModule, stage: Stage, writer: PictureWriter, gathered: Any
    ) -> None:
        if not self._features:
            return
        names = pl_module.class_names
        rows = [[names[label], names[said], "yes" if label == said else "no"] for label, said in self._classes]
        images = thumbnails(torch.cat(self._images)) if self._images else None
        folder = Path(writer.log_dir) / f"{trainer.global_step:05}/features"
        shutil.rmtree(folder, ignore_errors=True)  # of a test that was stopped
        header = ["true", "predicted", "right"]  # it labels points by the first that is no number
        writer.add_embedding(torch.cat(self._features), rows, images, trainer.global_step, "features", header)
        self.begin(pl_module)


def thumbnails(images: Tensor) -> Tensor:
    """Images (N, C, H, W) in the units of the data as (N, 3, H', W') in 0 to 1, small enough for one picture of all."""
    if images.shape[1] not in (1, 3):
        images = images.float().mean(1, keepdim=True)
    most = min(LARGEST_THUMBNAIL, LARGEST_SPRITE // (math.isqrt(len(images)) + 1))
    low, high = images.amin().float(), images.amax().float()
    images = (images.float() - low) / (high - low).clamp(min=1e-12)
    if max(images.shape[2:]) > most:
        images = F.adaptive_avg_pool2d(images, most)
    return images.expand(-1, 3, -1, -1)
