"""The state of a process that Lightning does not save: random generators, and metrics in the middle of an epoch."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

ACCELERATORS = ("cuda", "mps", "xpu")  # devices with a random number generator, torch.cuda.get_rng_state and so on


def rng_and_metric_state(trainer: Trainer) -> dict[str, Any]:
    """The state of this process that Lightning does not save.

    It holds the random states, the metrics of the epoch so far, and the logged metrics, which schedules use.
    """
    module = trainer.lightning_module
    return {
        **rng_state(module.device),
        "metrics": {
            name: [metric.update_count, {state: _copy(value) for state, value in metric.metric_state.items()}]
            for name, metric in _metrics(module)
            if metric.update_count
        },
        "logged": {name: _copy(value) for name, value in trainer._logger_connector._callback_metrics.items()},
    }


def restore_rng_and_metric_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """Restore the result of `rng_and_metric_state`."""
    module = trainer.lightning_module
    for name, value in state["logged"].items():
        trainer._logger_connector._callback_metrics[name] = _move(value, module.device)
    for name, metric in _metrics(module):
        if name in state["metrics"]:
            metric.reset()
            metric._update_count, values = state["metrics"][name]
            for attribute, value in values.items():
                setattr(metric, attribute, _move(value, metric.device))
    set_rng_state(state, module.device)


def rng_state(device: torch.device | None = None) -> dict[str, Any]:
    """The states of all random number generators, in types that `torch.load` reads with ``weights_only=True``.

    Args:
        device: Device whose generator is included. None for the generators of the host only.
    """
    name, key, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(key, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }
    if device is not None and (generator := _device_generator(device)) is not None:
        state[device.type] = generator.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Restore the result of `rng_state`."""
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    if device is not None and device.type in state:
        value = state[device.type]
        _device_generator(device).set_rng_state(value.cpu() if isinstance(value, Tensor) else value)


def seed_device(device: torch.device) -> None:
    """Seed the generator of an XLA device as that of the CPU, which `torch.manual_seed` does for other devices."""
    if device.type == "xla":
        _device_generator(device).set_rng_state(torch.initial_seed())


def _device_generator(device: torch.device) -> Any:
    """The module with the functions get_rng_state and set_rng_state of a device; None if the device has no generator."""
    if device.type == "xla":
        import torch_xla.core.xla_model as xm

        return xm
    return getattr(torch, device.type) if device.type in ACCELERATORS else None


def _generators(loaders: list[Any]) -> list[torch.Generator]:
    """The random generators that were passed to DataLoaders or their samplers."""
    owners = [owner for loader in loaders for owner in (loader, getattr(loader, "sampler", None))]
    generators = [getattr(owner, "generator", None) for owner in owners]
    return [generator for generator in generators if isinstance(generator, torch.Generator)]


def generator_states(loaders: list[Any]) -> list[Tensor]:
    return [generator.get_state() for generator in _generators(loaders)]


def set_generator_states(loaders: list[Any], states: list[Tensor]) -> None:
    for generator, state in zip(_generators(loaders), states, strict=True):
        generator.set_state(state)


def _metrics(pl_module: LightningModule) -> list[tuple[str, Metric]]:
    return [(name, module) for name, module in pl_module.named_modules() if isinstance(module, Metric)]


def _copy(value: Any) -> Any:
    return [tensor.clone() for tensor in value] if isinstance(value, list) else value.clone()


def _move(value: Any, device: torch.device) -> Any:
    return [tensor.to(device) for tensor in value] if isinstance(value, list) else value.to(device)
