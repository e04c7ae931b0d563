"""What a run leaves for people and programs: config, environment, figures, hyperparameters in TensorBoard."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

PACKAGES = ("lightning", "torch", "torchmetrics", "tensorboard", "omegaconf", "numpy", "transformers", "tokenizers")


class RunLogger(TensorBoardLogger):
    """TensorBoard's event file in the run's folder, and no other file beside it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder.parent), name="", version=folder.name, default_hp_metric=False)

    def save(self) -> None:
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Keep the file open: the test writes to it after the training."""
        self.experiment.flush()


class RunRecord(Callback):
    """Writes ``environment.json`` when training starts and, when `train.py` says so, ``metrics.json``.

    Args:
        folder: Of the run.
        config_yaml: The resolved config, shown as text in TensorBoard.
        hyperparameters: The flat config, shown beside the final metrics under HPARAMS.
    """

    def __init__(self, folder: Path, config_yaml: str, hyperparameters: Mapping[str, Any]) -> None:
        self.folder, self.config_yaml, self.hyperparameters = folder, config_yaml, hyperparameters
        self.figures: dict[str, Any] = {}
        # of the weights in memory; a checkpoint brings back its own
        self.validation: dict[str, float] = {}
        self.epoch = 0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            facts = environment(pl_module.device, trainer.precision, trainer.world_size)
            facts["data_sha256"] = getattr(trainer.datamodule, "fingerprint", "")  # type: ignore[attr-defined]
            facts["pretrained"] = getattr(pl_module, "pretrained_identity", None)
            facts["seed"] = self.hyperparameters["seed"]
            write_json(self.folder / "environment.json", facts)
            if isinstance(trainer.logger, TensorBoardLogger):
                trainer.logger.experiment.add_text("config", f"```yaml\n{self.config_yaml}\n```")
        self._started, self._samples = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(batch[1])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.monotonic() - self._started
        self.figures |= {
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "train_seconds": round(seconds, 3),
            "samples_per_second": round(self._samples * trainer.world_size / seconds, 1),
        }

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validation, self.epoch = _values(trainer, "val/"), trainer.current_epoch + 1

    def state_dict(self) -> dict[str, Any]:
        return {"validation": self.validation, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validation, self.epoch = state_dict["validation"], state_dict["epoch"]

    def finish(self, trainer: Trainer, tested: Path | None) -> None:
        """Write ``metrics.json`` and the entry under HPARAMS.

        Args:
            trainer: After its test.
            tested: The checkpoint that was tested; null for the last weights.
        """
        test = _values(trainer, "test")
        best = str(tested.relative_to(self.folder)) if tested else None
        self.figures = {**test, **self.validation, **self.figures, "best_checkpoint": best}
        if best:
            self.figures["best_epoch"] = self.epoch
        write_json(self.folder / "metrics.json", self.figures)
        if isinstance(trainer.logger, TensorBoardLogger):
            self._hparams(trainer.logger, test)

    def report(self) -> str:
        """What a person wants to know at the end."""
        figures, rows = self.figures, []
        for title, stage in (("test", "test"), ("validation", "val")):
            values = {name: figures.get(f"{stage}/{name}") for name in ("accuracy", "f1", "loss")}
            shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)
            rows.append(f"{title:<12} {shown or 'not measured'}")
        if "best_epoch" in figures:
            rows.append(
                f"checkpoint   epoch {figures['best_epoch']}, the best by {self.hyperparameters['run.monitor']}"
            )
        steps = f"{figures['epochs']} epochs, {figures['steps']} steps in {figures['train_seconds']:.1f} s"
        rows += [f"trained      {steps}", f"run folder   {self.folder}"]
        return "\n".join([*rows, f"TensorBoard  tensorboard --logdir {self.folder.parent.parent}"])

    def _hparams(self, logger: TensorBoardLogger, test: Mapping[str, float]) -> None:
        """The entry under HPARAMS: TensorBoard takes the figures from the scalars of these names."""
        from torch.utils.tensorboard.summary import hparams

        writer = logger.experiment
        best = {name.replace("val/", "val_best/"): value for name, value in self.validation.items()}
        for name, value in best.items():
            writer.add_scalar(name, value, self.figures["steps"])
        shown = {name: value for name, value in test.items() if name.startswith("test/")} | best
        for summary in hparams(dict(self.hyperparameters), shown):
            writer.file_writer.add_summary(summary)
        writer.flush()


def _values(trainer: Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def environment(device: torch.device, precision: str, world_size: int) -> dict[str, Any]:
    """What else than the config decided the result."""
    commit = _git("rev-parse", "HEAD")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": commit,
        "git_dirty": commit and bool(_git("status", "--porcelain")),  # new files count: a model may be one
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: found for package in PACKAGES if (found := _version(package))},
        "device": f"{device.type}: {name}",
        "num_devices": world_size,
        "precision": precision,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    features = torch.cpu.get_capabilities()
    return str(features.get("cpu_name") or platform.processor() or platform.machine())


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that `path` is never half there."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _git(*arguments: str) -> str | None:
    """The output of a git command in the project, or null where there is no git or no repository."""
    try:
        folder = Path(__file__).resolve().parent
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
