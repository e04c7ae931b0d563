"""Samples a second, how much of the device they use, and its memory."""

import copy
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.training.hardware import MATRIX_SIDE, matmul_flops, peak_memory
from engine.training.loggers import log_everywhere

# B batch, T tokens

LEAST_SECONDS = 10.0  # of training; the peak of a shorter one is not worth the time that measuring it takes


class Throughput(Callback):
    """`train/samples_per_second` in every epoch, the most memory so far as `train/memory_gigabytes` (of the GPU, else of
    this process), and at the end of a training of more than ten seconds `train/peak_share`: floating-point operations a
    second, as a share of those of a matrix product of the same precision.

    Validations do not count. FLOPs are those of the last batch, for each sample or token of it.

    Attributes:
        run_metrics: "samples_per_second" of the training in this process, over all devices, and "peak_share" of one device.
    """

    def __init__(self) -> None:
        self.run_metrics: dict[str, float] = {}
        self._samples = self._units = 0
        self._seconds = 0.0  # of whole epochs
        self._begun = self._paused = 0.0  # of the epoch
        self._before = 0  # samples of earlier epochs
        self._inputs: Any = None  # of the last batch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = time.perf_counter()  # a run that goes on within an epoch does not start that again

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun, self._before = time.perf_counter(), self._samples

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._inputs = batch[0]
        self._samples += len(batch[1])
        self._units += num_units(batch[0])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun += time.perf_counter() - self._paused

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        seconds, samples = time.perf_counter() - self._begun, self._samples - self._before
        if samples:  # none are where only the validation was left
            self._seconds += seconds
            self._log(trainer, "train/samples_per_second", samples * trainer.world_size / seconds)
            if (most := peak_memory(pl_module.device)) is not None:
                self._log(trainer, "train/memory_gigabytes", most / 1e9)
            self.run_metrics["samples_per_second"] = round(self._samples * trainer.world_size / self._seconds, 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._seconds < LEAST_SECONDS or pl_module.device.type not in MATRIX_SIDE or self._inputs is None:
            return
        flops = flops_per_unit(pl_module, self._inputs)
        if flops is not None:
            achieved = flops * self._units / self._seconds
            share = achieved / matmul_flops(pl_module.device, _dtype(str(trainer.precision)))
            self._log(trainer, "train/peak_share", share)
            self.run_metrics["peak_share"] = round(share, 4)
        self._inputs = None

    def _log(self, trainer: Trainer, name: str, value: float) -> None:
        log_everywhere(trainer, {name: value})


def num_units(inputs: Any) -> int:
    """What the work grows with: tokens, padding included, or samples."""
    return inputs["input_ids"].numel() if isinstance(inputs, Mapping) else len(inputs)


def flops_per_unit(module: LightningModule, inputs: Any) -> float | None:
    """Floating-point operations of a training step for each unit of `inputs`, counted without doing them.

    Null where that cannot be done: a network may ask for values, which a tensor without data does not have.
    """
    try:
        network = copy.deepcopy(module.network).to("meta")
        assert isinstance(network, nn.Module)
        shaped = (
            {name: _shaped(one) for name, one in inputs.items()} if isinstance(inputs, Mapping) else _shaped(inputs)
        )
        with FlopCounterMode(display=False) as counter:
            network.forward(shaped).sum().backward()
    except Exception:  # a user's network may fail in any way, and a figure is not worth a run
        return None
    return counter.get_total_flops() / num_units(inputs)


def _dtype(precision: str) -> torch.dtype:
    """Of the products of a training."""
    if precision.startswith("bf16"):
        return torch.bfloat16
    return {"16": torch.float16, "64": torch.float64}.get(precision[:2], torch.float32)


def _shaped(tensor: Tensor) -> Tensor:
    dtype = tensor.dtype if tensor.dtype in (torch.int64, torch.bool) else torch.float32
    return torch.empty_like(tensor, device="meta", dtype=dtype)
