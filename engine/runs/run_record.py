"""Records a run: its environment and metrics as files, and summaries at its start and end on the terminal."""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from engine.config.components import FOLDERS
from engine.config.signatures import PROJECT
from engine.contracts import listed
from engine.runs.resume import FREE_KEYS
from engine.runs.run_folder import write_json
from engine.runs.run_index import read_mapping
from engine.terminal import count_of, print_line, shell_word
from engine.training.clock import Clock
from engine.training.exits import REFUSED, RunEnded
from engine.training.hardware import device_name
from engine.training.loggers import log_everywhere, missing_displays, tensorboard_of

PACKAGES = ("lightning", "torch", "torchmetrics", "tensorboard", "omegaconf", "numpy", "transformers", "tokenizers")
# Facts that must be the same when a run is resumed -> how to fix a difference.
MUST_MATCH = {
    "data_sha256": "the data has changed since the run began; restore it, or start a new run",
    "threads": "the number of threads changes the order of sums; set OMP_NUM_THREADS={old}",
    "num_devices": "set trainer.devices={old}",
    "precision": "this device computes in another precision; use the earlier device, or start a new run",
    "teacher": "the checkpoint of model.teacher has changed; restore it, or start a new run",
}
# Facts whose changes are recorded when a run is resumed, because results may differ slightly.
MAY_DIFFER = ("code", "git_commit", "git_dirty", "python", "packages", "device", "pretrained")
TITLE_WIDTH = 13  # of the first column of the summaries


