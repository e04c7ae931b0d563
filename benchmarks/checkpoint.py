"""Time to save a checkpoint, by this project and by Lightning, and the fraction of a training that checkpoints take.

This project writes a temporary file, syncs it to the disk, renames it and adds a checksum, which is verified on loading. A
checkpoint has three values per weight: the weight and Adam's two running means. The fraction is that of two epochs of
`configs/mnist_cnn.yaml`.
"""

import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from benchmarks.experiment import Experiment, train_ours
from benchmarks.measure import Comparison, run_in_turn, time_call
from engine.training.checkpoints import VerifiedCheckpoints

SIZES = {"MLP, 68k weights": 68_000, "CNN, 1.1M": 1_100_000, "BERT, 22M": 22_000_000}
EPOCHS = 2


def run(options: Namespace) -> list[Comparison]:
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        for title, num_weights in SIZES.items():
            checkpoint = {"state_dict": {"weight": torch.randn(num_weights)}, "optimizer": torch.randn(2, num_weights)}
            saves = {
                name: partial(files.save_checkpoint, checkpoint, Path(folder) / f"{name}.ckpt")
                for name, files in (("ours", VerifiedCheckpoints()), ("Lightning", TorchCheckpointIO()))
            }
            sides = {name: partial(time_call, save) for name, save in saves.items()}
            times = {name: seconds[1:] for name, seconds in run_in_turn(sides, options.pairs + 1).items()}
            work = f"saving, {title} ({12e-6 * num_weights:.1f} MB)"
            comparisons.append(Comparison(work, "Lightning", times["ours"], times["Lightning"]))
    overrides = [f"data.root={options.data}", f"trainer.max_epochs={EPOCHS}"]
    training = train_ours(Experiment("configs/mnist_cnn.yaml", overrides))
    checkpoint_seconds, seconds = training.clock.seconds["checkpoints"], sum(training.epoch_seconds)
    note = f"{checkpoint_seconds / seconds:.2%} for a checkpoint in every epoch; the target is 3 %"
    work, baseline = f"{EPOCHS} epochs of mnist_cnn", "the same without checkpoints"
    without = [seconds - checkpoint_seconds]
    return [*comparisons, Comparison(work, baseline, [seconds], without, at_most=1.03, note=note)]
