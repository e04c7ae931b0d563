"""Time of a training step with a teacher that computes the logits of each batch, because the images are augmented.

An MLP on MNIST is taught by the network of mnist_cnn, and a CNN with half the widths of cifar10_cnn by cifar10_cnn.
"""

from argparse import Namespace
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.experiment import Experiment, autocast_dtype, synchronized_time, train_ours
from benchmarks.measure import Comparison, run_in_turn
from datamodules.parts.batches import to_device
from lit_models.parts.distillation import Teacher

WARM_UP = 5  # steps at the start that are not counted
SHORT = (
    "trainer.limit_val_batches=0", "trainer.enable_checkpointing=false", "trainer.max_epochs=1", "trainer.precision=auto",
)  # fmt: skip


class AttachTeacher(Callback):
    """Gives the model a teacher that is already in memory."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.teacher = self.teacher  # type: ignore[assignment]


class CallTeacher(Callback):
    """Computes the logits of a teacher before each step, and does not use them."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        with trainer.precision_plugin.forward_context():
            self.teacher(batch[0])


def run(options: Namespace) -> list[Comparison]:
    data, pairs = f"data.root={options.data}", options.pairs
    return [
        *compare("mnist_mlp", "data.augment_images=true", "mnist_cnn", data, 300, pairs),
        *compare("cifar10_cnn", "model.widths=[32, 64, 128]", "cifar10_cnn", data, 30, pairs),
    ]


def compare(name: str, option: str, teacher_name: str, data: str, num_steps: int, pairs: int) -> list[Comparison]:
    """Compare a training step with a teacher with two baselines.

    Both baselines compute a training step without a teacher, and a forward pass of the teacher. The first one measures them
    in two loops and adds the times. The second one does both in each iteration of one loop, so the difference from it is the
    cost of the distillation loss. For a small network, the two loops are faster, probably because the teacher does not
    replace the data of the student in the caches of the CPU.
    """
    student = Experiment(f"configs/{name}.yaml", [data, option, *SHORT, f"trainer.limit_train_batches={num_steps}"])
    teacher = Teacher(Experiment(f"configs/{teacher_name}.yaml", [data]).make_model())
    teacher.model.to(student.device)
    sync = {WARM_UP, num_steps}

    def step_seconds(*callbacks: Callback) -> float:
        steps = train_ours(student, sync_steps=sync, callbacks=callbacks).steps
        return (steps[-1] - steps[WARM_UP - 1]) / (len(steps) - WARM_UP)

    times = run_in_turn(
        {
            "taught": lambda: step_seconds(AttachTeacher(teacher)),
            "alone": step_seconds,
            "teacher": lambda: forward_seconds(student, teacher, num_steps),
            "in one loop": lambda: step_seconds(CallTeacher(teacher)),
        },
        pairs,
    )
    together = [sum(pair) for pair in zip(times["alone"], times["teacher"], strict=True)]
    work = f"step of {student.config['data.batch_size']} images with a teacher, {name}"
    parts = "step, and forward pass of the teacher"
    return [
        Comparison(work, f"{parts}: two loops", times["taught"], together, at_most=1.1),
        Comparison(work, f"{parts}: one loop", times["taught"], times["in one loop"], at_most=1.1),
    ]


def forward_seconds(experiment: Experiment, teacher: Teacher, num_steps: int) -> float:
    """Return the seconds of a forward pass of the teacher, in the precision of the student."""
    device, dtype = experiment.device, autocast_dtype(experiment)
    batches = [to_device(inputs, device) for inputs, *_ in islice(experiment.datamodule.train_dataloader(), num_steps)]
    with torch.autocast(device.type, dtype) if dtype else nullcontext():
        for i, inputs in enumerate(batches):
            if i == WARM_UP:
                start = synchronized_time()
            teacher(inputs)
        return (synchronized_time() - start) / (len(batches) - WARM_UP)
