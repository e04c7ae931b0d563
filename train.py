"""Train, validate and test one experiment.

Reads from top to bottom. Heavy packages are imported only after the config has been checked.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` handles it: Ctrl-C during an import shows no traceback

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.build import make
from engine.command_line import parse
from engine.config import schema
from engine.config.config import Config
from engine.contracts import DataError, DataSpec, UserError, is_lower_better
from engine.inference.trained_run import find_trained_run
from engine.memory import keep_freed_memory
from engine.runs.run_folder import rank, restart_count, run_folder
from engine.terminal import duration, prepare_output, print_line, quiet_lightning
from engine.training.checkpoint_file import newest
from engine.training.exits import RunEnded, Stopped, end_children, explain_error, is_refusal, report_bug, report_exit
from engine.training.signals import Signals

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningDataModule, Trainer

    from engine.runs.run_record import RunRecord
    from lit_models.classifier import LitClassifier


def main(argv: list[str], callbacks: Sequence["Callback"] = ()) -> int:
    """Run the command line `argv` and return the exit code. `callbacks` come after those of the config."""
    folder, number = None, 0
    with Signals() as signals:
        try:
            number = rank()
            if (config := parse(argv, description=__doc__.splitlines()[0])) is None:
                return 0
            with run_folder(config) as folder:
                try:
                    return train(config, folder, signals, callbacks)
                except Exception as error:
                    if signals.has_interrupted(error):  # the import of a package turns `Stopped` into any other error
                        raise Stopped(signals.received) from error
                    raise
        except (RunEnded, UserError) as error:
            end = error
        except Exception as error:
            return report_bug(error)
    return report_exit(end, folder, number)


def train(config: Config, folder: Path, signals: Signals, callbacks: Sequence["Callback"] = ()) -> int:
    """Fit, test the best checkpoint, and leave everything in the run's folder. Returns the exit code."""
    checkpoint = config.checkpoint or newest(folder, config.may_fall_back)
    if config.resumed_folder and checkpoint is None:
        print_line("the run has no checkpoint yet: starting from its beginning")
    from lightning.pytorch import seed_everything

    from engine.runs.run_record import RunRecord
    from engine.training.consensus import connect_again
    from engine.training.initial_weights import load_initial_weights

    quiet_lightning()
    record = RunRecord(
        folder,
        config.to_yaml(),
        config.flat(),
        config.varied_keys(),
        is_resumed=checkpoint is not None,
        prints_start="progress_line" in active_callbacks(config),
    )
    trainer = None
    try:
        seed_everything(config["seed"], verbose=False)
        # before any download, because it may refuse an option
        trainer = make_trainer(config, folder, record, signals, callbacks)
        datamodule = make(config, "data", seed=config["seed"])
        datamodule.trainer = trainer  # whose processes share the memory of this machine
        model = make_model(config, datamodule.spec)
        initialize(model, datamodule, folder if trainer.is_global_zero else None)
        if checkpoint is None and (start := config["model"].get("start_from")) is not None:
            load_initial_weights(model, find_trained_run(start), datamodule, str(trainer.precision))
            if trainer.is_global_zero:
                print_line(f"starting from {start}")
        if getattr(datamodule, "held_out", None) == "val":
            trainer.limit_test_batches = 0  # folds choose a setting, which comes before the test
        signals.children = lambda: getattr(trainer.strategy.launcher, "procs", ())
        connect_again(trainer, restart_count(), config["run.timeout_minutes"])
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()  # after the data is loaded, which needs other sizes
        trainer.fit(model, datamodule, ckpt_path=checkpoint, weights_only=True)
        best = folder / "checkpoints/best.ckpt"  # on the disk of the first process, if there are several nodes
        tested = trainer.strategy.broadcast(best if best.is_file() else None)
        trainer.test(model, datamodule, ckpt_path=tested, weights_only=True, verbose=False)
        record.finish(trainer, tested)
    except UserError as error:
        raise config.option_error("data" if isinstance(error, DataError) else "trainer", error) from error
    except Exception as error:
        if (missing := config.missing_monitor(error)) is not None:
            raise missing from error
        if is_refusal(error):
            raise config.option_error("trainer", error) from error
        devices = trainer.world_size if trainer else 1
        explained = explain_error(error, config.values["data"].get("batch_size"), devices)
        if explained is error:
            raise
        raise explained from error
    finally:
        if trainer is not None and not trainer.state.finished:
            end_children(signals.children())
    return 0


