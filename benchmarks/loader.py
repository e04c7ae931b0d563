"""An epoch of MNIST batches, rotated, scaled and shifted, without a model."""

from argparse import Namespace

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from benchmarks.measure import Row, in_turn, timed
from benchmarks.sides import Experiment, Samples
from datamodules.augment import random_affine
from datamodules.batches import Draw
from datamodules.mnist import DEGREES, SCALE_FRACTION, SHIFT_FRACTION


def run(options: Namespace) -> list[Row]:
    return [*_rows(options, True), *_rows(options, False)]


def _rows(options: Namespace, augments: bool) -> list[Row]:
    overrides = [f"data.augment_images={str(augments).lower()}", "data.batch_size=256", f"data.root={options.data}"]
    experiment = Experiment("configs/mnist_cnn.yaml", overrides)
    loader = experiment.datamodule.train_dataloader()
    inputs, labels = loader.inputs.to(experiment.device), loader.labels.to(experiment.device)
    loader.inputs, loader.labels = inputs, labels
    generator, single = Generator(experiment.device), Generator()

    def batches() -> None:
        for _ in loader:
            pass

    def raw() -> None:
        for indices in torch.randperm(len(labels)).to(inputs.device).split(256):
            batch, _ = inputs[indices], labels[indices]
            if augments:
                experiment.datamodule.augment(batch, Draw(generator, 0, indices))

    def one_by_one(image: Tensor) -> Tensor:
        if augments:
            image = random_affine(image[None], DEGREES, SHIFT_FRACTION, SCALE_FRACTION, single)[0]
        return image.float() / 255

    samples = Samples(inputs.cpu(), labels.cpu(), one_by_one)

    def data_loader(workers: int) -> None:
        for batch, targets in DataLoader(samples, 256, shuffle=True, num_workers=workers):
            batch.to(experiment.device)
            targets.to(experiment.device)

    sides = {
        "ours": lambda: min(timed(batches) for _ in range(3)),
        "raw": lambda: min(timed(raw) for _ in range(3)),
        "DataLoader": lambda: timed(lambda: data_loader(0)),
        "with 2 workers": lambda: timed(lambda: data_loader(2)),
    }
    times = in_turn(sides, options.pairs)
    title = "augmented" if augments else "plain"
    work, bar = f"epoch of MNIST batches of 256, {title}", 100.0 if options.gpu else 15.0
    raw_indexing = "raw indexing, the same augmentation" if augments else "raw indexing"
    return [
        Row(work, raw_indexing, times["ours"], times["raw"], at_most=1.2),
        Row(
            work, "DataLoader, sample by sample", times["ours"], times["DataLoader"], at_least=bar if augments else 1.0
        ),
        Row(work, "the same with 2 workers", times["ours"], times["with 2 workers"], at_least=1.0),
    ]
