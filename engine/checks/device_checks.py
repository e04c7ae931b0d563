"""Reports what the run uses of its device: precision, fused optimizer, memory layout, and where the data is."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.contracts import CheckResult
from engine.terminal import count_of
from engine.training.hardware import device_name

NUM_COPIES = 10  # copies of a batch that are timed


def check_device(trainer: Trainer, module: LightningModule) -> Iterator[CheckResult]:
    """Yield one result on the device, and on a GPU another one on the data."""
    device = module.device
    yield CheckResult("note", "device", describe_device(device, str(trainer.precision), module, trainer.optimizers))
    if device.type != "cuda":
        return
    loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    inputs = getattr(loader, "inputs", None)
    if not isinstance(inputs, Tensor):  # tokens are never in GPU memory, and other DataLoaders have no tensor
        return
    seconds = copy_seconds(inputs[: loader.batch_sampler.batch_size].cpu(), device)
    size, cost = f"{inputs.nbytes / 1e9:.2f} GB of training data", f"{1e3 * seconds:.2f} ms per batch"
    if inputs.device == device:
        text = f"{size} in GPU memory; from main memory, gathering and copying would take {cost}"
    else:
        text = f"{size} in main memory; gathering and copying takes {cost}"
    yield CheckResult("note", "data", text)


def describe_device(device: torch.device, precision: str, network: nn.Module, optimizers: list[Optimizer]) -> str:
    """Return the device, the precision, whether optimizers are fused and whether convolutions are channels-last."""
    name = f"{device.type.upper()} with {count_of(torch.get_num_threads(), 'thread')}"
    if device.type in ("cuda", "xla"):
        name = device_name(device)
    tf32 = ", TF32" if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest" else ""
    found = [f"{name}, precision {precision}{tf32}"]
    for optimizer in optimizers:
        is_fused = all(group.get("fused") for group in optimizer.param_groups)
        found.append(f"{'fused' if is_fused else 'not fused'} optimizer {type(optimizer).__name__}")
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    if weights:
        is_last = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        found.append(f"convolutions {'channels-last' if is_last else 'not channels-last'}")
    return ", ".join(found)


def copy_seconds(batch: Any, device: torch.device) -> float:
    """Return the mean seconds of gathering a batch in main memory and copying it to a GPU through pinned memory."""
    indices = torch.randperm(len(batch))
    batch[indices].pin_memory().to(device)  # the first copy takes longer
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(NUM_COPIES):
        batch[indices].pin_memory().to(device, non_blocking=True)
    torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / NUM_COPIES