def make_model(config: Config, spec: DataSpec) -> "LitClassifier":
    """The model for data of `spec`."""
    return make(config, "model", **spec.model_arguments(), optimizer=config["optimizer"], schedule=config["schedule"])


def initialize(model: "LitClassifier", datamodule: "LightningDataModule", folder: Path | None) -> None:
    """Load the data, let the model measure the training inputs, and save the tokenizer in `folder`."""
    from lightning.pytorch.utilities.model_helpers import is_overridden

    from datamodules.classification import ClassificationDataModule

    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if not is_overridden(loader, datamodule):
            raise DataError(f"{type(datamodule).__name__} has no method {loader}")
    if isinstance(datamodule, ClassificationDataModule):
        datamodule.prepare_data()
        datamodule.setup()
        if folder is not None:
            datamodule.save(folder)
        if datamodule.is_loaded:
            model.balance_classes(datamodule.class_counts())
            model.initialize_from_data(datamodule.training_inputs(), datamodule.mean, datamodule.std)
            return
    model.initialize_without_data()


def active_callbacks(config: Config) -> list[str]:
    """The names of the callbacks that are not switched off, in their order."""
    names = {name for name, options in config["callbacks"].items() if options is not None}
    names = names if config["trainer.enable_progress_bar"] else names - {"progress_line"}
    return sorted(names, key=lambda name: (name != "pruning", name))  # weight averaging copies the network


def make_trainer(
    config: Config, folder: Path, record: "RunRecord", signals: Signals, more: Sequence["Callback"] = ()
) -> "Trainer":
    """Lightning's Trainer with the loggers, checkpoints and callbacks of the run, and `more` callbacks."""
    from lightning.pytorch import Trainer

    from engine.training.calibration import Calibration
    from engine.training.checkpoints import Checkpoints, VerifiedCheckpoints
    from engine.training.epoch_loop import install_loop
    from engine.training.hardware import (
        check_processes,
        choose_devices,
        choose_precision,
        describe_hardware,
        set_threads,
    )
    from engine.training.loggers import make_loggers
    from engine.training.shared_buffers import SharedBuffers
    from engine.training.spread_threads import SpreadThreads

    options = config.options("trainer")
    options["default_root_dir"] = options["default_root_dir"] or str(folder)
    options |= {name: options[name] or -1 for name in ("max_epochs", "max_steps")}
    names = schema.logger_names(options["logger"])
    if config.is_check and names:
        names = ["tensorboard"]  # --check measures the time of logging, and must not upload anything
    loggers = make_loggers(names, folder, record.clock, config.flat())
    run = {name: value for name, value in config["run"].items() if name not in ("root", "name", "threads")}
    run["mode"] = run["mode"] or ("min" if is_lower_better(run["monitor"]) else "max")
    enabled = options.pop("enable_checkpointing")
    calibrates = run.pop("calibrate")
    # the first two come first, because they record the state before other callbacks act
    callbacks: list[Callback] = [record, Checkpoints(folder, signals, record.clock, enabled=enabled, **run)]
    callbacks += [
        SharedBuffers(),
        SpreadThreads(),
        *(make(config, f"callbacks.{name}") for name in active_callbacks(config)),
    ]
    callbacks += [*([Calibration()] if calibrates else []), *more]
    if config.is_check:
        from engine.checks.preflight import PreflightCheck

        callbacks.append(PreflightCheck())
    options |= {"enable_progress_bar": False, "enable_checkpointing": False, "logger": loggers or False}
    try:
        options["precision"] = choose_precision(options["accelerator"], options["precision"])
        options["devices"] = choose_devices(options["accelerator"], options["devices"])
        trainer = Trainer(**options, plugins=VerifiedCheckpoints(), callbacks=callbacks)
        install_loop(trainer, run["timeout_minutes"], record.clock)
        check_processes(trainer.accelerator, trainer.num_devices, trainer.world_size)
        set_threads(config["run.threads"], trainer.num_devices, record.earlier_threads())
        if trainer.num_nodes > 1 and trainer.is_global_zero:
            cluster = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
            address, most = f"{cluster.main_address}:{cluster.main_port}", duration(60 * run["timeout_minutes"])
            print_line(
                f"waiting for {trainer.world_size} processes on {trainer.num_nodes} nodes at {address}, at most {most}"
            )
    except Exception as error:
        if isinstance(error, UserError) or is_refusal(error):
            raise config.option_error("trainer", error, describe_hardware()) from error
        raise
    return trainer


if __name__ == "__main__":
    prepare_output()
    sys.exit(main(sys.argv[1:]))