class RunRecord(Callback):
    """Writes ``environment.json`` when training starts, and ``metrics.json`` when `train.py` calls `finish`.

    Args:
        folder: Folder of the run.
        config_yaml: The resolved config, shown as text in TensorBoard.
        hyperparameters: The flat config, shown beside the final metrics under HPARAMS.
        varied: Hyperparameters whose columns come first under HPARAMS.
        is_resumed: Whether the run is resumed from a checkpoint.
        prints_start: Whether to print data, model, device and steps when training starts.
    """

    def __init__(
        self,
        folder: Path,
        config_yaml: str,
        hyperparameters: Mapping[str, Any],
        varied: Collection[str] = (),
        is_resumed: bool = False,
        prints_start: bool = True,
    ) -> None:
        self.folder, self.config_yaml, self.hyperparameters = folder, config_yaml, hyperparameters
        self.varied, self.is_resumed, self.prints_start, self.clock = varied, is_resumed, prints_start, Clock()
        self.metrics: dict[str, Any] = {}
        self.validation: dict[str, float] = {}  # metrics of the weights in memory, restored with a checkpoint
        self.epoch = 0
        self._started = 0.0  # time when training started in this process; 0 before it starts
        self._earlier_seconds = 0.0  # training time of earlier processes, if the run is resumed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_resumed:
            path = self.folder / "environment.json"
            old = read_mapping(path) or {}
            if not isinstance(old.get("code"), dict) or not isinstance(old.get("resumed", []), list):
                problem = f"{path} is missing or broken, so this environment cannot be compared with that of the run"
                raise RunEnded(f"error: --resume: {problem}", REFUSED)
            facts = self._compare(trainer, old, self._facts(trainer))
            if trainer.is_global_zero:
                self._write_start(facts)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            facts = self._facts(trainer)
            if not self.is_resumed:
                self._write_start(facts)
                if (logger := tensorboard_of(trainer)) is not None:
                    logger.write_start(self._texts(facts))
            if self.prints_start:
                print_line(start_summary(trainer, facts, self.hyperparameters))
                for line in missing_displays(trainer.loggers):
                    print_line(f"{'logger':<{TITLE_WIDTH}}{line}")
        self._started = time.monotonic()
        self.clock.train_start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.train_end()
        counts = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
        self.metrics |= {**counts, "train_seconds": round(self._all_seconds(), 3)}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":  # finish queued work, which belongs to the training
            torch.cuda.synchronize(pl_module.device)
        self.clock.begin("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.end("validation")
        if not trainer.sanity_checking:
            self.validation, self.epoch = _logged(trainer, "val/"), trainer.current_epoch + 1

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._started:  # the resumed run had no steps left
            self.clock.test_start()

    def state_dict(self) -> dict[str, Any]:
        progress = {"metrics": self.metrics, "seconds": self._all_seconds(), "config": self._fixed_config()}
        return {"validation": self.validation, "epoch": self.epoch, **progress}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        there, here = checkpoint["callbacks"][self.state_key]["config"], self._fixed_config()
        for key in sorted(there.keys() & here.keys()):  # options may have been added or removed since then
            if (old := there[key]) != (new := here[key]):
                problem = f"{trainer.ckpt_path} belongs to another run: {key} is {old} there and {new} here"
                raise RunEnded(f"error: {problem}", REFUSED)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validation, self.epoch = state_dict["validation"], state_dict["epoch"]
        if not self.metrics:  # loading the best checkpoint for the test must not replace them
            self.metrics, self._earlier_seconds = state_dict["metrics"], state_dict["seconds"]

    def _fixed_config(self) -> dict[str, Any]:
        """Return the keys of the config that cannot change when the run is resumed."""
        return {key: value for key, value in self.hyperparameters.items() if key not in FREE_KEYS}

    def finish(self, trainer: Trainer, tested: Path | None) -> None:
        """Write ``metrics.json`` and the entry under HPARAMS, and print a summary, in the first process only.

        Args:
            trainer: The trainer after the test.
            tested: The checkpoint that was tested; None for the last weights.
        """
        if not trainer.is_global_zero:
            return
        test = _logged(trainer, "test")
        best = str(tested.relative_to(self.folder)) if tested else None
        self.clock.test_end()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            self.metrics |= getattr(callback, "run_metrics", {})  # such as that of callbacks.throughput
        seconds = {name: round(value, 3) for name, value in self.clock.seconds.items()}
        self.metrics = {**test, **self.validation, **self.metrics, "seconds": seconds, "best_checkpoint": best}
        if best:
            self.metrics["best_epoch"] = self.epoch
        # the validation metrics of the tested weights, because the last epoch may have worse weights
        validation = {name.replace("val/", "tested/val_"): value for name, value in self.validation.items()}
        log_everywhere(trainer, validation)
        if (logger := tensorboard_of(trainer)) is not None:
            shown = [name for name in test if not name.startswith("test_class_accuracy/")]
            logger.write_hparams(self.hyperparameters, self.varied, [*shown, *validation])
        for each in trainer.loggers:
            each.save()
        write_json(self.folder / "metrics.json", self.metrics)  # the last file, because it marks the run as finished
        (self.folder / "checkpoints/previous.ckpt").unlink(missing_ok=True)  # a finished run is not resumed
        since = "since it was resumed: " if self.is_resumed else ""
        times = [f"{since}{line}" for line in self.clock.summary()]
        monitor = self.hyperparameters["run.monitor"]
        print_line(end_summary(self.metrics, monitor, times, self.folder, logger is not None))

    def earlier_threads(self) -> int | None:
        """Return the number of threads with which a resumed run began; None for a new run."""
        threads = (read_mapping(self.folder / "environment.json") or {}).get("threads") if self.is_resumed else None
        return threads if type(threads) is int else None  # `on_fit_start` reports a broken file

    def _facts(self, trainer: Trainer) -> dict[str, Any]:
        """Return the facts that affect a result besides the config."""
        device, (digests, commit, is_dirty) = trainer.strategy.root_device, code_state()
        return {
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "code": digests,
            "git_commit": commit,
            "git_dirty": is_dirty,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {package: found for package in PACKAGES if (found := _version(package))},
            "device": f"{device.type}: {device_name(device)}",
            "num_devices": trainer.world_size,
            "precision": str(trainer.precision),
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "data_sha256": getattr(trainer.datamodule, "fingerprint", ""),  # type: ignore[attr-defined]
            "pretrained": getattr(trainer.lightning_module, "pretrained_identity", None),
            "teacher": getattr(getattr(trainer.lightning_module, "teacher", None), "identity", None),
            "seed": self.hyperparameters["seed"],
        }

    def _write_start(self, facts: Mapping[str, Any]) -> None:
        write_json(self.folder / "environment.json", facts)  # marks that the run has started, or was resumed
        (self.folder / "status.json").unlink(missing_ok=True)  # of the process that was interrupted

    def _texts(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """Return config, command and environment in Markdown, for TensorBoard."""
        rows = "\n".join(
            f"| {name} | {_cell(value)} |" for name, value in facts.items() if name not in ("command", "code")
        )
        return {
            "run/config": f"```yaml\n{self.config_yaml}\n```",
            "run/command": f"```\n{facts['command']}\n```",
            "run/environment": f"| name | value |\n|---|---|\n{rows}",
        }

    def _all_seconds(self) -> float:
        return self._earlier_seconds + (time.monotonic() - self._started if self._started else 0.0)

    def _compare(self, trainer: Trainer, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        """Return the environment with a note about this resumption. Raises `RunEnded` if a fact of `MUST_MATCH` differs."""
        for name, hint in MUST_MATCH.items():
            if name == "threads" and not str(new["device"]).startswith("cpu"):
                continue
            if old.get(name) != new[name]:
                before, now = (str(facts.get(name))[:12] for facts in (old, new))
                problem = f"{name} was {before} and is {now}: {hint.format(old=before)}"
                raise RunEnded(f"error: --resume: {problem}", REFUSED)
        changed = [name for name in MAY_DIFFER if old.get(name) != new.get(name)]
        if changed and trainer.is_global_zero:
            files = sorted(file for file, _ in old["code"].items() ^ new["code"].items())
            shown = [f"code ({listed(list(dict.fromkeys(files)))})" if name == "code" else name for name in changed]
            print_line(f"resuming may not be exact: {', '.join(shown)} changed (environment.json)")
        note = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "after_seconds": round(self._earlier_seconds, 3)}
        note |= {"command": new["command"], **{name: new[name] for name in changed}}
        return {**old, "resumed": [*old.get("resumed", []), note]}


@cache
def code_state() -> tuple[dict[str, str], str | None, bool | None]:
    """Return `code_digests`, the commit of the project, and whether files have changed since.

    The result is that of the first call in this process, whose modules are in memory. New files count as changes, because a
    model may be new.
    """
    commit = _git("rev-parse", "HEAD")
    return code_digests(), commit, None if commit is None else bool(_git("status", "--porcelain"))


def code_digests() -> dict[str, str]:
    """Return the beginning of the SHA-256 of every Python file that a run may execute."""
    folders = ("engine", *(folder for folder, _ in FOLDERS.values()))
    files = (PROJECT / "train.py", *(file for folder in folders for file in (PROJECT / folder).rglob("*.py")))
    names = {str(file.relative_to(PROJECT)): file for file in files if file.is_file()}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for name, file in sorted(names.items())
        if not any(part.startswith(".") for part in Path(name).parts)
    }


def start_summary(trainer: Trainer, facts: Mapping[str, Any], hyperparameters: Mapping[str, Any]) -> str:
    """Return lines about data, model, device and steps, which are printed when training starts."""
    rows = {
        "data": f"{hyperparameters['data.name']}: {', '.join(_data_facts(trainer))}",
        "model": f"{hyperparameters['model.name']}: {_parameter_facts(trainer)}",
        "device": ", ".join(_device_facts(trainer, facts)),
        "steps": _step_facts(trainer),
    }
    return "\n".join(f"{title:<{TITLE_WIDTH}}{text}" for title, text in rows.items())


def end_summary(metrics: Mapping[str, Any], monitor: str, times: list[str], folder: Path, has_tensorboard: bool) -> str:
    """Return lines about the metrics of the tested checkpoint, the time and the files, which are printed at the end."""
    rows = []
    for title, stage in (("test", "test"), ("validation", "val")):
        values = {
            name: metrics.get(f"{stage}/{name}") for name in ("accuracy", "f1", "roc_auc", "average_precision", "loss")
        }
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)
        rows.append((title, shown or "not measured"))
    if (mirrored := metrics.get("test_mirrored/accuracy")) is not None:
        rows.append(("mirrored", f"accuracy {mirrored:.4f} for the mean prediction of an image and its mirror image"))
    if (before := metrics.get("test/uncalibrated_error")) is not None:
        after, temperature = metrics["test/calibration_error"], metrics["temperature"]
        text = f"test error {after:.4f}, {before:.4f} without temperature scaling (temperature {temperature:.3f})"
        rows.append(("calibration", text))
    if "best_epoch" in metrics:
        rows.append(("checkpoint", f"epoch {metrics['best_epoch']}, the best by {monitor}"))
    else:
        rows.append(("checkpoint", "there is no best checkpoint, so the last weights were tested"))
    counts = f"{count_of(metrics['epochs'], 'epoch')}, {count_of(metrics['steps'], 'step')}"
    rows.append(("trained", f"{counts} in {metrics['train_seconds']:.1f} s"))
    if "samples_per_second" in metrics:
        fraction = metrics.get("peak_share")
        reached = f", {fraction:.1%} of the speed of large matrix products" if fraction is not None else ""
        rows.append(("speed", f"{metrics['samples_per_second']:,.0f} samples/s{reached}"))
    rows += [("time", line) for line in times]
    rows += [("run folder", str(folder))]
    if has_tensorboard:
        rows += [("TensorBoard", f"tensorboard --logdir {shell_word(folder.parent.parent)}")]
    return "\n".join(f"{title:<{TITLE_WIDTH}}{text}" for title, text in rows)


