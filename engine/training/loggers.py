"""The loggers of a run: TensorBoard, a CSV file, Weights & Biases.

Learning curves go to every logger of the run, pictures to every logger that takes images.

TensorBoard draws curves with the same tag in one chart if they belong to different runs. So the validation and the test are
runs of their own in subfolders (``NAME``, ``NAME/val``, ``NAME/test``), and `val/loss` is `metrics/loss` of ``NAME/val``.
"""

import csv
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto import event_pb2

from engine.training.clock import Clock

if TYPE_CHECKING:  # its import takes 0.25 s, which predictions do not need
    from torch.utils.tensorboard import SummaryWriter

STAGES = {"train": "", "val": "val", "test": "test"}  # first part of a metric's name -> folder of its event file
# sections of TensorBoard's page for metrics that do not measure quality
SECTIONS = {
    "epoch": "training", "gradient_norm": "training", "loss_step": "training", "lr": "training",
    "memory_gigabytes": "speed", "padding_share": "speed", "peak_share": "speed", "samples_per_second": "speed",
}  # fmt: skip
EVENT_FILES = ("events.out.tfevents.*", "*/events.out.tfevents.*")
EVENT_FILE = re.compile(r"(events\.out\.tfevents)\.(\d+)(\..*)")  # the second group is the time in seconds
CSV_FILE = "csv/metrics.csv"
# the charts of CUSTOM SCALARS
LAYOUT = {
    "learning and overfitting": {
        "loss": ["Multiline", ["^metrics/loss$"]],
        "accuracy": ["Multiline", ["^metrics/accuracy$"]],
        "macro F1": ["Multiline", ["^metrics/f1$"]],
        "calibration error": ["Multiline", ["^metrics/calibration_error$"]],
    },
    "optimization": {
        "loss of single batches": ["Multiline", ["^training/loss_step$"]],
        "gradient norm": ["Multiline", ["^training/gradient_norm$"]],
        "learning rate": ["Multiline", ["^training/lr$"]],
    },
}


