"""What a run leaves for people and programs: config, environment, figures, hyperparameters in TensorBoard."""

import json
import os
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.clock import Clock
from callbacks.endings import REFUSED, RunEnded, say
from callbacks.environment import changed, environment, noted
from callbacks.progress_line import ProgressLine
from callbacks.report import closing, opening
from callbacks.run_logger import RunLogger
from callbacks.throughput import Throughput


class RunRecord(Callback):
    """Writes ``environment.json`` when training starts and, when `train.py` says so, ``metrics.json``.

    Args:
        folder: Of the run.
        config_yaml: The resolved config, shown as text in TensorBoard.
        hyperparameters: The flat config, shown beside the final metrics under HPARAMS.
        varied: Keys of it that come first there.
        resumes: Whether the run goes on from a checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        config_yaml: str,
        hyperparameters: Mapping[str, Any],
        varied: Collection[str] = (),
        resumes: bool = False,
    ) -> None:
        self.folder, self.config_yaml, self.hyperparameters = folder, config_yaml, hyperparameters
        self.varied, self.resumes, self.clock = varied, resumes, Clock()
        self.figures: dict[str, Any] = {}
        # of the weights in memory; a checkpoint brings back its own
        self.validation: dict[str, float] = {}
        self.epoch = 0
        self._started, self._seconds = 0.0, 0.0  # of this process, of earlier ones

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resumes:
            path = self.folder / "environment.json"
            try:
                there = dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                problem = f"{path} is missing or broken: nothing tells whether this run can go on here"
                raise RunEnded(f"error: --resume: {problem}", REFUSED) from None
            facts = self._compared(trainer, there, self._facts(trainer))
            if trainer.is_global_zero:
                self._begin(facts)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            facts = self._facts(trainer)
            if not self.resumes:
                self._begin(facts)
                if isinstance(trainer.logger, RunLogger):
                    trainer.logger.begin(self._texts(facts))
            if any(isinstance(one, ProgressLine) for one in trainer.callbacks):  # type: ignore[attr-defined]
                say(opening(trainer, facts, self.hyperparameters))
        self._started = time.monotonic()
        self.clock.train_start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.train_end()
        counts = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
        self.figures |= {**counts, "train_seconds": round(self._all_seconds(), 3)}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":  # what is queued there is training
            torch.cuda.synchronize(pl_module.device)
        self.clock.begin("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.end("validation")
        if not trainer.sanity_checking:
            self.validation, self.epoch = _values(trainer, "val/"), trainer.current_epoch + 1

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._started:  # nothing was left to train
            self.clock.test_start()

    def state_dict(self) -> dict[str, Any]:
        progress = {"figures": self.figures, "seconds": self._all_seconds()}
        return {"validation": self.validation, "epoch": self.epoch, **progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validation, self.epoch = state_dict["validation"], state_dict["epoch"]
        if not self.figures:  # not those of the checkpoint that is tested in the end
            self.figures, self._seconds = state_dict["figures"], state_dict["seconds"]

    def _facts(self, trainer: Trainer) -> dict[str, Any]:
        facts = environment(trainer.strategy.root_device, str(trainer.precision), trainer.world_size)
        facts["data_sha256"] = getattr(trainer.datamodule, "fingerprint", "")  # type: ignore[attr-defined]
        facts["pretrained"] = getattr(trainer.lightning_module, "pretrained_identity", None)
        facts["seed"] = self.hyperparameters["seed"]
        return facts

    def _begin(self, facts: Mapping[str, Any]) -> None:
        write_json(self.folder / "environment.json", facts)  # with it a run, or its resumption, has begun
        (self.folder / "status.json").unlink(missing_ok=True)  # of an earlier end

    def _texts(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """Of the run, in Markdown."""
        rows = "\n".join(f"| {name} | {_told(value)} |" for name, value in facts.items() if name != "command")
        return {
            "run/config": f"```yaml\n{self.config_yaml}\n```",
            "run/command": f"```\n{facts['command']}\n```",
            "run/environment": f"| what | here |\n|---|---|\n{rows}",
        }

    def _all_seconds(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started else 0.0)

    def _compared(self, trainer: Trainer, there: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
        """The environment of before, with a note of this resumption."""
        if problem := changed(there, here):
            raise RunEnded(f"error: --resume: {problem}", REFUSED)
        others = noted(there, here)
        if others and trainer.is_global_zero:
            say(f"resumed, perhaps not to the bit: {', '.join(others)} changed (environment.json)")
        note = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "after_seconds": round(self._seconds, 3)}
        note |= {"command": here["command"], **{name: here[name] for name in others}}
        return {**there, "resumed": [*there.get("resumed", []), note]}

    def finish(self, trainer: Trainer, tested: Path | None) -> None:
        """Write ``metrics.json`` and the entry under HPARAMS, and say what came of the run; in the first process alone.

        Args:
            trainer: After its test.
            tested: The checkpoint that was tested; null for the last weights.
        """
        if not trainer.is_global_zero:
            return
        test = _values(trainer, "test")
        best = str(tested.relative_to(self.folder)) if tested else None
        self.clock.test_end()
        for one in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(one, Throughput):
                self.figures |= one.figures
        seconds = {name: round(value, 3) for name, value in self.clock.seconds.items()}
        self.figures = {**test, **self.validation, **self.figures, "seconds": seconds, "best_checkpoint": best}
        if best:
            self.figures["best_epoch"] = self.epoch
        if isinstance(trainer.logger, RunLogger):
            chosen = {name.replace("val/", "tested/val_"): value for name, value in self.validation.items()}
            trainer.logger.log_metrics(chosen, self.figures["steps"])  # the last ones may be of worse weights
            shown = {name: value for name, value in test.items() if not name.startswith("test_class_accuracy/")}
            trainer.logger.end(self.hyperparameters, self.varied, [*shown, *chosen])
        write_json(self.folder / "metrics.json", self.figures)  # last of all: with it the run is finished
        since = "since it went on: " if self.resumes else ""
        times = [f"{since}{line}" for line in self.clock.verdict()]
        logs = isinstance(trainer.logger, RunLogger)
        say(closing(self.figures, self.hyperparameters["run.monitor"], times, self.folder, logs))


def _values(trainer: Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return "" if value is None else str(value).replace("|", "\\|")


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that `path` is never half there."""
    temporary = path.with_suffix(".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
