"""Time of a training step with a teacher: an MLP on augmented images of MNIST, taught by the network of mnist_cnn."""

from argparse import Namespace
from contextlib import nullcontext
from itertools import islice

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.experiment import Experiment, autocast_dtype, synchronized_time, train_ours
from benchmarks.measure import Comparison, run_in_turn
from datamodules.parts.batches import to_device
from lit_models.parts.distillation import Teacher

STEPS, WARM_UP = 100, 10  # steps that are trained, and steps at the start that are not counted


class AttachTeacher(Callback):
    """Gives the model a teacher that is already in memory."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.teacher = self.teacher  # type: ignore[assignment]


def run(options: Namespace) -> list[Comparison]:
    overrides = [
        f"trainer.limit_train_batches={STEPS}", "trainer.limit_val_batches=0", "trainer.enable_checkpointing=false",
        "trainer.max_epochs=1", f"data.root={options.data}", "data.augment_images=true", "trainer.precision=auto",
    ]  # fmt: skip
    student = Experiment("configs/mnist_mlp.yaml", overrides)
    teacher = Teacher(Experiment("configs/mnist_cnn.yaml", [f"data.root={options.data}"]).make_model())
    sync = {WARM_UP, STEPS}

    def step_seconds(*callbacks: Callback) -> float:
        steps = train_ours(student, sync_steps=sync, callbacks=callbacks).steps
        return (steps[-1] - steps[WARM_UP - 1]) / (len(steps) - WARM_UP)

    times = run_in_turn(
        {
            "taught": lambda: step_seconds(AttachTeacher(teacher)),
            "alone": step_seconds,
            "teacher": lambda: forward_seconds(student, teacher),
        },
        options.pairs,
    )
    together = [sum(pair) for pair in zip(times["alone"], times["teacher"], strict=True)]
    work = f"step of {student.config['data.batch_size']} images with a teacher"
    return [Comparison(work, "step and forward pass of the teacher", times["taught"], together, at_most=1.1)]


def forward_seconds(experiment: Experiment, teacher: Teacher) -> float:
    """Return the seconds of a forward pass of the teacher, in the precision of the student."""
    device, dtype = experiment.device, autocast_dtype(experiment)
    teacher.model.to(device)
    batches = [to_device(inputs, device) for inputs, *_ in islice(experiment.datamodule.train_dataloader(), STEPS)]
    with torch.autocast(device.type, dtype) if dtype else nullcontext():
        for i, inputs in enumerate(batches):
            if i == WARM_UP:
                start = synchronized_time()
            teacher(inputs)
        return (synchronized_time() - start) / (len(batches) - WARM_UP)
