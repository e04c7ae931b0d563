"""Train, validate and test one experiment.

Reads from top to bottom. Heavy packages are imported only when the config is known to be right.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` handles it: no traceback out of an import

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from callbacks.endings import REFUSED, RunEnded, end_children, ending, say, tell
from callbacks.signals import Signals
from configs import Config, ConfigError, parse, rank, run_folder
from configs.catalogue import PROJECT, refused_by_lightning
from configs.schema import METRICS
from lit_models.checkpoint_file import BrokenCheckpointError, newest

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

    from callbacks.run_record import RunRecord
    from datamodules.classification import DataSpec
    from lit_models.classifier import LitClassifier


def main(argv: list[str]) -> int:
    """Run the command line `argv`; the exit code comes back."""
    folder = None
    with Signals() as signals:
        try:
            if (config := parse(argv, description=__doc__.splitlines()[0])) is None:
                return 0
            with run_folder(config) as folder:
                return train(config, folder, signals)
        except (ConfigError, BrokenCheckpointError) as error:
            end = RunEnded(f"error: {error}", REFUSED)
        except RunEnded as error:
            end = error
    return tell(end, folder, rank())


def train(config: Config, folder: Path, signals: Signals) -> int:
    """Fit, test the best checkpoint, leave everything in the run's folder; the exit code comes back."""
    checkpoint = config.checkpoint or newest(folder, config.falls_back)
    if config.resumes and checkpoint is None:
        say("it has no checkpoint yet: starting from its beginning")
    from lightning.pytorch import seed_everything

    from callbacks.progress_line import quieten
    from callbacks.run_record import RunRecord
    from datamodules.classification import DataError

    quieten()
    record = RunRecord(folder, config.to_yaml(), config.flat(), config.varied(), resumes=checkpoint is not None)
    trainer = None
    try:
        seed_everything(config["seed"], verbose=False)
        trainer = make_trainer(config, folder, record, signals)  # before any download: it may refuse
        datamodule = make(config, "data", seed=config["seed"])
        model = make_model(config, datamodule.spec)
        datamodule.prepare_data()
        datamodule.setup()
        if trainer.is_global_zero:
            datamodule.save(folder)
        model.start_from(datamodule.training_inputs(), datamodule.mean, datamodule.std)
        signals.children = lambda: getattr(trainer.strategy.launcher, "procs", ())
        trainer.fit(model, datamodule, ckpt_path=checkpoint, weights_only=True)
        best = folder / "checkpoints/best.ckpt"  # of the first process, if there are more
        tested = trainer.strategy.broadcast(best if best.is_file() else None)
        trainer.test(model, datamodule, ckpt_path=tested, weights_only=True, verbose=False)
    except DataError as error:
        raise config.refused("data", str(error)) from error
    except Exception as error:
        if refused_by_lightning(error):
            raise config.refused("trainer", str(error)) from error
        raise ending(error, config["data.batch_size"], trainer.world_size if trainer else 1) from error
    finally:
        if trainer is not None and not trainer.state.finished:
            end_children(signals.children())
    record.finish(trainer, tested)
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
    return make(config, "model", **spec.model_arguments(), optimizer=config["optimizer"], schedule=config["schedule"])


def make_trainer(config: Config, folder: Path, record: "RunRecord", signals: Signals) -> "Trainer":
    """Lightning's Trainer with our logger, checkpoints and callbacks."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from callbacks.checkpoints import Checkpoints
    from callbacks.epoch_loop import control
    from callbacks.run_logger import RunLogger
    from callbacks.shared_buffers import SharedBuffers
    from lit_models.checkpoint_io import VerifiedCheckpoints
    from lit_models.hardware import check_processes, choose_precision, hardware

    options = config.options("trainer")
    options["default_root_dir"] = options["default_root_dir"] or str(folder)
    options |= {name: options[name] or -1 for name in ("max_epochs", "max_steps")}
    options["logger"] = RunLogger(folder, record.clock) if options["logger"] else False
    bar, enabled = options.pop("enable_progress_bar"), options.pop("enable_checkpointing")
    chosen = {name for name, values in config["callbacks"].items() if values is not None}
    run = {name: value for name, value in config["run"].items() if name not in ("root", "name")}
    checkpoints = Checkpoints(folder, signals, record.clock, mode=METRICS[run["monitor"]], enabled=enabled, **run)
    # these two first: what they write is how things stood before the others acted
    callbacks: list[Callback] = [record, checkpoints, SharedBuffers()]
    callbacks += [make(config, f"callbacks.{one}") for one in sorted(chosen if bar else chosen - {"progress_line"})]
    if config.checks:
        from callbacks.rehearsal import Rehearsal
        from datamodules.sanity import data_verdicts
        from lit_models.sanity import model_verdicts

        callbacks.append(Rehearsal(data_verdicts, model_verdicts))
    options |= {"enable_progress_bar": False, "enable_checkpointing": False, "plugins": VerifiedCheckpoints()}
    try:
        options["precision"] = choose_precision(options["accelerator"], options["precision"])
        trainer = Trainer(**options, callbacks=callbacks)
        control(trainer, run["timeout_minutes"], record.clock)
        check_processes(trainer.accelerator, trainer.num_devices, trainer.world_size)
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise config.refused("trainer", str(error), hardware()) from error
    return trainer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
