"""What a checkpoint costs: ours (beside its target, synced, renamed, with a checksum) and Lightning's, in turn.

    python -m benchmarks.checkpoint [--pairs 5] [--folder FOLDER]

A checkpoint has three times as many floats as the model has weights: these, and the two averages of Adam. Ours verifies what
it loads, Lightning's does not.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_models.checkpoint_io import VerifiedCheckpoints

SIZES = {"MLP, 68k weights": 68_000, "CNN, 1.1M": 1_100_000, "BERT, 22M": 22_000_000}


def milliseconds(work: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    started = time.perf_counter()
    work(*arguments, **options)
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="how often each side runs")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder, if not given")
    arguments = parser.parse_args()
    sides = {"ours": VerifiedCheckpoints(), "Lightning": TorchCheckpointIO()}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for title, count in SIZES.items():
            checkpoint = {"state_dict": {"weight": torch.randn(count)}, "optimizer": torch.randn(2, count)}
            times: dict[str, list[float]] = {f"{side} {verb}": [] for verb in ("saves", "loads") for side in sides}
            for _ in range(arguments.pairs + 1):
                for side, files in sides.items():
                    path = Path(folder) / f"{side}.ckpt"
                    times[f"{side} saves"].append(milliseconds(files.save_checkpoint, checkpoint, path))
                    times[f"{side} loads"].append(milliseconds(files.load_checkpoint, path, weights_only=True))
            shown = [f"{name} in {statistics.median(values[1:]):.1f} ms" for name, values in times.items()]
            print(f"{title} ({12e-6 * count:.1f} MB): " + ", ".join(shown), flush=True)


if __name__ == "__main__":
    main()