class RunLogger(TensorBoardLogger):
    """Writes TensorBoard's event files into the run's folder, and no other files.

    Args:
        folder: Folder of the run.
        clock: Measures the time that logging takes.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(str(folder.parent), name="", version=folder.name, default_hp_metric=False)
        self.folder, self.clock = folder, clock
        self._writers: dict[str, SummaryWriter] = {}

    def writer(self, stage: str) -> "SummaryWriter":
        """The writer of the stage `train`, `val` or `test`, in the first process only."""
        from torch.utils.tensorboard import SummaryWriter

        name = STAGES[stage]
        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self.folder / name)) if name else self.experiment
            _rename_after_others(self._writers[name])
        return self._writers[name]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.clock.measure("logging"):
            for name, value in metrics.items():
                stage, tag = stage_and_tag(name)
                self.writer(stage).add_scalar(tag, value, step)

    def save(self) -> None:
        with self.clock.measure("logging"):
            for writer in self._writers.values():
                writer.flush()

    def finalize(self, status: str) -> None:
        """Keep the files open, because the test writes to them after the training."""
        self.save()

    def write_start(self, texts: Mapping[str, str]) -> None:
        """Write texts in Markdown about a new run, and the layout of CUSTOM SCALARS."""
        writer = self.writer("train")
        for name, text in texts.items():
            writer.add_text(name, text)
        writer.add_custom_scalars(LAYOUT)

    def restart_at(self, step: int) -> None:
        """Make a TensorBoard that has read this run discard the points after `step`."""
        for stage in ("train", "val"):
            start = event_pb2.Event(session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
            file_writer: Any = self.writer(stage).file_writer
            file_writer.add_event(start, step)

    def write_hparams(
        self, hyperparameters: Mapping[str, Any], varied: Collection[str], metrics: Iterable[str]
    ) -> None:
        """Write the entry under HPARAMS, where TensorBoard shows the last value of each metric.

        Args:
            hyperparameters: Names and scalars.
            varied: Hyperparameters whose columns come first. TensorBoard shows five columns at first.
            metrics: Names of metrics that were logged, such as ``test/accuracy``.
        """
        from torch.utils.tensorboard.summary import hparams

        experiment, *session = hparams(dict(hyperparameters), {})
        content = experiment.value[0].metadata.plugin_data
        plugin = hparams_plugin(content.content)
        for info in plugin.experiment.hparam_infos:
            info.differs = info.name in varied  # TensorBoard sorts by this and by name
        for name in metrics:
            stage, tag = stage_and_tag(name)
            column = plugin.experiment.metric_infos.add(display_name=name)
            column.name.group, column.name.tag = STAGES[stage], tag
        content.content = plugin.SerializeToString()
        file_writer: Any = self.writer("train").file_writer
        for summary in (experiment, *session):
            file_writer.add_summary(summary)
        self.save()


def _rename_after_others(writer: Any) -> None:
    """Rename the file of a writer so that its name sorts after those of the other event files in its folder.

    TensorBoard reads the files in the order of their names. The names begin with the time, and the clock may have been set
    back.
    """
    events = writer.file_writer.event_writer
    path = Path(events._file_name)
    later = [
        match for file in path.parent.iterdir() if file.name > path.name and (match := EVENT_FILE.fullmatch(file.name))
    ]
    if later:
        seconds = max(int(match[2]) for match in later) + 1
        renamed = path.with_name(EVENT_FILE.sub(rf"\g<1>.{seconds:010d}\g<3>", path.name))
        events.flush()
        path.rename(renamed)
        events._file_name, events._general_file_writer.filename = str(renamed), os.fsencode(renamed)


class CsvLogger(Logger):
    """Writes every value as a row of ``csv/metrics.csv`` in the run's folder: step, metric, value.

    Lightning's CSVLogger has a column for each metric. It rewrites the file when a metric is new, and deletes the file when
    a run is resumed. Here rows are only appended, so the file can be cut to its size at a checkpoint.

    Args:
        folder: Folder of the run.
        clock: Measures the time that logging takes.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__()
        self.path, self.clock = folder / CSV_FILE, clock

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.clock.measure("logging"):
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("a", encoding="utf-8", newline="") as file:
                rows = csv.writer(file, lineterminator="\n")
                if file.tell() == 0:
                    rows.writerow(("step", "metric", "value"))
                rows.writerows((step, name, float(value)) for name, value in metrics.items())


class PictureWriter:
    """Writes the pictures, texts and scalars of a callback to the loggers of the run.

    Scalars go to every logger. Images and texts go to every logger that takes them (methods `log_image` and `log_text`).
    Every other method is TensorBoard's `SummaryWriter` method, and needs TensorBoard.

    Args:
        trainer: Trainer of the run.
        stage: Stage that the pictures belong to: ``train``, ``val`` or ``test``.
    """

    def __init__(self, trainer: Trainer, stage: str) -> None:
        self._stage, self._global_step = stage, trainer.global_step
        logger = tensorboard_of(trainer)
        self._tensorboard = None if logger is None else logger.writer(stage)
        self._others = [other for other in trainer.loggers if not isinstance(other, RunLogger)]

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        step = self._global_step if step is None else step
        if self._tensorboard is not None:
            self._tensorboard.add_scalar(tag, value, step)
        for logger in self._others:
            logger.log_metrics({f"{self._stage}/{tag}": float(value)}, step)

    def add_image(self, tag: str, picture: Any, step: int | None = None, dataformats: str = "CHW") -> None:
        """Write a picture of uint8, or of floats from 0 to 1. `dataformats` is ``CHW`` or ``HWC``."""
        step = self._global_step if step is None else step
        if self._tensorboard is not None:
            self._tensorboard.add_image(tag, picture, step, dataformats=dataformats)
        for logger in filter(takes_pictures, self._others):
            pixels = np.asarray(picture)
            pixels = pixels if dataformats == "HWC" else pixels.transpose(1, 2, 0)
            pixels = pixels if pixels.dtype == np.uint8 else (255 * pixels.clip(0, 1)).round().astype(np.uint8)
            logger.log_image(f"{self._stage}/{tag}", [pixels], step)  # type: ignore[attr-defined]

    def add_text(self, tag: str, text: str, step: int | None = None) -> None:
        """Write a text in Markdown."""
        step = self._global_step if step is None else step
        if self._tensorboard is not None:
            self._tensorboard.add_text(tag, text, step)
        for logger in self._others:
            if hasattr(logger, "log_text"):
                logger.log_text(f"{self._stage}/{tag}", columns=["text"], data=[[text]], step=step)

    def __getattr__(self, name: str) -> Any:
        if self._tensorboard is None:
            raise AttributeError(f"{name} needs TensorBoard: trainer.logger=tensorboard")
        return getattr(self._tensorboard, name)


