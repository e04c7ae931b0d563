"""The keys that every experiment has, independent of its data and model.

`engine.config.signatures` reads the fields of each dataclass as keys with their types, defaults and ranges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

# Arguments that train.py passes to a component. A config cannot set them in the section of the component.
PASSED_BY_TRAIN = {
    "data": {"seed"},
    "model": {
        "input_shape", "num_classes", "class_names", "vocab_size", "pad_id", "max_length", "optimizer", "schedule",
        "columns", "architecture",
    },
}  # fmt: skip

# The metrics that every model logs, and whether their lowest or highest value is best.
METRICS: dict[str, Literal["min", "max"]] = {
    "train/loss": "min",
    "train/accuracy": "max",
    "val/loss": "min",
    "val/accuracy": "max",
    "val/f1": "max",
    "val/calibration_error": "min",
}

# Arguments of the Trainer for which a float is a fraction of all batches and an int is a number of batches.
FRACTIONS = (
    "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches",
    "val_check_interval",
)  # fmt: skip

# Callbacks of every run, unless the config sets them to null.
DEFAULT_CALLBACKS = (
    "confusion_matrix", "finite_steps", "first_filters", "gallery", "model_graph", "pr_curves", "progress_line",
    "projector", "reliability_diagram", "throughput",
)  # fmt: skip

# Old name of a key -> its new name.
RENAMED = {
    "data.resident_gigabytes": "data.gpu_memory_gigabytes",
    "optimizer.rounds": "optimizer.ns_steps",
    "callbacks.class_accuracy": "callbacks.confusion_matrix",
    "callbacks.pr_curves.num_classes": "callbacks.pr_curves.max_classes",
}

LOGGERS = ("tensorboard", "csv", "wandb")


def logger_names(value: bool | str | Sequence[str] | None) -> list[str]:
    """Return the loggers that a value of ``trainer.logger`` chooses. True chooses TensorBoard, False and None no logger."""
    if isinstance(value, bool) or value is None:
        return ["tensorboard"] if value else []
    return [value] if isinstance(value, str) else list(dict.fromkeys(value))


# Callbacks of Lightning by short name: the file in lightning/pytorch/callbacks, and the class.
LIGHTNING_CALLBACKS = {
    "device_stats_monitor": ("device_stats_monitor", "DeviceStatsMonitor"),
    "early_stopping": ("early_stopping", "EarlyStopping"),
    "ema_weight_averaging": ("weight_averaging", "EMAWeightAveraging"),
    "learning_rate_monitor": ("lr_monitor", "LearningRateMonitor"),
    "model_summary": ("model_summary", "ModelSummary"),
    "timer": ("timer", "Timer"),
}

# Ranges of the parameters of these callbacks. Lightning accepts other values or fails with a traceback.
LIGHTNING_BOUNDS = {
    "early_stopping": {"min_delta": ">= 0", "patience": ">= 0"},
    "ema_weight_averaging": {
        "decay": ">= 0, < 1", "update_every_n_steps": ">= 1", "update_starting_at_step": ">= 0",
        "update_starting_at_epoch": ">= 0",
    },
    "model_summary": {"max_depth": ">= -1"},
}  # fmt: skip


@dataclass
class Experiment:
    """Keys at the top level of a config.

    Args:
        seed: Seed of the initial weights, the order of samples and augmentation. The validation split has its own seed,
            data.split_seed.
    """

    seed: Annotated[int, ">= 0, <= 4294967295"] = 0


@dataclass
class Run:
    """The folder and the checkpoints of a run.

    Args:
        root: Folder of all runs. The folder of a run is ROOT/CONFIG/NAME.
        name: Name of the run's folder, which must not exist; null for the UTC time and a random suffix.
        monitor: Metric that chooses the best checkpoint: any metric that is logged in validation.
        mode: Whether the lowest or the highest value of the monitor is best; null to decide by its name (min if it contains
            loss, error or seconds, otherwise max).
        calibrate: Divide the logits of the best checkpoint by a temperature that is fitted on the validation set, so that
            probabilities agree with the accuracy. Predicted classes do not change.
        checkpoint_every_minutes: Minutes between two checkpoints within an epoch; null for no such checkpoints. A checkpoint
            is also written at the end of training and after epochs that take more than two seconds.
        checkpoint_every_steps: Optimizer steps between two checkpoints within an epoch; null for no such checkpoints.
        timeout_minutes: How long a process waits for the other processes of the run before it gives up.
        threads: Number of threads of each process; null for OMP_NUM_THREADS if it is set, otherwise for the cores that the
            process may use (affinity, cgroup, SLURM), divided by the processes of the run. This number changes the last
            digits of results.
    """

    root: str = "runs"
    name: str | None = None
    monitor: str = "val/accuracy"
    mode: Literal["min", "max"] | None = None
    calibrate: bool = True
    checkpoint_every_minutes: Annotated[float, "> 0, <= 1e6"] | None = 10.0
    checkpoint_every_steps: Annotated[int, ">= 1"] | None = None
    timeout_minutes: Annotated[float, "> 0, <= 1e6"] = 10.0
    threads: Annotated[int, ">= 1, <= 1024"] | None = None


@dataclass
class Trainer:
    """Arguments of `lightning.Trainer` with another default, type, range or help text than in Lightning.

    Args:
        devices: Number of devices, a list of their indices, -1 for all, or auto.
        precision: Number format of the computation. auto uses bf16-mixed if the hardware multiplies bf16 natively (CUDA
            capability 8 or newer, a CPU with AMX or AVX512-BF16), and 32-true otherwise.
        max_epochs: Passes over the training set; null for no limit. Then max_steps, max_time or early stopping must end the
            training.
        min_epochs: Epochs before early stopping can end the training.
        max_steps: Optimizer steps; null for no limit.
        min_steps: Optimizer steps before early stopping can end the training.
        max_time: Duration as DAYS:HOURS:MINUTES:SECONDS after which the training ends, as in '00:01:30:00'.
        limit_train_batches: Fraction (float) or number (int) of training batches per epoch.
        limit_val_batches: Fraction (float) or number (int) of batches per validation; 0 for no validation.
        limit_test_batches: Fraction (float) or number (int) of batches in the test; 0 for no test.
        limit_predict_batches: Fraction (float) or number (int) of batches in a prediction.
        val_check_interval: Fraction of an epoch (float) or training batches (int) between two validations.
        num_sanity_val_steps: Validation batches before training starts; -1 for all.
        log_every_n_steps: Steps between two points of the training curves.
        deterministic: Refuse operations whose result may differ between two runs; warn to show a warning instead.
        default_root_dir: Folder for files that Lightning writes; null for the run's folder.
        fast_dev_run: Number of batches of training, validation and test to run as a trial; true for 1.
        logger: Where metrics are logged: tensorboard, csv, wandb or a list of them; true for tensorboard, false for none.
        enable_progress_bar: Show callbacks.progress_line.
        enable_checkpointing: Write checkpoints. Without checkpoints the model of the last epoch is tested.
    """

    precision: Literal[
        "auto", "32-true", "16-true", "64-true", "bf16-true", "16-mixed", "bf16-mixed",
        "transformer-engine", "transformer-engine-float16", "64", "32", "16", "bf16", 64, 32, 16,
    ] = "auto"  # fmt: skip
    max_epochs: Annotated[int, ">= 1"] | None = 10
    min_epochs: Annotated[int, ">= 0"] | None = None
    max_steps: Annotated[int, ">= 1"] | None = None
    min_steps: Annotated[int, ">= 0"] | None = None
    num_nodes: Annotated[int, ">= 1, <= 100000"] = 1
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
    max_time: str | Mapping[str, int] | None = None
