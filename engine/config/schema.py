"""The keys that every experiment has, whatever its data and model are.

`engine.config.signatures` reads each class like a constructor: its fields are keys with their defaults and ranges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

# Arguments that train.py passes to a component: facts about the data, and sections of their own. A config cannot set them.
HANDED_OVER = {
    "data": {"seed"},
    "model": {
        "input_shape", "num_classes", "class_names", "vocab_size", "pad_id", "max_length", "optimizer", "schedule",
        "architecture",
    },
}  # fmt: skip

# The metrics that every model logs, and whether the lowest or the highest value is best.
METRICS: dict[str, Literal["min", "max"]] = {
    "train/loss": "min",
    "train/accuracy": "max",
    "val/loss": "min",
    "val/accuracy": "max",
    "val/f1": "max",
    "val/calibration_error": "min",
}

# Trainer arguments in which a float is a fraction of all batches and an int is a number of batches.
FRACTIONS = (
    "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches",
    "val_check_interval",
)  # fmt: skip

# Callbacks of every run. A config switches one off by null.
DEFAULT_CALLBACKS = (
    "confusion_matrix", "finite_steps", "first_filters", "gallery", "model_graph", "pr_curves", "progress_line",
    "projector", "reliability_diagram", "throughput",
)  # fmt: skip

# Keys that have a new name, and that name.
RENAMED = {
    "optimizer.rounds": "optimizer.ns_steps",
    "callbacks.class_accuracy": "callbacks.confusion_matrix",
    "callbacks.pr_curves.num_classes": "callbacks.pr_curves.max_classes",
}

LOGGERS = ("tensorboard", "csv", "wandb")


def logger_names(value: bool | str | Sequence[str] | None) -> list[str]:
    """The loggers that ``trainer.logger`` chooses: true is TensorBoard, false and null are none."""
    if isinstance(value, bool) or value is None:
        return ["tensorboard"] if value else []
    return [value] if isinstance(value, str) else list(value)


# Lightning's callbacks by short name: the file below lightning/pytorch/callbacks and the class.
LIGHTNING_CALLBACKS = {
    "device_stats_monitor": ("device_stats_monitor", "DeviceStatsMonitor"),
    "early_stopping": ("early_stopping", "EarlyStopping"),
    "ema_weight_averaging": ("weight_averaging", "EMAWeightAveraging"),
    "learning_rate_monitor": ("lr_monitor", "LearningRateMonitor"),
    "model_summary": ("model_summary", "ModelSummary"),
    "timer": ("timer", "Timer"),
}


@dataclass
class Experiment:
    """Keys at the top of a config, outside any section.

    Args:
        seed: Seed of the weights, the order of samples and augmentation. The validation split has `data.split_seed`.
    """

    seed: Annotated[int, ">= 0, <= 4294967295"] = 0


@dataclass
class Run:
    """Where a run writes its files, and which epoch is best.

    Args:
        root: Folder of all runs. The folder of one run is ROOT/CONFIG/NAME.
        name: Name of this run's folder, which must not exist; null for the UTC time and a random suffix.
        monitor: Metric that chooses the best checkpoint: any metric that is logged in validation.
        mode: Whether the lowest or the highest value of the monitor is best; null to decide by its name (loss and error:
            lowest, others: highest).
        checkpoint_every_minutes: Minutes between two checkpoints within an epoch; null for none. Epochs that take more than
            two seconds end with a checkpoint, and so does the training.
        checkpoint_every_steps: Optimizer steps between two checkpoints within an epoch; null for none.
        timeout_minutes: How long one process waits for another before it gives up.
    """

    root: str = "runs"
    name: str | None = None
    monitor: str = "val/accuracy"
    mode: Literal["min", "max"] | None = None
    checkpoint_every_minutes: Annotated[float, "> 0"] | None = 10.0
    checkpoint_every_steps: Annotated[int, ">= 1"] | None = None
    timeout_minutes: Annotated[float, "> 0"] = 10.0


@dataclass
class Trainer:
    """The arguments of `lightning.Trainer` whose default, choices or range differ here.

    Args:
        precision: auto uses bf16-mixed if the hardware multiplies bf16 natively (CUDA capability 8 or newer, a CPU with AMX
            or AVX512-BF16), and 32-true otherwise.
        max_epochs: Passes over the training set; null for no limit (max_steps, max_time or early stopping must end it).
        max_steps: Optimizer steps; null for no limit (max_epochs must end the training).
        log_every_n_steps: Steps between two points of the training curves.
        num_sanity_val_steps: Validation batches to run before training.
        default_root_dir: Folder for files of Lightning's own; null for the run's folder.
        deterministic: Refuse operations whose result may differ between two runs ("warn": warn about them).
        logger: Where curves go: tensorboard, csv, wandb or a list of them; true for tensorboard, false for none.
        enable_progress_bar: Show callbacks.progress_line.
        enable_checkpointing: false writes no checkpoints, and the model of the last epoch is tested.
    """

    precision: Literal[
        "auto", "32-true", "16-true", "64-true", "bf16-true", "16-mixed", "bf16-mixed",
        "transformer-engine", "transformer-engine-float16", "64", "32", "16", "bf16", 64, 32, 16,
    ] = "auto"  # fmt: skip
    max_epochs: Annotated[int, ">= 1"] | None = 10
    min_epochs: Annotated[int, ">= 0"] | None = None
    max_steps: Annotated[int, ">= 1"] | None = None
    min_steps: Annotated[int, ">= 0"] | None = None
    num_nodes: Annotated[int, ">= 1"] = 1
    limit_train_batches: Annotated[int | float, "> 0"] | None = None
    limit_val_batches: Annotated[int | float, ">= 0"] | None = None
    limit_test_batches: Annotated[int | float, ">= 0"] | None = None
    limit_predict_batches: Annotated[int | float, ">= 0"] | None = None
    overfit_batches: Annotated[int | float, ">= 0"] = 0.0
    val_check_interval: Annotated[int | float | str, "> 0"] | None = None
    check_val_every_n_epoch: Annotated[int, ">= 1"] | None = 1
    num_sanity_val_steps: Annotated[int, ">= -1"] | None = 0
    log_every_n_steps: Annotated[int, ">= 1"] | None = 50
    accumulate_grad_batches: Annotated[int, ">= 1"] = 1
    gradient_clip_val: Annotated[int | float, "> 0"] | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] | None = None
    reload_dataloaders_every_n_epochs: Annotated[int, ">= 0"] = 0
    default_root_dir: str | None = None
    fast_dev_run: Annotated[int | bool, ">= 0"] = False
    devices: Annotated[Sequence[int] | int | str, ">= -1"] = "auto"
    logger: Sequence[str] | bool | str = True
    enable_progress_bar: bool | None = True
    enable_checkpointing: bool = True
    enable_model_summary: bool | None = False
    enable_autolog_hparams: bool = False
