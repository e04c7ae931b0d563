"""An epoch of MNIST batches, rotated, scaled and shifted, without a model."""

import math
import random
from argparse import Namespace

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from benchmarks.baselines import Samples
from benchmarks.experiment import Experiment
from benchmarks.measure import Comparison, run_in_turn, time_call
from datamodules.mnist import DEGREES, SCALE_FRACTION, SHIFT_FRACTION
from datamodules.parts.batches import AugmentContext

BATCH_SIZE = 256


def run(options: Namespace) -> list[Comparison]:
    return [*_compare(options, augments=True), *_compare(options, augments=False)]


def random_affine(image: Image.Image) -> Image.Image:
    """Rotate, scale and shift an image at random with Pillow, as torchvision's RandomAffine does."""
    angle = math.radians(random.uniform(-DEGREES, DEGREES))
    scale = random.uniform(1 - SCALE_FRACTION, 1 + SCALE_FRACTION)
    x, y = (image.width - 1) / 2, (image.height - 1) / 2
    shift_x, shift_y = (2 * side * random.uniform(-SHIFT_FRACTION, SHIFT_FRACTION) for side in (x, y))
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = (
        cosine, sine, x - cosine * (x + shift_x) - sine * (y + shift_y),
        -sine, cosine, y + sine * (x + shift_x) - cosine * (y + shift_y),
    )  # fmt: skip
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _compare(options: Namespace, augments: bool) -> list[Comparison]:
    overrides = [f"data.augment_images={str(augments).lower()}", f"data.batch_size={BATCH_SIZE}"]
    experiment = Experiment("configs/mnist_cnn.yaml", [*overrides, f"data.root={options.data}"])
    loader, generator = experiment.datamodule.train_dataloader(), Generator(experiment.device)
    host_inputs, host_labels = loader.inputs, loader.labels
    inputs, labels = host_inputs.to(experiment.device), host_labels.to(experiment.device)
    loader.inputs, loader.labels = inputs, labels

    def load_ours() -> None:
        for batch, _ in loader:
            batch.float().div_(255)

    def index_tensors() -> None:
        for indices in torch.randperm(len(labels)).to(inputs.device).split(BATCH_SIZE):
            batch, _ = inputs[indices], labels[indices]
            if augments:
                batch = experiment.datamodule.augment(batch, AugmentContext(generator, 0, 0, indices))
            batch.float().div_(255)

    def transform(image: Tensor) -> Tensor:
        picture = Image.fromarray(image[0].numpy())
        if augments:
            picture = random_affine(picture)
        return torch.from_numpy(np.array(picture)[None]).float().div_(255)

    samples = Samples(host_inputs, host_labels, transform)

    def use_data_loader(num_workers: int) -> None:
        for batch, targets in DataLoader(samples, BATCH_SIZE, shuffle=True, num_workers=num_workers):
            batch.to(experiment.device)
            targets.to(experiment.device)

    sides = {
        "ours": lambda: time_call(load_ours),
        "raw": lambda: time_call(index_tensors),
        "DataLoader": lambda: time_call(lambda: use_data_loader(0)),
        "with 2 workers": lambda: time_call(lambda: use_data_loader(2)),
    }
    for side in (load_ours, index_tensors):
        side()  # the first call takes longer
    times = run_in_turn(sides, options.pairs)
    title = "augmented" if augments else "plain"
    work, speedup = f"epoch of MNIST batches of {BATCH_SIZE}, {title}", 100.0 if options.gpu else 15.0
    raw_title = "raw indexing, the same augmentation" if augments else "raw indexing"
    at_least = speedup if augments else 1.0
    return [
        Comparison(work, raw_title, times["ours"], times["raw"], at_most=1.2),
        Comparison(work, "DataLoader, sample by sample", times["ours"], times["DataLoader"], at_least=at_least),
        Comparison(work, "the same with 2 workers", times["ours"], times["with 2 workers"], at_least=1.0),
    ]
