"""One epoch of a 68k-parameter MLP on MNIST: by `train.py`, and by a bare PyTorch loop of the same work.

    python -m benchmarks.mlp_epoch [--root data] [--pairs 5]

784-64-128-64-10 with batch normalisation, Adam, batch 128: the default network of the most used Lightning template. Both
sides train on the same 54,000 images in batches from one gather, and validate on the other 6,000; ours also accumulates
accuracy and writes TensorBoard's curves. They run in turn, each after a first epoch that is not counted.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from callbacks.progress_line import quieten
from callbacks.signals import Signals
from configs import load_config
from datamodules.mnist import MNIST
from lit_models.mlp import LitMLP
from train import make, make_model, make_trainer

OVERRIDES = [
    "model.hidden_sizes=[64, 128, 64]", "model.normalization=batch", "data.batch_size=128", "optimizer.lr=0.001",
    "schedule={name: constant}", "trainer.max_epochs=2", "trainer.accelerator=cpu",
]  # fmt: skip


def ours(root: str) -> float:
    """Seconds from the start of the second epoch to the end of training, validation and curves included."""
    from lightning.pytorch import Callback

    from callbacks.run_record import RunRecord

    class Clock(Callback):
        def on_train_epoch_start(self, trainer, pl_module):  # type: ignore[no-untyped-def]
            self.started = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            "configs/mnist_mlp.yaml", [*OVERRIDES, f"data.root={root}", "callbacks.progress_line.live=false"]
        )
        datamodule = make(config, "data", seed=0)
        datamodule.setup()
        model = make_model(config, datamodule.spec)
        model.set_normalization(datamodule.mean, datamodule.std)
        trainer = make_trainer(config, Path(folder), RunRecord(Path(folder), "", {"seed": 0}), Signals())
        clock = Clock()
        trainer.callbacks.insert(0, clock)
        trainer.fit(model, datamodule)
        return time.perf_counter() - clock.started


def bare(datamodule: MNIST) -> float:
    """Seconds of the second epoch of a plain loop, validation included."""
    network = LitMLP((1, 28, 28), 10, hidden_sizes=[64, 128, 64], normalization="batch").network
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    mean, std = datamodule.mean, datamodule.std
    inputs, labels = datamodule._parts["train"]
    val_inputs, val_labels = datamodule._parts["val"]
    for _ in range(2):
        started = time.perf_counter()
        network.train()
        for indices in torch.randperm(len(labels)).split(128):
            loss = F.cross_entropy(network((inputs[indices].float() - mean) / std), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            hits = 0
            for images, targets in zip(val_inputs.split(1000), val_labels.split(1000), strict=True):
                hits += (network((images.float() - mean) / std).argmax(1) == targets).sum().item()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--root", default="data", help="folder of the MNIST files")
    parser.add_argument("--pairs", type=int, default=5, help="how often both sides run")
    arguments = parser.parse_args()
    quieten()
    datamodule = MNIST(root=arguments.root)
    datamodule.prepare_data()
    datamodule.setup()
    ratios = []
    for _ in range(arguments.pairs):
        plain, lightning = bare(datamodule), ours(arguments.root)
        ratios.append(lightning / plain)
        print(f"bare loop {plain:.2f} s   train.py {lightning:.2f} s   ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
