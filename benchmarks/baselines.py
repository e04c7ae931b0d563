"""What a user would write instead: a bare PyTorch loop, and Lightning as its documentation teaches it."""

import tempfile
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from PIL import Image
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.experiment import Experiment, TrainingTimes, synchronized_time
from datamodules.parts.batches import AugmentContext, derive_seeds
from lit_models import optimizers, schedules

VAL_BATCH_SIZE = 1000  # of the bare loop


def train_bare(
    experiment: Experiment,
    epochs: int,
    target_accuracy: float | None = None,
    max_steps: int | None = None,
    change: Callable[[nn.Module], nn.Module] = lambda network: network,
    autocast_dtype: torch.dtype | None = None,
    sync_steps: Container[int] = (),
    rank: int = 0,
    world_size: int = 1,
) -> TrainingTimes:
    """Train in a plain loop over the same batches, with the same augmentation, optimizer, schedule and validation.

    The loop has no training metrics, no curves, no check of the loss and no checkpoints.

    Args:
        experiment: Config and data.
        epochs: Epochs to train. The schedule has all epochs of the config.
        target_accuracy: Validation accuracy that ends the training; None to train all epochs.
        max_steps: Number of steps that ends the training, without a validation; None for no limit.
        change: Function that changes the network before the training.
        autocast_dtype: Data type of autocast; None for no autocast.
        sync_steps: As in `TrainingTimes`.
        rank: Number of this process.
        world_size: Number of processes.
    """
    model, config, device = experiment.make_model().to(experiment.device), experiment.config, experiment.device
    network, times = change(model.network), TrainingTimes(target_accuracy, sync_steps=sync_steps)
    loader, val_loader = experiment.datamodule.train_dataloader(), experiment.datamodule.val_dataloader()
    inputs, labels = loader.inputs.to(device), loader.labels.to(device)
    val_inputs, val_labels = (split[rank::world_size].to(device) for split in (val_loader.inputs, val_loader.labels))
    order = loader.batch_sampler
    order.rank, order.world_size = rank, world_size
    optimizer = _make(optimizers, config["optimizer"], network)
    schedulers = _make(schedules, config["schedule"], optimizer, config["trainer.max_epochs"] * len(order))
    generator, smoothing = Generator(device), config["model.label_smoothing"]
    augments = config["data"].get("augment_images", False)

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, autocast_dtype) if autocast_dtype else nullcontext()

    times.start()
    for epoch in range(epochs):
        times.epochs.append(synchronized_time())
        network.train()
        order.set_epoch(epoch)
        seeds = derive_seeds(len(order), order.seed, epoch, rank)
        batches = [rows for rows in order if isinstance(rows, Tensor)]
        all_rows = torch.cat(batches).to(device)  # copied at once
        for i, rows in enumerate(all_rows.split([len(rows) for rows in batches])):
            batch = inputs[rows]
            if augments:
                context = AugmentContext(generator.manual_seed(seeds[i]), order.seed, epoch, rows)
                batch = experiment.datamodule.augment(batch, context)
            with autocast():
                logits = network(model.normalized(batch))
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for scheduler in schedulers:
                scheduler["scheduler"].step()
            times.end_step()
            if max_steps is not None and len(times.steps) >= max_steps:
                return times
        network.eval()
        num_correct = torch.zeros((), device=device)
        with torch.inference_mode(), autocast():
            val_batches = zip(val_inputs.split(VAL_BATCH_SIZE), val_labels.split(VAL_BATCH_SIZE), strict=True)
            for images, targets in val_batches:
                num_correct += (network(model.normalized(images)).argmax(1) == targets).sum()
        if times.end_validation(float(num_correct) / len(val_labels)):
            break
    times.epochs.append(synchronized_time())
    return times


def _make(module: Any, section: dict[str, Any], *arguments: Any) -> Any:
    """Call the function of `module` that a config section names."""
    options = {name: value for name, value in section.items() if name != "name"}
    return getattr(module, section["name"])(*arguments, **options)


class Samples(Dataset[tuple[Any, Tensor]]):
    """A split whose samples go through `transform` one by one."""

    def __init__(self, inputs: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.inputs, self.labels, self.transform = inputs, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.inputs[index]), self.labels[index]


class DocumentedModule(LightningModule):
    """A LightningModule as in Lightning's documentation, which logs loss and accuracy of every step."""

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


def train_documented(experiment: Experiment, epochs: int) -> TrainingTimes:
    """Train with DataLoaders and a default Trainer. Each sample is transformed as torchvision's MNIST does with ToTensor and
    Normalize."""
    mean, std = experiment.datamodule.mean / 255, experiment.datamodule.std / 255

    def transform(image: Tensor) -> Tensor:
        picture = Image.fromarray(image[0].numpy())
        pixels = torch.from_numpy(np.array(picture)).view(picture.height, picture.width, 1).permute(2, 0, 1)
        return pixels.contiguous().float().div(255).sub_(mean).div_(std)

    model, times, batch_size = experiment.make_model(), TrainingTimes(), experiment.config["data.batch_size"]
    loaders = (experiment.datamodule.train_dataloader(), experiment.datamodule.val_dataloader())
    train, val = (Samples(loader.inputs, loader.labels, transform) for loader in loaders)
    with tempfile.TemporaryDirectory() as folder:
        accelerator = "auto" if experiment.on_gpu else "cpu"
        bar = TQDMProgressBar()  # the default without the package rich; the bar of rich is slower
        trainer = Trainer(max_epochs=epochs, default_root_dir=folder, callbacks=[times, bar], accelerator=accelerator)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            trainer.fit(
                DocumentedModule(model.network, model.hparams["num_classes"]),
                DataLoader(train, batch_size, shuffle=True),
                DataLoader(val, batch_size),
            )
    return times
