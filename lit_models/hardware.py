"""What this machine can train on, and how exactly."""

import os

import torch
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator

BF16_FEATURES = ("amx_bf16", "avx512_bf16")  # of CPUs


def precision_for(accelerator: str, wanted: str | int) -> str | int:
    """`wanted`; for "auto" bf16-mixed where the hardware that will be used multiplies bf16 natively, else 32-true.

    Raises:
        ValueError: if that hardware cannot have it. Lightning would take another one, or train to NaN.
    """
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not on_gpu and not torch.backends.mps.is_available())
    if on_cpu and str(wanted) in ("16", "16-mixed", "16-true"):
        raise ValueError(f"precision {wanted} needs a GPU; a CPU has bf16-mixed and 32-true")
    if wanted != "auto":
        return wanted
    features = torch.cpu.get_capabilities() if on_cpu else {}
    native = torch.cuda.get_device_capability() >= (8, 0) if on_gpu else any(map(features.get, BF16_FEATURES))
    return "bf16-mixed" if native else "32-true"


def choose_precision(accelerator: str, wanted: str | int) -> str | int:
    """`precision_for`; with "auto" products in 32 bits go through a GPU's matrix units, too (TF32).

    Raises:
        ValueError: as `precision_for`.
    """
    if wanted == "auto" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # which is what Lightning asks for at every start
    return precision_for(accelerator, wanted)


def hardware() -> str:
    """What this machine has to train on."""
    gpus = f"{torch.cuda.device_count()} CUDA GPUs" if torch.cuda.is_available() else "no CUDA GPU"
    return f"this machine has {os.cpu_count()} CPU cores, {gpus}" + (
        ", MPS" if torch.backends.mps.is_available() else ""
    )


def check_processes(accelerator: Accelerator, num_devices: int, world_size: int) -> None:
    """Refuse what Lightning lets pass: more processes than CPU cores, or another number than a launcher has started."""
    if isinstance(accelerator, CPUAccelerator) and num_devices > (os.cpu_count() or 1):
        raise ValueError(f"devices: {num_devices} processes on the CPU")
    environ = os.environ
    started = int(environ["WORLD_SIZE"] if "RANK" in environ else environ.get("SLURM_NTASKS", "1"))
    if started > 1 and started != world_size and environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        raise ValueError(
            f"{started} processes were started for a run of {world_size}; set devices, and num_nodes, to match"
        )
