"""What else than the config decided a result: code, versions, device, threads, data."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("lightning", "torch", "torchmetrics", "tensorboard", "omegaconf", "numpy", "transformers", "tokenizers")

# What must be the same for a run to go on as if it had not been stopped, and how to mend it.
DECISIVE = {
    "data_sha256": "the data are not those that it was trained on; restore them, or start a new run",
    "threads": "another number of threads sums in another order; set OMP_NUM_THREADS={there}",
    "num_devices": "set trainer.devices={there}",
    "precision": "this device computes otherwise; use the one of before, or start a new run",
}
NOTED = (
    "git_commit",
    "git_dirty",
    "python",
    "packages",
    "device",
    "pretrained",
)  # what makes a difference may be small


def environment(device: torch.device, precision: str, world_size: int) -> dict[str, Any]:
    """What else than the config decided the result."""
    commit = _git("rev-parse", "HEAD")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": commit,
        "git_dirty": commit and bool(_git("status", "--porcelain")),  # new files count: a model may be one
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: found for package in PACKAGES if (found := _version(package))},
        "device": f"{device.type}: {name}",
        "num_devices": world_size,
        "precision": precision,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    features = torch.cpu.get_capabilities()
    return str(features.get("cpu_name") or platform.processor() or platform.machine())


def _git(*arguments: str) -> str | None:
    """The output of a git command in the project, or null where there is no git or no repository."""
    try:
        folder = Path(__file__).resolve().parent
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def changed(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Why a run of the environment `there` cannot go on in `here`; null if it can."""
    for name, hint in DECISIVE.items():
        if name == "threads" and not str(here["device"]).startswith("cpu"):
            continue
        if there.get(name) != here[name]:
            shown = [str(one.get(name))[:12] for one in (there, here)]
            return f"{name} was {shown[0]} and is {shown[1]}: {hint.format(there=shown[0])}"
    return None


def noted(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What else has changed."""
    return [name for name in NOTED if there.get(name) != here.get(name)]
