"""Logs samples per second, memory, and the fraction of the device's peak performance that training reaches."""

import copy
import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engine.contracts import Classifier, map_tensors, one_line
from engine.terminal import print_line
from engine.training.hardware import MATRIX_SIDE, matmul_flops, peak_memory
from engine.training.loggers import log_everywhere

MIN_SECONDS = 10.0  # minimum training time; measuring the peak performance would slow down a shorter training


class Throughput(Callback):
    """Logs `train/samples_per_second`, `train/memory_gigabytes` and `train/peak_share`.

    Samples per second are measured over an epoch without its validations, and summed over all devices. Memory is the peak
    use of the GPU so far, or of this process if there is no GPU. `train/peak_share` compares the floating-point
    operations per second in training with a large matrix product in the same precision: 1 is the peak. It is measured at
    the end of a training of at least ten seconds, with the operations of the last batch. An error in this measurement is
    printed.

    Attributes:
        run_metrics: "samples_per_second" of the training in this process, over all devices, and "peak_share" of one device.
    """

    def __init__(self) -> None:
        self.run_metrics: dict[str, float] = {}
        self._samples = self._units = 0
        self._seconds = 0.0  # duration of all complete epochs
        self._epoch_start = self._validation_start = 0.0
        self._samples_before = 0  # number of samples before the current epoch
        self._inputs: Any = None  # inputs of the last batch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_start = time.perf_counter()  # a run that resumes within an epoch does not call on_train_epoch_start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_start, self._samples_before = time.perf_counter(), self._samples

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._inputs = batch[0]
        self._samples += len(batch[1])
        self._units += num_units(batch[0])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_start += time.perf_counter() - self._validation_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        seconds, samples = time.perf_counter() - self._epoch_start, self._samples - self._samples_before
        if not samples:  # a resumed run may start with the validation at the end of an epoch
            return
        self._seconds += seconds
        metrics = {"train/samples_per_second": samples * trainer.world_size / seconds}
        if (memory := peak_memory(pl_module.device)) is not None:
            metrics["train/memory_gigabytes"] = memory / 1e9
        log_everywhere(trainer, metrics)
        self.run_metrics["samples_per_second"] = round(self._samples * trainer.world_size / self._seconds, 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        inputs, self._inputs = self._inputs, None
        if inputs is None or self._seconds < MIN_SECONDS or pl_module.device.type not in MATRIX_SIDE:
            return
        try:
            achieved = flops_per_unit(cast(Classifier, pl_module), inputs) * self._units / self._seconds
            fraction = achieved / matmul_flops(pl_module.device, _matmul_dtype(str(trainer.precision)))
        except Exception as error:  # for example out of memory; the test must still run
            if trainer.is_global_zero:
                print_line(f"train/peak_share was not measured: {type(error).__name__}: {one_line(error)}")
            return
        log_everywhere(trainer, {"train/peak_share": fraction})
        self.run_metrics["peak_share"] = round(fraction, 4)


def num_units(inputs: Any) -> int:
    """Return the number of tokens including padding. If the inputs are not tokens, return the number of samples."""
    return inputs["input_ids"].numel() if isinstance(inputs, Mapping) else len(inputs)


def flops_per_unit(model: Classifier, inputs: Any) -> float:
    """Return the number of floating-point operations of a training step, divided by `num_units(inputs)`.

    The operations are counted on the meta device, which computes no values. This fails for a network whose operations
    depend on values.
    """
    network = copy.deepcopy(model.network).to("meta")
    with FlopCounterMode(display=False) as counter:
        network.forward(map_tensors(_empty_like, inputs)).sum().backward()
    return counter.get_total_flops() / num_units(inputs)


def _matmul_dtype(precision: str) -> torch.dtype:
    """Return the data type of matrix products in a training with this precision."""
    if precision.startswith("bf16"):
        return torch.bfloat16
    return {"16": torch.float16, "64": torch.float64}.get(precision[:2], torch.float32)


def _empty_like(values: Tensor) -> Tensor:
    """Return a tensor on the meta device, in the type that the network gets."""
    dtype = values.dtype if values.dtype in (torch.int64, torch.bool) else torch.float32
    return torch.empty_like(values, device="meta", dtype=dtype)
