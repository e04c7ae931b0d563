"""Experiments that several sides of a benchmark train, and training as in `train.py`. `baselines` has the other sides."""

import copy
import itertools
import tempfile
import time
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks.measure import BenchmarkError
from callbacks.throughput import flops_per_unit
from datamodules.classification import ClassificationDataModule
from engine.config.config import Config, load_config
from engine.memory import keep_freed_memory
from engine.runs.run_record import RunRecord
from engine.training.clock import Clock
from engine.training.hardware import matmul_flops, precision_for
from engine.training.signals import Signals
from lit_models.classifier import LitClassifier
from train import make, make_model, make_trainer

MAX_ACCURACY_LOSS = 0.01  # with a larger loss of accuracy, the times of two sides are not comparable


class Experiment:
    """A config with its data. Every side trains the network of the config on the same training split.

    Args:
        path: Config file.
        overrides: Options as on the command line.

    Attributes:
        config: The checked config.
        datamodule: Holds the data in main memory.
        device: Device of the baselines.
    """

    def __init__(self, path: str, overrides: Iterable[str]) -> None:
        self.config: Config = load_config(path, [*overrides, "callbacks.progress_line.live=false"])
        self.datamodule: ClassificationDataModule = make(self.config, "data", seed=self.config["seed"])
        self.datamodule.prepare_data()
        self.datamodule.setup()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")

    @property
    def on_gpu(self) -> bool:
        return self.config["trainer.accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()

    def make_datamodule(self) -> ClassificationDataModule:
        """A datamodule for one training, which shares the data in main memory."""
        datamodule = copy.copy(self.datamodule)
        datamodule._splits = dict(self.datamodule._splits)
        return datamodule

    def make_model(self) -> LitClassifier:
        """A model with its initial weights, which depend on the seed of the config."""
        seed_everything(self.config["seed"], verbose=False)
        model = make_model(self.config, self.datamodule.spec)
        model.initialize_from_data(self.datamodule.training_inputs(), self.datamodule.mean, self.datamodule.std)
        return model


class TrainingTimes(Callback):
    """Times and validation accuracies of a training. It must be the last callback.

    Args:
        target_accuracy: Validation accuracy that ends the training; None to train all epochs.
        clock: Clock of the run.
        sync_steps: Steps, counted from 1, whose times include the work of the GPU. Other steps end when the CPU is done.

    Attributes:
        epochs: Times of the starts of epochs and of the end of the training.
        steps: Times of the ends of steps.
        accuracies: Accuracy of each validation.
        target_seconds: Seconds until the target accuracy was reached.
    """

    def __init__(
        self, target_accuracy: float | None = None, clock: Clock | None = None, sync_steps: Container[int] = ()
    ) -> None:
        self.clock, self.sync_steps = clock or Clock(), sync_steps
        self.target_accuracy, self.target_seconds = target_accuracy, float("inf")
        self.epochs: list[float] = []
        self.steps: list[float] = []
        self.accuracies: list[float] = []

    def start(self) -> None:
        self._start = synchronized_time()

    def end_step(self) -> None:
        self.steps.append(synchronized_time() if len(self.steps) + 1 in self.sync_steps else time.perf_counter())

    def end_validation(self, accuracy: float) -> bool:
        """Record the accuracy and return whether it reaches the target."""
        self.accuracies.append(accuracy)
        is_reached = self.target_accuracy is not None and accuracy >= self.target_accuracy
        if is_reached:
            self.target_seconds = synchronized_time() - self._start
        return is_reached

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start()

    def on_train_batch_end(self, *_: Any) -> None:
        self.end_step()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.end_validation(float(trainer.callback_metrics["val/accuracy"])):
            trainer.should_stop = True

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs.append(synchronized_time())

    def on_train_end(self, *_: Any) -> None:
        self.epochs.append(synchronized_time())

    @property
    def epoch_seconds(self) -> list[float]:
        return [end - start for start, end in itertools.pairwise(self.epochs)]

    @property
    def total_seconds(self) -> float:
        """Seconds from the start to the end of the last epoch, or of the last step if the training has ended before."""
        return max(self.epochs[-1], self.steps[-1]) - self._start


def train_ours(
    experiment: Experiment,
    target_accuracy: float | None = None,
    sync_steps: Container[int] = (),
    callbacks: Iterable[Callback] = (),
) -> TrainingTimes:
    """Train as `train.py` does."""
    model = experiment.make_model()
    with tempfile.TemporaryDirectory() as folder:
        record = RunRecord(Path(folder), "", experiment.config.flat())
        times = TrainingTimes(target_accuracy, record.clock, sync_steps)
        trainer = make_trainer(experiment.config, Path(folder), record, Signals())
        trainer.callbacks.extend([*callbacks, times])  # type: ignore[attr-defined]
        if experiment.device.type == "cpu":
            keep_freed_memory()
        trainer.fit(model, experiment.make_datamodule())
    return times


def synchronized_time() -> float:
    """The time when a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def describe_rate(experiment: Experiment, num_samples: int, seconds: float) -> str:
    """Samples per second, and their floating-point operations compared with those of a large matrix product."""
    batch_size, dtype = experiment.config["data.batch_size"], autocast_dtype(experiment) or torch.float32
    inputs = torch.zeros(batch_size, *experiment.datamodule.spec.input_shape)
    flops = flops_per_unit(experiment.make_model(), inputs)
    achieved, peak = flops * num_samples / seconds, matmul_flops(experiment.device, dtype)
    fraction = f"{achieved / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s of a matrix product, {achieved / peak:.0%}"
    return f"{num_samples / seconds:,.0f} samples/s of {flops / 1e6:,.2f} MFLOP: {fraction}"


def compare_accuracies(ours: float, theirs: float) -> str:
    """Describe two validation accuracies.

    Raises:
        BenchmarkError: if ours is lower by more than `MAX_ACCURACY_LOSS`.
    """
    if ours < theirs - MAX_ACCURACY_LOSS:
        raise BenchmarkError(f"ours learns less: validation accuracy {ours:.4f}, baseline {theirs:.4f}")
    return f"validation accuracy {ours:.4f} / {theirs:.4f}"


def autocast_dtype(experiment: Experiment) -> torch.dtype | None:
    """The dtype of autocast for `trainer.precision` on this machine; None for 32 bits."""
    precision = str(precision_for(experiment.config["trainer.accelerator"], experiment.config["trainer.precision"]))
    return torch.bfloat16 if precision == "bf16-mixed" else None