def _data_facts(trainer: Trainer) -> Iterator[str]:
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    spec = datamodule.spec
    shape = "x".join(map(str, spec.input_shape))
    features = f"{shape} features" if spec.categories is None else count_of(len(spec.categories), "column")
    yield {"features": features, "image": f"images of {shape}", "tokens": "texts"}[spec.modality]
    yield f"{spec.num_classes} classes"
    if getattr(datamodule, "is_loaded", False):
        counts = [f"{datamodule.num_samples(split):,}" for split in ("train", "val", "test")]
        yield "{} for training, {} for validation, {} for the test".format(*counts)
    else:
        batches = trainer.num_training_batches
        number = f"{batches:,}" if isinstance(batches, int) else "an unknown number of"
        yield f"{number} training batches of its own DataLoaders, not normalized"


def _parameter_facts(trainer: Trainer) -> str:
    parameters = list(trainer.lightning_module.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return f"{total:,} parameters" + (f", {trained:,} of them trained" if trained < total else "")


def _device_facts(trainer: Trainer, facts: Mapping[str, Any]) -> Iterator[str]:
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    yield f"{count}{facts['device']}"
    if str(facts["device"]).startswith("cpu"):
        yield count_of(facts["threads"], "thread")
    yield str(facts["precision"])


def _step_facts(trainer: Trainer) -> str:
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    batches, sampler = trainer.num_training_batches, getattr(trainer.train_dataloader, "batch_sampler", None)
    size = getattr(sampler, "batch_size", None)  # own DataLoaders need not use `data.batch_size`
    epochs = trainer.max_epochs or -1
    limits = [count_of(epochs, "epoch")] if epochs > 0 else []
    limits += [count_of(trainer.max_steps, "step")] if trainer.max_steps > 0 else []
    per_epoch = f"{-(-batches // accumulated):,}" if isinstance(batches, int) else "?"
    text = f"{' or '.join(limits) or 'no limit'}, {per_epoch} steps per epoch"
    if size is None:
        return text
    per_device = f" ({devices} devices, batch size {size} per device)" if devices > 1 else ""
    return f"{text}, {count_of(size * devices * accumulated, 'sample')} per step{per_device}"


def _logged(trainer: Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def _cell(value: Any) -> str:
    """Return a value as a cell of a table in Markdown."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return "" if value is None else str(value).replace("|", "\\|")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Return the output of a git command in the project; None without git or a repository."""
    try:
        output = subprocess.check_output(
            ["git", *arguments], cwd=PROJECT, stderr=subprocess.DEVNULL, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return output.strip()
