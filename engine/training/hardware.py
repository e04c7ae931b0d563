"""Detection of hardware features: precision, number of processes and threads, memory, and the speed of matrix products."""

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator, XLAAccelerator

from engine.contracts import OptionError
from engine.threads import ARE_THREADS_SET, available_cores

# Lightning's other names of precisions
OTHER_NAMES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
BF16_FEATURES = ("amx_bf16", "avx512_bf16")  # features of CPUs that multiply bf16 natively
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}  # large enough to reach the highest speed
PEAK_SECONDS = 0.2  # matrix products are repeated for this time, and the fastest product counts
# torch's own choice: the user's variables, or else one thread per physical core
TORCH_THREADS = torch.get_num_threads()


def precision_for(accelerator: str, wanted: str | int) -> str:
    """Return the precision in Lightning's long form, such as "64-true".

    "auto" is bf16-mixed if a GPU or a CPU multiplies bf16 natively, and 32-true otherwise, also on TPUs.

    Raises:
        OptionError: if the device does not support `wanted`. With such a precision, Lightning uses another one, or the loss
            becomes NaN.
    """
    on_tpu = uses_tpu(accelerator)
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() and not on_tpu
    has_others = on_tpu or on_gpu or torch.backends.mps.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not has_others)
    if on_cpu and str(wanted) in ("16", "16-mixed", "16-true"):
        raise OptionError(f"precision {wanted} needs a GPU; a CPU has bf16-mixed and 32-true")
    if wanted != "auto":
        return OTHER_NAMES.get(str(wanted), str(wanted))
    features = cpu_features() if on_cpu else {}
    native = torch.cuda.get_device_capability() >= (8, 0) if on_gpu else any(map(features.get, BF16_FEATURES))
    return "bf16-mixed" if native else "32-true"


def uses_tpu(accelerator: str) -> bool:
    """Return whether a run with this option uses a TPU."""
    return accelerator == "tpu" or (accelerator == "auto" and XLAAccelerator.is_available())


def choose_devices(accelerator: str, wanted: Any) -> Any:
    """Return `wanted`; for all cores of a TPU, return 1.

    For several cores, Lightning forks this process and returns only weights and metrics. Callbacks and loggers would lose
    their state.
    """
    return 1 if uses_tpu(accelerator) and str(wanted) in ("auto", "-1") else wanted


def choose_precision(accelerator: str, wanted: str | int) -> str:
    """Call `precision_for`. For "auto", also allow TF32 for float32 matrix products on CUDA GPUs.

    Raises:
        OptionError: as `precision_for`.
    """
    if wanted == "auto" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # as Lightning advises at every start
    return precision_for(accelerator, wanted)


def cpu_features() -> dict[str, Any]:
    """The features of the CPU, such as ``avx512_bf16``, and its ``cpu_name``. torch 2.9 cannot name them."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return {}
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {**dict.fromkeys(values.get("flags", "").split(), True), "cpu_name": values.get("model name")}


def device_name(device: torch.device) -> str:
    """The name of a device, such as "NVIDIA H200"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xla":
        import torch_xla.core.xla_model as xm

        return str(xm.xla_device_hw(device))  # such as TPU
    return str(cpu_features().get("cpu_name") or platform.processor() or platform.machine())


def run_recorded_operations(device: torch.device) -> None:
    """Run the operations that an XLA device has recorded; no other device records operations.

    It is called before the first training step of an epoch and before a validation. Otherwise pending operations become part
    of the graph of the step or of the validation. XLA then compiles a new graph, and a resumed run may round differently.
    """
    if device.type == "xla":
        import torch_xla
        import torch_xla.core.xla_model as xm

        state = xm.get_rng_state()  # a resumed run may call this more often, and each `sync` changes the state
        torch_xla.sync()
        xm.set_rng_state(state)


def describe_hardware() -> str:
    """The devices of this machine, for the user."""
    gpus = f"{torch.cuda.device_count()} CUDA GPUs" if torch.cuda.is_available() else "no CUDA GPU"
    others = ", MPS" if torch.backends.mps.is_available() else ""
    others += f", {XLAAccelerator.auto_device_count()} TPU cores" if XLAAccelerator.is_available() else ""
    cores, all_cores = available_cores(), os.cpu_count()
    usable = f" (this process may use {cores})" if cores != all_cores else ""
    return f"this machine has {all_cores} CPU cores{usable}, {gpus}{others}"


def set_threads(wanted: int | None, num_processes: int, earlier: int | None = None) -> None:
    """Set the number of threads of this process and of the processes that it starts.

    The order of precedence is: `wanted`; the user's ``OMP_NUM_THREADS``; `earlier`, if there are at least as many cores;
    torch's choice, but at most the cores that this process may use.

    Args:
        wanted: Number of threads in the config.
        num_processes: Number of processes of the run on this machine. They share the cores.
        earlier: Number of threads before the run was interrupted. Another number would change the order of sums.
    """
    cores = available_cores(num_processes)
    if wanted is None and ARE_THREADS_SET:
        wanted = TORCH_THREADS
    elif wanted is None:
        wanted = earlier if earlier and earlier <= cores else max(1, min(TORCH_THREADS, cores))
    torch.set_num_threads(wanted)
    if num_processes > 1:  # otherwise Lightning would set another number
        os.environ["OMP_NUM_THREADS"] = str(wanted)


def check_processes(accelerator: Accelerator, num_devices: int, world_size: int) -> None:
    """Check the number of processes. Lightning does not check it.

    Raises:
        OptionError: if there are more processes than CPU cores that they may use, or several TPU cores, or if a launcher has
            started another number of processes.
    """
    if isinstance(accelerator, XLAAccelerator) and num_devices > 1:
        raise OptionError(f"devices: {num_devices} TPU cores are not supported, only 1")
    if isinstance(accelerator, CPUAccelerator) and not available_cores(num_devices):
        raise OptionError(f"devices: {num_devices} processes need at least {num_devices} CPU cores")
    environ = os.environ
    started = int(environ["WORLD_SIZE"] if "RANK" in environ else environ.get("SLURM_NTASKS", "1"))
    if started > 1 and started != world_size and environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        raise OptionError(
            f"{started} processes were started for a run of {world_size}; set devices, and num_nodes, to match"
        )


def peak_memory(device: torch.device) -> int | None:
    """Highest memory use so far in bytes, of tensors on a GPU, else of this process; None if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product. This is the highest speed of the device."""
    side = MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    fastest, end = float("inf"), time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < end or fastest == float("inf"):
        start = time.perf_counter()
        product = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - start)
        del product
    return 2 * side**3 / fastest
