#!/usr/bin/env python3
"""Train, validate and test one experiment.

Reads from top to bottom. Heavy packages are imported only when the config is known to be right.
"""

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import Config, ConfigError, discard, make_run_folder, parse
from configs.catalogue import PROJECT, lightning_folder
from configs.schema import METRICS

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

    from callbacks.run_record import RunRecord
    from datamodules.classification import DataSpec
    from lit_models.classifier import LitClassifier

INTERRUPTED = 130  # 128 + SIGINT, as a shell counts


def main(argv: list[str]) -> int:
    """Run the command line `argv`; the exit code comes back."""
    folder = None
    try:
        config = parse(argv, description=__doc__.splitlines()[0])
        if config is None:
            return 0
        folder = make_run_folder(config)
        return train(config, folder)
    except ConfigError as error:
        discard(folder)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        discard(folder)
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def train(config: Config, folder: Path) -> int:
    """Fit, test the best checkpoint, leave everything in the run's folder; the exit code comes back."""
    from lightning.pytorch import seed_everything
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from callbacks.progress_line import quieten
    from callbacks.run_record import RunRecord
    from datamodules.classification import DataError

    quieten()
    record, trainer = RunRecord(folder, config.to_yaml(), config.flat()), None
    try:
        seed_everything(config["seed"], verbose=False)
        trainer = make_trainer(config, folder, record)  # before any download: it may refuse
        datamodule = make(config, "data", seed=config["seed"])
        model = make_model(config, datamodule.spec)
        datamodule.prepare_data()
        datamodule.setup()
        if trainer.is_global_zero:
            datamodule.save(folder)
        model.set_normalization(datamodule.mean, datamodule.std)
        trainer.fit(model, datamodule)
        tested = best if (best := folder / "checkpoints/best.ckpt").is_file() else None
        trainer.test(model, datamodule, ckpt_path=tested, weights_only=True, verbose=False)
    except DataError as error:
        raise config.refused("data", str(error)) from error
    except (MisconfigurationException, ValueError, ImportError) as error:
        where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if isinstance(error, MisconfigurationException) or where.is_relative_to(lightning_folder()):
            raise config.refused("trainer", str(error)) from error  # Lightning refuses options; the rest are bugs
        raise
    except SystemExit:  # Lightning's answer to Ctrl-C
        if trainer is None or not trainer.interrupted:
            raise
        if trainer.is_global_zero:
            print(f"interrupted; what there is of the run is in {folder}", file=sys.stderr)
        return INTERRUPTED
    if trainer.is_global_zero:
        record.finish(trainer, tested)
        print(record.report())
    return 0


def make(config: Config, section: str, **given: Any) -> Any:
    """What `section` (``data``, ``model``, ``callbacks.NAME``) names, made from its options and what is given."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    component = config.components[section]
    ours = component.path.parent.parent == PROJECT
    module = f"{component.path.parent.name}.{component.path.stem}" if ours else "lightning.pytorch.callbacks"
    try:
        made = getattr(importlib.import_module(module), component.name)
        return made(**config.options(section), **given)
    except (ValueError, ImportError, MisconfigurationException) as error:
        raise config.refused(section, str(error)) from error


def make_model(config: Config, spec: "DataSpec") -> "LitClassifier":
    """The model for data of `spec`."""
    sections = {name: config[name] for name in ("optimizer", "schedule")}
    return make(config, "model", **spec.model_arguments(), **sections)


def make_trainer(config: Config, folder: Path, record: "RunRecord") -> "Trainer":
    """Lightning's Trainer with our logger, checkpoints and callbacks."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from callbacks.run_record import RunLogger
    from lit_models.hardware import best_precision, check_processes, hardware

    options = config.options("trainer")
    options["default_root_dir"] = options["default_root_dir"] or str(folder)
    options["max_epochs"] = options["max_epochs"] or -1
    options["max_steps"] = options["max_steps"] or -1
    options["logger"] = RunLogger(folder) if options["logger"] else False
    if options["precision"] == "auto":
        options["precision"] = best_precision(options["accelerator"])
    wanted = {name for name, values in config["callbacks"].items() if values is not None}
    if not options.pop("enable_progress_bar"):
        wanted.discard("progress_line")
    callbacks: list[Callback] = [record, *(make(config, f"callbacks.{name}") for name in sorted(wanted))]
    if options["enable_checkpointing"]:
        shared = {"dirpath": folder / "checkpoints", "save_top_k": 1, "enable_version_counter": False}
        monitor = config["run.monitor"]
        if options["limit_val_batches"] != 0:
            callbacks.append(ModelCheckpoint(filename="best", monitor=monitor, mode=METRICS[monitor], **shared))
        # at every epoch's end, validated or not; Lightning's `save_last` is not the last
        callbacks.append(ModelCheckpoint(filename="last", monitor=None, save_on_train_epoch_end=True, **shared))
    try:
        trainer = Trainer(**options, callbacks=callbacks, enable_progress_bar=False)
        check_processes(trainer.accelerator, trainer.num_devices)
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise config.refused("trainer", str(error), hardware()) from error
    return trainer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
