"""What this machine can train on, and how exactly."""

import os

import torch
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator


def best_precision(accelerator: str) -> str:
    """bf16-mixed where the hardware that will be used multiplies bf16 natively, else 32-true."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        native = torch.cuda.get_device_capability() >= (8, 0)
    else:
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
        features = torch.cpu.get_capabilities() if on_cpu else {}
        native = bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return "bf16-mixed" if native else "32-true"


def hardware() -> str:
    """What this machine has to train on."""
    gpus = f"{torch.cuda.device_count()} CUDA GPUs" if torch.cuda.is_available() else "no CUDA GPU"
    return f"this machine has {os.cpu_count()} CPU cores, {gpus}" + (
        ", MPS" if torch.backends.mps.is_available() else ""
    )


def check_processes(accelerator: Accelerator, num_devices: int) -> None:
    """Refuse more processes than there are CPU cores; Lightning itself counts other devices only."""
    if isinstance(accelerator, CPUAccelerator) and num_devices > (os.cpu_count() or 1):
        raise ValueError(f"devices: {num_devices} processes on the CPU")
