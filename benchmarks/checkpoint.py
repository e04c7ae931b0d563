"""What a checkpoint costs: ours (beside its target, synced, renamed, with a checksum) and Lightning's.

A checkpoint has three times as many floats as the model has weights: these, and the two averages of Adam. Ours verifies what
it loads, Lightning's does not. The share of a training is that of two epochs of `configs/mnist_cnn.yaml`.
"""

import tempfile
from argparse import Namespace
from pathlib import Path

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from benchmarks.measure import Row, in_turn, timed
from benchmarks.sides import Experiment, ours
from engine.training.checkpoints import VerifiedCheckpoints

SIZES = {"MLP, 68k weights": 68_000, "CNN, 1.1M": 1_100_000, "BERT, 22M": 22_000_000}


def run(options: Namespace) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for title, count in SIZES.items():
            checkpoint = {"state_dict": {"weight": torch.randn(count)}, "optimizer": torch.randn(2, count)}
            us, them = (Path(folder) / f"{side}.ckpt" for side in ("ours", "theirs"))
            our_files, their_files = VerifiedCheckpoints(), TorchCheckpointIO()
            saves = {
                "ours": lambda path=us, made=checkpoint, files=our_files: timed(
                    lambda: files.save_checkpoint(made, path)
                ),
                "Lightning": lambda path=them, made=checkpoint, files=their_files: timed(
                    lambda: files.save_checkpoint(made, path)
                ),
            }
            times = in_turn(saves, options.pairs + 1)
            megabytes = f"{12e-6 * count:.1f} MB"
            rows.append(Row(f"saving, {title} ({megabytes})", "Lightning", times["ours"][1:], times["Lightning"][1:]))
    epochs = 2
    experiment = Experiment("configs/mnist_cnn.yaml", [f"data.root={options.data}", f"trainer.max_epochs={epochs}"])
    ticks = ours(experiment)
    spent, whole = ticks.clock.seconds["checkpoints"], sum(ticks.seconds)
    note = f"{100 * spent / whole:.2f} % for checkpoints in every epoch; the bar is 3 %"
    rows.append(
        Row(f"{epochs} epochs of mnist_cnn", "the same without checkpoints", [whole], [whole - spent], 1.03, note=note)
    )
    return rows
