"""What a run records: environment, metrics, hyperparameters, and what it prints at its start and end."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from engine.runs.run_folder import write_json
from engine.terminal import count_of, print_line
from engine.training.clock import Clock
from engine.training.exits import REFUSED, RunEnded
from engine.training.loggers import log_everywhere, takes_pictures, tensorboard_of

PACKAGES = ("lightning", "torch", "torchmetrics", "tensorboard", "omegaconf", "numpy", "transformers", "tokenizers")
# what must not change when a run is resumed, and what to do if it has changed
MUST_MATCH = {
    "data_sha256": "the data has changed since the run began; restore it, or start a new run",
    "threads": "another number of threads sums in another order; set OMP_NUM_THREADS={there}",
    "num_devices": "set trainer.devices={there}",
    "precision": "this device computes in another precision; use the one of before, or start a new run",
}
MAY_DIFFER = (
    "git_commit",
    "git_dirty",
    "python",
    "packages",
    "device",
    "pretrained",
)  # noted, because results may differ
TITLE_WIDTH = 13  # of the first column of the summary


class RunRecord(Callback):
    """Writes ``environment.json`` when training starts, and ``metrics.json`` when `train.py` calls `finish`.

    Args:
        folder: Folder of the run.
        config_yaml: The resolved config, shown as text in TensorBoard.
        hyperparameters: The flat config, shown beside the final metrics under HPARAMS.
        varied: Hyperparameters whose columns come first there.
        resumes: Whether the run is resumed from a checkpoint.
        prints_start: Whether to print data, model, device and steps when training starts.
    """

    def __init__(
        self,
        folder: Path,
        config_yaml: str,
        hyperparameters: Mapping[str, Any],
        varied: Collection[str] = (),
        resumes: bool = False,
        prints_start: bool = True,
    ) -> None:
        self.folder, self.config_yaml, self.hyperparameters = folder, config_yaml, hyperparameters
        self.varied, self.resumes, self.prints_start, self.clock = varied, resumes, prints_start, Clock()
        self.metrics: dict[str, Any] = {}
        self.validation: dict[str, float] = {}  # of the weights in memory; a checkpoint restores its own
        self.epoch = 0
        self._started, self._seconds = 0.0, 0.0  # start of this process's training, seconds of earlier processes

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resumes:
            path = self.folder / "environment.json"
            try:
                there = dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                problem = f"{path} is missing or broken, so it is unknown whether this run can be resumed here"
                raise RunEnded(f"error: --resume: {problem}", REFUSED) from None
            facts = self._compare(trainer, there, self._facts(trainer))
            if trainer.is_global_zero:
                self._write_start(facts)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            facts = self._facts(trainer)
            if not self.resumes:
                self._write_start(facts)
                if (logger := tensorboard_of(trainer)) is not None:
                    logger.write_start(self._texts(facts))
            if self.prints_start:
                print_line(start_summary(trainer, facts, self.hyperparameters))
                for other in trainer.loggers:
                    if not takes_pictures(other):
                        print_line(f"{'logger':<{TITLE_WIDTH}}{type(other).__name__} takes curves, but no pictures")
        self._started = time.monotonic()
        self.clock.train_start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.train_end()
        counts = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
        self.metrics |= {**counts, "train_seconds": round(self._all_seconds(), 3)}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":  # work that is queued there belongs to the training
            torch.cuda.synchronize(pl_module.device)
        self.clock.begin("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.end("validation")
        if not trainer.sanity_checking:
            self.validation, self.epoch = _logged(trainer, "val/"), trainer.current_epoch + 1

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._started:  # nothing was left to train
            self.clock.test_start()

    def state_dict(self) -> dict[str, Any]:
        progress = {"metrics": self.metrics, "seconds": self._all_seconds()}
        return {"validation": self.validation, "epoch": self.epoch, **progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validation, self.epoch = state_dict["validation"], state_dict["epoch"]
        if not self.metrics:  # the checkpoint that is tested at the end must not replace them
            self.metrics, self._seconds = state_dict["metrics"], state_dict["seconds"]

    def finish(self, trainer: Trainer, tested: Path | None) -> None:
        """Write ``metrics.json`` and the entry under HPARAMS, and print a summary, in the first process only.

        Args:
            trainer: After its test.
            tested: The checkpoint that was tested; None for the last weights.
        """
        if not trainer.is_global_zero:
            return
        test = _logged(trainer, "test")
        best = str(tested.relative_to(self.folder)) if tested else None
        self.clock.test_end()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            self.metrics |= getattr(callback, "run_metrics", {})  # such as the throughput
        seconds = {name: round(value, 3) for name, value in self.clock.seconds.items()}
        self.metrics = {**test, **self.validation, **self.metrics, "seconds": seconds, "best_checkpoint": best}
        if best:
            self.metrics["best_epoch"] = self.epoch
        # the validation metrics of the tested weights, because those of the last epoch may be of worse weights
        chosen = {name.replace("val/", "tested/val_"): value for name, value in self.validation.items()}
        log_everywhere(trainer, chosen, self.metrics["steps"])
        if (logger := tensorboard_of(trainer)) is not None:
            shown = [name for name in test if not name.startswith("test_class_accuracy/")]
            logger.write_hparams(self.hyperparameters, self.varied, [*shown, *chosen])
        for other in trainer.loggers:
            other.save()
        write_json(self.folder / "metrics.json", self.metrics)  # written last, because it marks the run as finished
        since = "since it was resumed: " if self.resumes else ""
        times = [f"{since}{line}" for line in self.clock.summary()]
        print_line(
            end_summary(self.metrics, self.hyperparameters["run.monitor"], times, self.folder, logger is not None)
        )

    def _facts(self, trainer: Trainer) -> dict[str, Any]:
        facts = environment(trainer.strategy.root_device, str(trainer.precision), trainer.world_size)
        facts["data_sha256"] = getattr(trainer.datamodule, "fingerprint", "")  # type: ignore[attr-defined]
        facts["pretrained"] = getattr(trainer.lightning_module, "pretrained_identity", None)
        facts["seed"] = self.hyperparameters["seed"]
        return facts

    def _write_start(self, facts: Mapping[str, Any]) -> None:
        write_json(self.folder / "environment.json", facts)  # marks that the run, or its resumption, has begun
        (self.folder / "status.json").unlink(missing_ok=True)  # of an earlier end

    def _texts(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """The run in Markdown, for TensorBoard."""
        rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items() if name != "command")
        return {
            "run/config": f"```yaml\n{self.config_yaml}\n```",
            "run/command": f"```\n{facts['command']}\n```",
            "run/environment": f"| name | value |\n|---|---|\n{rows}",
        }

    def _all_seconds(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started else 0.0)

    def _compare(self, trainer: Trainer, there: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
        """The environment of the run with a note about this resumption.

        Raises:
            RunEnded: if the run cannot be resumed in this environment.
        """
        for name, hint in MUST_MATCH.items():
            if name == "threads" and not str(here["device"]).startswith("cpu"):
                continue
            if there.get(name) != here[name]:
                old, new = (str(facts.get(name))[:12] for facts in (there, here))
                problem = f"{name} was {old} and is {new}: {hint.format(there=old)}"
                raise RunEnded(f"error: --resume: {problem}", REFUSED)
        others = [name for name in MAY_DIFFER if there.get(name) != here.get(name)]
        if others and trainer.is_global_zero:
            print_line(f"resuming may not be exact: {', '.join(others)} changed (environment.json)")
        note = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "after_seconds": round(self._seconds, 3)}
        note |= {"command": here["command"], **{name: here[name] for name in others}}
        return {**there, "resumed": [*there.get("resumed", []), note]}


def environment(device: torch.device, precision: str, world_size: int) -> dict[str, Any]:
    """What decides a result besides the config: code, versions, device, threads."""
    commit = _git("rev-parse", "HEAD")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": commit,
        "git_dirty": commit and bool(_git("status", "--porcelain")),  # new files count, because one may be a model
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: found for package in PACKAGES if (found := _version(package))},
        "device": f"{device.type}: {name}",
        "num_devices": world_size,
        "precision": precision,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def start_summary(trainer: Trainer, facts: Mapping[str, Any], hyperparameters: Mapping[str, Any]) -> str:
    """Data, model, device and steps of a training that is about to begin.

    Args:
        trainer: In its fit.
        facts: The environment.
        hyperparameters: The flat config.
    """
    rows = {
        "data": f"{hyperparameters['data.name']}: {', '.join(_data_facts(trainer))}",
        "model": f"{hyperparameters['model.name']}: {_parameter_facts(trainer)}",
        "device": ", ".join(_device_facts(trainer, facts)),
        "steps": _step_facts(trainer),
    }
    return "\n".join(f"{title:<{TITLE_WIDTH}}{text}" for title, text in rows.items())


def end_summary(metrics: Mapping[str, Any], monitor: str, times: list[str], folder: Path, has_tensorboard: bool) -> str:
    """Metrics of the tested checkpoint, times, and where the files are.

    Args:
        metrics: The content of ``metrics.json``.
        monitor: Metric that chose the checkpoint.
        times: Lines about where the time went.
        folder: Folder of the run.
        has_tensorboard: Whether it has files for TensorBoard.
    """
    rows = []
    for title, stage in (("test", "test"), ("validation", "val")):
        values = {name: metrics.get(f"{stage}/{name}") for name in ("accuracy", "f1", "loss")}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)
        rows.append((title, shown or "not measured"))
    if (mirrored := metrics.get("test_mirrored/accuracy")) is not None:
        rows.append(("mirrored", f"accuracy {mirrored:.4f}, of the mean over an image and its mirror image"))
    if "best_epoch" in metrics:
        rows.append(("checkpoint", f"epoch {metrics['best_epoch']}, the best by {monitor}"))
    counts = f"{count_of(metrics['epochs'], 'epoch')}, {count_of(metrics['steps'], 'step')}"
    rows.append(("trained", f"{counts} in {metrics['train_seconds']:.1f} s"))
    if "samples_per_second" in metrics:
        fraction = metrics.get("peak_share")
        reached = f", {fraction:.0%} of what a matrix product reaches here" if fraction is not None else ""
        rows.append(("speed", f"{metrics['samples_per_second']:,.0f} samples/s{reached}"))
    rows += [("time", line) for line in times]
    rows += [("run folder", str(folder))]
    if has_tensorboard:
        rows += [("TensorBoard", f"tensorboard --logdir {folder.parent.parent}")]
    return "\n".join(f"{title:<{TITLE_WIDTH}}{text}" for title, text in rows)


def _data_facts(trainer: Trainer) -> Iterator[str]:
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    spec = datamodule.spec
    shape = "x".join(map(str, spec.input_shape))
    yield {"features": f"{shape} features", "image": f"images of {shape}", "tokens": "texts"}[spec.modality]
    yield f"{spec.num_classes} classes"
    if getattr(datamodule, "is_loaded", False):
        counts = [f"{datamodule.num_samples(split):,}" for split in ("train", "val", "test")]
        yield "{} for training, {} for validation, {} for the test".format(*counts)
    else:
        yield f"{trainer.num_training_batches:,} training batches of its own DataLoaders, not normalized"


def _parameter_facts(trainer: Trainer) -> str:
    parameters = list(trainer.lightning_module.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return f"{total:,} parameters" + (f", {trained:,} of them trained" if trained < total else "")


def _device_facts(trainer: Trainer, facts: Mapping[str, Any]) -> Iterator[str]:
    count = f"{trainer.world_size} times " if trainer.world_size > 1 else ""
    yield f"{count}{facts['device']}"
    if str(facts["device"]).startswith("cpu"):
        yield count_of(facts["threads"], "thread")
    yield str(facts["precision"])


def _step_facts(trainer: Trainer) -> str:
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    batches, size = trainer.num_training_batches, getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
    per_epoch = f"{-(-batches // accumulated):,}" if isinstance(batches, int) else "?"
    epochs = trainer.max_epochs or -1
    limits = [count_of(epochs, "epoch")] if epochs > 0 else []
    limits += [count_of(trainer.max_steps, "step")] if trainer.max_steps > 0 else []
    text = f"{' or '.join(limits) or 'no limit'}, {per_epoch} an epoch"
    if size is None:
        return text
    each = f" ({devices} devices, batch size {size} per device)" if devices > 1 else ""
    return f"{text}, steps of {size * devices * accumulated}{each}"


def _logged(trainer: Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def _cell(value: Any) -> str:
    """A value as a cell of a table in Markdown."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return "" if value is None else str(value).replace("|", "\\|")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    features = torch.cpu.get_capabilities()
    return str(features.get("cpu_name") or platform.processor() or platform.machine())


def _git(*arguments: str) -> str | None:
    """The output of a git command in the project; None without git or a repository."""
    try:
        folder = Path(__file__).resolve().parent
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
