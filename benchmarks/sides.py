"""Two sides of the benchmarks: ours and a bare PyTorch loop; `documented` is a third.

All train the network that `train.py` makes of a config, on the same training part in batches of the same size.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Container, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Generator, Tensor, nn

from benchmarks.measure import BenchmarkError
from callbacks.throughput import flops_per_unit, matmul_flops
from datamodules.classification import ClassificationDataModule
from datamodules.parts.batches import AugmentContext, derive_seeds
from engine.config.config import Config, load_config
from engine.runs.run_record import RunRecord
from engine.training.clock import Clock
from engine.training.hardware import precision_for
from engine.training.signals import Signals
from lit_models import optimizers, schedules
from lit_models.classifier import LitClassifier
from train import make, make_model, make_trainer


class Experiment:
    """A config with its data, from which every side is made.

    Args:
        path: Of the config.
        overrides: As on the command line.
    """

    def __init__(self, path: str, overrides: Iterable[str]) -> None:
        self.config: Config = load_config(path, [*overrides, "callbacks.progress_line.live=false"])
        self.datamodule = self.data()
        self.datamodule.prepare_data()
        self.datamodule.setup()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.share = (0, 1)  # of a bare loop: which of how many processes it is

    @property
    def on_gpu(self) -> bool:
        return self.config["trainer.accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()

    def data(self) -> ClassificationDataModule:
        """A datamodule; the first one holds the parts, which the others share."""
        made: ClassificationDataModule = make(self.config, "data", seed=self.config["seed"])
        if hasattr(self, "datamodule"):
            made._splits, made.mean, made.std = dict(self.datamodule._splits), self.datamodule.mean, self.datamodule.std
        return made

    def model(self) -> LitClassifier:
        seed_everything(self.config["seed"], verbose=False)
        made = make_model(self.config, self.datamodule.spec)
        made.initialize_from_data(self.datamodule.training_inputs(), self.datamodule.mean, self.datamodule.std)
        return made


class Ticks(Callback):
    """When each epoch and each step was over, and what the validations found; the callback comes last."""

    def __init__(self, until: float | None = None, clock: Clock | None = None, waits: Container[int] = ()) -> None:
        self.clock, self.waits = clock or Clock(), waits
        self.until, self.epochs, self.steps = until, list[float](), list[float]()
        self.accuracies: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = _now()

    def on_train_batch_end(self, *_: Any) -> None:
        self.step()

    def step(self) -> None:
        """A step is over for the host; after those in `waits`, counted from 1, for a GPU, too."""
        self.steps.append(_now() if len(self.steps) + 1 in self.waits else time.perf_counter())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.accuracies.append(float(trainer.callback_metrics["val/accuracy"]))
        if self.until is not None and self.accuracies[-1] >= self.until:
            self.reached = _now() - self.begun
            trainer.should_stop = True

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs.append(_now())

    def on_train_end(self, *_: Any) -> None:
        self.epochs.append(_now())

    @property
    def seconds(self) -> list[float]:
        """Of each epoch."""
        return [after - before for before, after in itertools.pairwise(self.epochs)]


def ours(experiment: Experiment, until: float | None = None, waits: Container[int] = ()) -> Ticks:
    """Train as `train.py` does."""
    model = experiment.model()
    with tempfile.TemporaryDirectory() as folder:
        record = RunRecord(Path(folder), "", experiment.config.flat())
        ticks = Ticks(until, record.clock, waits)
        trainer = make_trainer(experiment.config, Path(folder), record, Signals())
        trainer.callbacks.append(ticks)  # type: ignore[attr-defined]
        trainer.fit(model, experiment.data())
    return ticks


def bare(
    experiment: Experiment,
    epochs: int,
    until: float | None = None,
    max_steps: int | None = None,
    change: Callable[[nn.Module], nn.Module] = lambda network: network,
    precision: torch.dtype | None = None,
    waits: Container[int] = (),
) -> Ticks:
    """A plain loop over the same batches with the same augmentation, optimizer, schedule and validation; no curves, no
    metrics of the training, no guard, no checkpoints.

    Args:
        experiment: What is trained.
        epochs: How many are trained; the schedule has all of the config's.
        until: Stop at this validation accuracy.
        max_steps: Stop after so many steps, without a validation.
        change: Done to the network first.
        precision: Of autocast; null for none.
        waits: Steps after which a GPU is waited for.
    """
    model, config, ticks = experiment.model().to(experiment.device), experiment.config, Ticks(until, waits=waits)
    network = change(model.network)
    loader = experiment.datamodule.train_dataloader()
    inputs, labels = (one.to(experiment.device) for one in (loader.inputs, loader.labels))
    order = loader.batch_sampler
    order.rank, order.world_size = experiment.share
    rank, world_size = experiment.share
    val_inputs, val_labels = (
        one[rank::world_size].to(experiment.device) for one in experiment.datamodule._splits["val"]
    )
    options = {name: value for name, value in config["optimizer"].items() if name != "name"}
    optimizer = getattr(optimizers, config["optimizer.name"])(network, **options)
    total = config["trainer.max_epochs"] * len(order)
    options = {name: value for name, value in config["schedule"].items() if name != "name"}
    entries = getattr(schedules, config["schedule.name"])(optimizer, total, **options)
    generator, smoothing = Generator(experiment.device), config["model.label_smoothing"]
    augments = config["data"].get("augment_images", False)

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(experiment.device.type, precision) if precision else nullcontext()

    ticks.begun = _now()
    for epoch in range(epochs):
        ticks.epochs.append(_now())
        network.train()
        order.set_epoch(epoch)
        seeds = derive_seeds(len(order), order.seed, epoch, rank)
        batches = [one for one in order if isinstance(one, Tensor)]
        at_once = torch.cat(batches).to(experiment.device)
        for i, rows in enumerate(at_once.split([len(one) for one in batches])):
            batch = inputs[rows]
            if augments:
                batch = experiment.datamodule.augment(
                    batch, AugmentContext(generator.manual_seed(seeds[i]), order.seed, epoch, rows)
                )
            with autocast():
                logits = network(model.normalized(batch))
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for entry in entries:
                entry["scheduler"].step()
            ticks.step()
            if max_steps is not None and len(ticks.steps) >= max_steps:
                return ticks
        network.eval()
        hits = torch.zeros((), device=experiment.device)
        with torch.inference_mode(), autocast():
            for images, targets in zip(val_inputs.split(1000), val_labels.split(1000), strict=True):
                hits += (network(model.normalized(images)).argmax(1) == targets).sum()
        ticks.accuracies.append(float(hits) / len(val_labels))
        if until is not None and ticks.accuracies[-1] >= until:
            ticks.reached = _now() - ticks.begun
            break
    ticks.epochs.append(_now())
    return ticks


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rate(experiment: Experiment, samples: int, seconds: float) -> str:
    """Samples a second, and what their arithmetic is of a matrix product's, measured now."""
    size, dtype = experiment.config["data.batch_size"], autocast_type(experiment) or torch.float32
    flops = flops_per_unit(experiment.model(), torch.zeros(size, *experiment.datamodule.spec.input_shape)) or 0.0
    achieved, peak = flops * samples / seconds, matmul_flops(experiment.device, dtype)
    share = f"{achieved / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s of a matrix product, {achieved / peak:.0%}"
    return f"{samples / seconds:,.0f} samples/s of {flops / 1e6:,.2f} MFLOP: {share}"


def learns_as_much(ours: float, theirs: float) -> str:
    """Both validation accuracies.

    Raises:
        BenchmarkError: if ours is a point below: faster is not better then.
    """
    if ours < theirs - 0.01:
        raise BenchmarkError(f"ours learns less: a validation accuracy of {ours:.4f} beside {theirs:.4f}")
    return f"validation accuracy {ours:.4f} / {theirs:.4f}"


def autocast_type(experiment: Experiment) -> torch.dtype | None:
    """What `trainer.precision` comes to on this machine."""
    precision = str(precision_for(experiment.config["trainer.accelerator"], experiment.config["trainer.precision"]))
    return torch.bfloat16 if precision == "bf16-mixed" else None