def make_loggers(names: Iterable[str], folder: Path, clock: Clock, options: Mapping[str, Any]) -> list[Logger]:
    """Create the loggers of a run.

    Args:
        names: Some of ``tensorboard``, ``csv`` and ``wandb``.
        folder: Folder of the run.
        clock: Measures the time that logging takes.
        options: The flat config, which Weights & Biases shows beside the curves.
    """
    makers = {
        "tensorboard": lambda: RunLogger(folder, clock),
        "csv": lambda: CsvLogger(folder, clock),
        "wandb": lambda: _wandb_logger(folder, options),
    }
    return [makers[name]() for name in names]


def _without_writer_threads(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that prints nothing for TensorBoard's writer threads, because `RunLogger.save` raises their errors again."""

    def print_others(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            hook(arguments)

    return print_others


threading.excepthook = _without_writer_threads(threading.excepthook)  # at import, so that it runs once per process


def _wandb_logger(folder: Path, options: Mapping[str, Any]) -> Logger:
    """Lightning's logger for Weights & Biases. A resumed run continues its run there.

    Points that were logged after the checkpoint cannot be removed there, so they appear twice.
    """
    from lightning.pytorch.loggers import WandbLogger

    earlier = sorted(folder.glob("wandb/*run-*-*"))  # (offline-)run-TIME-ID
    return WandbLogger(
        name=folder.name,
        project=os.environ.get("WANDB_PROJECT", folder.parent.name),
        save_dir=folder,
        id=earlier[-1].name.rpartition("-")[2] if earlier else None,
        config=dict(options),
        reinit="create_new",  # several runs in one process do not share a run there
    )


def tensorboard_of(trainer: Trainer) -> RunLogger | None:
    """The run's logger for TensorBoard, if it has one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, RunLogger)), None)


def takes_pictures(logger: Logger) -> bool:
    return isinstance(logger, RunLogger) or hasattr(logger, "log_image")


def missing_displays(loggers: Sequence[Logger]) -> list[str]:
    """What the loggers of a run cannot show, in lines for the user."""
    lines = [
        f"{type(logger).__name__} takes curves, but no pictures" for logger in loggers if not takes_pictures(logger)
    ]
    if loggers and not any(isinstance(logger, RunLogger) for logger in loggers):
        lines.append("histograms, PR curves, the graph and the projector need trainer.logger=tensorboard")
    return lines


def log_everywhere(trainer: Trainer, metrics: Mapping[str, float], step: int | None = None) -> None:
    """Write metrics to every logger, at once."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step if step is None else step)


def hparams_plugin(content: bytes) -> Any:
    """The content of TensorBoard's plugin for hyperparameters."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    return HParamsPluginData.FromString(content)


def stage_and_tag(name: str) -> tuple[str, str]:
    """Stage and tag of a metric in TensorBoard: `val/loss` is `metrics/loss` of the validation."""
    stage, slash, rest = name.partition("/")
    if not slash or stage not in STAGES:
        return "train", f"{SECTIONS[name]}/{name}" if name in SECTIONS else name
    return stage, f"{SECTIONS.get(rest, 'metrics')}/{rest}"


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files of a run."""
    return sorted(path for pattern in EVENT_FILES for path in folder.glob(pattern))


def log_files(folder: Path) -> list[Path]:
    """The files of a run that loggers append to."""
    return [*event_files(folder), *folder.glob(CSV_FILE)]
