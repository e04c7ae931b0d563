"""Tests the model of a run again: on the test set of the run, or on new data with labels."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from engine.build import component_class, make
from engine.config import schema
from engine.config.config import Config
from engine.contracts import COMMAND_LINE, ConfigError, DataError, DataSpec
from engine.inference.predictor import Predictor
from engine.inference.slices import slice_metrics
from engine.inference.trained_run import TrainedRun
from engine.runs.run_folder import write_json
from engine.training.clock import Clock
from engine.training.exits import is_refusal
from engine.training.hardware import check_processes, choose_precision, describe_hardware, set_threads
from engine.training.loggers import make_loggers

# options of the trainer that change the test or the devices
OPTIONS = (
    "accelerator", "devices", "num_nodes", "strategy", "precision", "limit_test_batches", "deterministic", "benchmark",
    "sync_batchnorm", "use_distributed_sampler",
)  # fmt: skip


def evaluate(run: TrainedRun, source: Path | None, name: str, slices: Config | None = None) -> dict[str, Any] | None:
    """Compute the metrics of the test.

    Args:
        run: The run.
        source: New data with labels; None for the test set of the run.
        name: Name of the evaluation. Its pictures are written to ``evaluations/NAME`` in the folder of the run, and its
            metrics to ``evaluations/NAME.json``.
        slices: The config of the run, with a column of `source` as the target. The metrics are also computed for each value
            of this column.

    Returns:
        The content of the file; None in all processes but the first.
    """
    config, folder = run.config, run.folder / "evaluations" / name
    model = component_class(config, "model").load_from_checkpoint(run.checkpoint, "cpu")
    datamodule = data = make(config, "data", seed=config["seed"])
    if source is not None:
        spec = DataSpec.from_arguments(datamodule.modality, model.hparams)
        data = datamodule.labelled_set(source, spec, run.folder)
    values = None if slices is None else _read_column(slices, source, data.spec, run.folder)
    shutil.rmtree(folder, ignore_errors=True)  # only now, because new data can have an error
    datamodule.trainer = trainer = _make_trainer(run, folder)
    if trainer.precision != "64-true":
        model.float()  # the user may have chosen another precision than that of the training
    trainer.test(model, data, verbose=False)
    if not trainer.is_global_zero:
        return None
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("test")}
    batches: Any = trainer.test_dataloaders
    result: dict[str, Any] = {
        **metrics,
        "data": str(source) if source else "the test set of the run",
        "num_samples": len(getattr(batches, "labels", ())) or None,
        "checkpoint": str(run.checkpoint.relative_to(run.folder)),
    }
    if values is not None:
        predictor = Predictor(run, str(trainer.strategy.root_device))
        logits, labels = predictor.logits(data.inputs), data.labels.cpu()
        result["slices"] = [*map(asdict, slice_metrics(logits, labels, values, predictor.model.test_metrics.cpu()))]
    folder.parent.mkdir(exist_ok=True)
    write_json(folder.with_name(f"{name}.json"), result)
    return result


def _read_column(slices: Config, source: Path | None, spec: DataSpec, folder: Path) -> list[str | None]:
    """Return the values of the target column of `slices`."""
    assert source is not None
    datamodule = make(slices, "data", seed=slices["seed"])  # reads the same rows in the same order
    try:
        parts = list(datamodule.read_inputs(source, spec, folder, with_labels=True).parts)
    except DataError as error:
        raise ConfigError(COMMAND_LINE, "--slices", str(error).removeprefix("INPUT: ")) from error
    return [value for part in parts for value in part.labels]


def _make_trainer(run: TrainedRun, folder: Path) -> Trainer:
    config = run.config
    options = {name: value for name, value in config.options("trainer").items() if name in OPTIONS}
    names = {"tensorboard"}.intersection(schema.logger_names(config["trainer.logger"]))
    loggers = make_loggers(names, folder, Clock(), {})
    active = [f"callbacks.{name}" for name, value in config["callbacks"].items() if value is not None]
    callbacks: list[Callback] = [make(config, name) for name in active if _takes_test(component_class(config, name))]
    try:
        options["precision"] = choose_precision(options["accelerator"], options["precision"])
        trainer = Trainer(
            **options,
            callbacks=callbacks,
            logger=loggers or False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=str(folder),
        )
        check_processes(trainer.accelerator, trainer.num_devices, trainer.world_size)
        set_threads(config["run.threads"], trainer.num_devices)
    except Exception as error:
        if is_refusal(error):
            raise config.option_error("trainer", error, describe_hardware()) from error
        raise
    return trainer


def _takes_test(callback: type) -> bool:
    """Return whether a callback uses the batches of a test."""
    return any(
        getattr(callback, name) is not getattr(Callback, name) for name in ("on_test_batch_end", "on_test_epoch_end")
    )
