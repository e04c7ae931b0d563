"""The closed sections: keys that belong to every experiment, whatever its data and model.

Each class is read like a component's constructor (`configs.signatures`): fields are keys, defaults and ranges are here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

# What train.py hands to a component itself, so that no config can contradict it: the numbers of the data, the sections
# that stand on their own; and what only a checkpoint hands over.
HANDED_OVER = {
    "data": {"seed"},
    "model": {
        "input_shape", "num_classes", "class_names", "vocab_size", "pad_id", "max_length", "optimizer", "schedule",
        "architecture",
    },
}  # fmt: skip

# What every model logs, and whether less is better. Own models may log more.
METRICS: dict[str, Literal["min", "max"]] = {
    "train/loss": "min",
    "train/accuracy": "max",
    "val/loss": "min",
    "val/accuracy": "max",
    "val/f1": "max",
    "val/calibration_error": "min",
}

# Trainer arguments in which a float is a share of all batches and an int a number of them.
SHARES = (
    "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches",
    "val_check_interval",
)  # fmt: skip

# Callbacks of every run, unless it sets them to null.
DEFAULT_CALLBACKS = (
    "class_accuracy", "confusion_matrix", "finite_steps", "first_filters", "gallery", "model_graph", "pr_curves",
    "progress_line", "projector", "reliability_diagram", "throughput",
)  # fmt: skip

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
    """What stands at the top of a config, outside any section.

    Args:
        seed: Of weights, order and augmentation. The validation split has its own, `data.split_seed`.
    """

    seed: Annotated[int, ">= 0, <= 4294967295"] = 0


@dataclass
class Run:
    """Where a run leaves its files, and which of its epochs is best.

    Args:
        root: Folder of all runs; a run's own is ROOT/CONFIG/NAME.
        name: Folder of this run; null for the UTC time with a random tail. It must not exist yet.
        monitor: Metric by which the best checkpoint is chosen.
        checkpoint_every_minutes: Minutes between two checkpoints within an epoch; null for none. Every epoch of more than
            two seconds, and the end, has one anyway.
        checkpoint_every_steps: Likewise, in optimizer steps.
        timeout_minutes: How long one process of several waits for the others before it gives them up.
    """

    root: str = "runs"
    name: str | None = None
    monitor: Literal["val/accuracy", "val/f1", "val/loss"] = "val/accuracy"
    checkpoint_every_minutes: Annotated[float, "> 0"] | None = 10.0
    checkpoint_every_steps: Annotated[int, ">= 1"] | None = None
    timeout_minutes: Annotated[float, "> 0"] = 10.0


@dataclass
class Trainer:
    """Where our defaults, choices or ranges differ from what `lightning.Trainer` declares.

    Args:
        precision: auto picks bf16-mixed where the hardware multiplies bf16 natively (CUDA capability 8 or newer, a CPU
            with AMX or AVX512-BF16), else 32-true.
        max_epochs: Passes over the training set; null for no end (then max_steps, max_time or early stopping ends it).
        max_steps: Optimizer steps; null for no end (then max_epochs ends it).
        log_every_n_steps: Steps between two points of the training curves.
        num_sanity_val_steps: Validation batches to try before training.
        default_root_dir: Where Lightning leaves files of its own; null for the run's folder.
        deterministic: Refuse ("warn": warn of) operations whose result can differ between two runs.
        logger: false for no TensorBoard.
        enable_progress_bar: Show callbacks.progress_line.
        enable_checkpointing: false keeps no checkpoints; the last epoch's model is tested.
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
    logger: bool = True
    enable_progress_bar: bool | None = True
    enable_checkpointing: bool = True
    enable_model_summary: bool | None = False
    enable_autolog_hparams: bool = False
