"""What a run says at its start and at its end."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

TITLE = 13  # width of the first column


def opening(trainer: Trainer, facts: Mapping[str, Any], hyperparameters: Mapping[str, Any]) -> str:
    """Data, model, device and steps of a training that is about to begin.

    Args:
        trainer: In its fit.
        facts: Of `callbacks.environment`.
        hyperparameters: The flat config.
    """
    rows = {
        "data": f"{hyperparameters['data.name']}: {', '.join(_data(trainer))}",
        "model": f"{hyperparameters['model.name']}: {_parameters(trainer)}",
        "device": ", ".join(_device(trainer, facts)),
        "steps": _steps(trainer),
    }
    return "\n".join(f"{title:<{TITLE}}{text}" for title, text in rows.items())


def closing(figures: Mapping[str, Any], monitor: str, times: list[str], folder: Path, logs: bool) -> str:
    """Figures of the tested checkpoint, where the time went, where everything is.

    Args:
        figures: Those of ``metrics.json``.
        monitor: Metric that the checkpoint was chosen by.
        times: Lines of where the time went.
        folder: Of the run.
        logs: Whether there is something in it for TensorBoard.
    """
    rows = []
    for title, stage in (("test", "test"), ("validation", "val")):
        values = {name: figures.get(f"{stage}/{name}") for name in ("accuracy", "f1", "loss")}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)
        rows.append((title, shown or "not measured"))
    if (mirrored := figures.get("test_mirrored/accuracy")) is not None:
        rows.append(("mirrored", f"accuracy {mirrored:.4f}, of the mean over an image and its mirror image"))
    seconds = figures["train_seconds"]
    if "best_epoch" in figures:
        rows.append(("checkpoint", f"epoch {figures['best_epoch']}, the best by {monitor}"))
    rows.append(
        ("trained", f"{counted(figures['epochs'], 'epoch')}, {counted(figures['steps'], 'step')} in {seconds:.1f} s")
    )
    if "samples_per_second" in figures:
        share = figures.get("peak_share")
        reached = f", {share:.0%} of what a matrix product reaches here" if share is not None else ""
        rows.append(("speed", f"{figures['samples_per_second']:,.0f} samples/s{reached}"))
    rows += [("time", line) for line in times]
    rows += [("run folder", str(folder))]
    if logs:
        rows += [("TensorBoard", f"tensorboard --logdir {folder.parent.parent}")]
    return "\n".join(f"{title:<{TITLE}}{text}" for title, text in rows)


def counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """For people: 0.4 s, 8.1 s, 2 min 5 s, 3 h 20 min."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def _data(trainer: Trainer) -> Iterator[str]:
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    spec = datamodule.spec
    shape = "x".join(map(str, spec.input_shape))
    yield {"features": f"{shape} features", "image": f"images of {shape}", "tokens": "texts"}[spec.modality]
    yield f"{spec.num_classes} classes"
    counts = [f"{datamodule.num_samples(part):,}" for part in ("train", "val", "test")]
    yield "{} to train on, {} for validation, {} for the test".format(*counts)


def _parameters(trainer: Trainer) -> str:
    parameters = list(trainer.lightning_module.parameters())
    every, trained = (
        sum(one.numel() for one in some) for some in (parameters, (p for p in parameters if p.requires_grad))
    )
    return f"{every:,} parameters" + (f", {trained:,} of them trained" if trained < every else "")


def _device(trainer: Trainer, facts: Mapping[str, Any]) -> Iterator[str]:
    count = f"{trainer.world_size} times " if trainer.world_size > 1 else ""
    yield f"{count}{facts['device']}"
    if str(facts["device"]).startswith("cpu"):
        yield counted(facts["threads"], "thread")
    yield str(facts["precision"])


def _steps(trainer: Trainer) -> str:
    size, devices = trainer.datamodule.batch_size, trainer.world_size  # type: ignore[attr-defined]
    batches, together = trainer.num_training_batches, devices * trainer.accumulate_grad_batches
    epoch = f"{-(-batches // trainer.accumulate_grad_batches):,}" if isinstance(batches, int) else "?"
    epochs = trainer.max_epochs or -1
    ends = [counted(epochs, "epoch")] if epochs > 0 else []
    ends += [counted(trainer.max_steps, "step")] if trainer.max_steps > 0 else []
    whole = f"steps of {size * together}" + (
        f" ({devices} devices, batch size {size} per device)" if devices > 1 else ""
    )
    return f"{' or '.join(ends) or 'no end'}, {epoch} an epoch, {whole}"
