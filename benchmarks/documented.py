"""Lightning as its documentation teaches it: a DataLoader that transforms sample by sample, a default Trainer."""

import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.sides import Experiment, Ticks


class Samples(Dataset[tuple[Any, Tensor]]):
    """The training or validation part, sample by sample, each through `transform`."""

    def __init__(self, inputs: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.inputs, self.labels, self.transform = inputs, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.inputs[index]), self.labels[index]


class Documented(LightningModule):
    """A LightningModule as the documentation writes one, with loss and accuracy of every step."""

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.train_accuracy, self.val_accuracy = MulticlassAccuracy(num_classes), MulticlassAccuracy(num_classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self.network(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.train_accuracy(logits, batch[1])
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_accuracy", self.train_accuracy, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self.network(batch[0])
        self.val_accuracy(logits, batch[1])
        self.log("val_loss", F.cross_entropy(logits, batch[1]), prog_bar=True)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def documented(experiment: Experiment, epochs: int) -> Ticks:
    """Train with a DataLoader and a default Trainer, each sample taken through Pillow and normalised, as torchvision's MNIST
    with ToTensor and Normalize takes it."""
    mean, std = experiment.datamodule.mean / 255, experiment.datamodule.std / 255

    def transform(image: Tensor) -> Tensor:
        picture = Image.fromarray(image[0].numpy())
        pixels = torch.from_numpy(np.array(picture)).view(picture.height, picture.width, 1).permute(2, 0, 1)
        return pixels.contiguous().float().div(255).sub_(mean).div_(std)

    model, ticks, size = experiment.model(), Ticks(), experiment.config["data.batch_size"]
    train, val = (
        Samples(inputs.cpu(), labels.cpu(), transform)
        for inputs, labels in (experiment.datamodule._splits["train"], experiment.datamodule._splits["val"])
    )
    with tempfile.TemporaryDirectory() as folder:
        accelerator = "auto" if experiment.on_gpu else "cpu"
        bar = TQDMProgressBar()  # the default one where rich is not installed, which is slower
        trainer = Trainer(max_epochs=epochs, default_root_dir=folder, callbacks=[ticks, bar], accelerator=accelerator)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            trainer.fit(
                Documented(model.network, model.hparams["num_classes"]),
                DataLoader(train, size, shuffle=True),
                DataLoader(val, size),
            )
    return ticks
