"""An epoch of MNIST batches, rotated, scaled and shifted, without a model."""

import math
import random
from argparse import Namespace

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from benchmarks.documented import Samples
from benchmarks.measure import Row, in_turn, timed
from benchmarks.sides import Experiment
from datamodules.mnist import DEGREES, SCALE_FRACTION, SHIFT_FRACTION
from datamodules.parts.batches import AugmentContext


def run(options: Namespace) -> list[Row]:
    return [*_rows(options, True), *_rows(options, False)]


def moved(picture: Image.Image) -> Image.Image:
    """A picture rotated, scaled and shifted at random, by Pillow, as torchvision's RandomAffine does it."""
    angle = math.radians(random.uniform(-DEGREES, DEGREES))
    scale = random.uniform(1 - SCALE_FRACTION, 1 + SCALE_FRACTION)
    x, y = (picture.width - 1) / 2, (picture.height - 1) / 2
    shift_x, shift_y = (2 * side * random.uniform(-SHIFT_FRACTION, SHIFT_FRACTION) for side in (x, y))
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = (
        cosine, sine, x - cosine * (x + shift_x) - sine * (y + shift_y),
        -sine, cosine, y + sine * (x + shift_x) - cosine * (y + shift_y),
    )  # fmt: skip
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _rows(options: Namespace, augments: bool) -> list[Row]:
    overrides = [f"data.augment_images={str(augments).lower()}", "data.batch_size=256", f"data.root={options.data}"]
    experiment = Experiment("configs/mnist_cnn.yaml", overrides)
    loader = experiment.datamodule.train_dataloader()
    inputs, labels = loader.inputs.to(experiment.device), loader.labels.to(experiment.device)
    loader.inputs, loader.labels = inputs, labels
    generator = Generator(experiment.device)

    def batches() -> None:
        for batch, _ in loader:
            batch.float().div_(255)

    def raw() -> None:
        for indices in torch.randperm(len(labels)).to(inputs.device).split(256):
            batch, _ = inputs[indices], labels[indices]
            if augments:
                batch = experiment.datamodule.augment(batch, AugmentContext(generator, 0, 0, indices))
            batch.float().div_(255)

    def one_by_one(image: Tensor) -> Tensor:
        picture = Image.fromarray(image[0].numpy())
        if augments:
            picture = moved(picture)
        return torch.from_numpy(np.array(picture)[None]).float().div_(255)

    samples = Samples(inputs.cpu(), labels.cpu(), one_by_one)

    def data_loader(workers: int) -> None:
        for batch, targets in DataLoader(samples, 256, shuffle=True, num_workers=workers):
            batch.to(experiment.device)
            targets.to(experiment.device)

    sides = {
        "ours": lambda: timed(batches),
        "raw": lambda: timed(raw),
        "DataLoader": lambda: timed(lambda: data_loader(0)),
        "with 2 workers": lambda: timed(lambda: data_loader(2)),
    }
    for side in (batches, raw):
        side()  # the first time takes longer
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
