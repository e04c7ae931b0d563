"""A run in TensorBoard: where each metric lies there, and what stands beside the curves.

TensorBoard puts lines into one chart that have one tag in several of its runs. So validation and test are runs of their own
below the run of the training (``NAME``, ``NAME/val``, ``NAME/test``), and `val/loss` is `metrics/loss` in the second.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto import event_pb2
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from callbacks.clock import Clock

STAGES = {"train": "", "val": "val", "test": "test"}  # of a metric's name -> the folder of its event file
# sections of TensorBoard's page, for what is no measure of quality
SECTIONS = {
    "epoch": "training", "gradient_norm": "training", "loss_step": "training", "lr": "training",
    "memory_gigabytes": "speed", "padding_share": "speed", "peak_share": "speed", "samples_per_second": "speed",
}  # fmt: skip
EVENTS = ("events.out.tfevents.*", "*/events.out.tfevents.*")
# what the tab of custom scalars opens on
LAYOUT = {
    "does it learn, does it overfit": {
        "loss": ["Multiline", ["^metrics/loss$"]],
        "accuracy": ["Multiline", ["^metrics/accuracy$"]],
        "macro F1": ["Multiline", ["^metrics/f1$"]],
        "calibration error": ["Multiline", ["^metrics/calibration_error$"]],
    },
    "is the optimizer at ease": {
        "loss of single batches": ["Multiline", ["^training/loss_step$"]],
        "norm of the gradient": ["Multiline", ["^training/gradient_norm$"]],
        "learning rate": ["Multiline", ["^training/lr$"]],
    },
}


class RunLogger(TensorBoardLogger):
    """TensorBoard's event files in the run's folder, and no other files beside them.

    Args:
        folder: Of the run.
        clock: That counts what logging takes.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(str(folder.parent), name="", version=folder.name, default_hp_metric=False)
        self.folder, self.clock = folder, clock
        self._writers: dict[str, SummaryWriter] = {}

    def writer(self, stage: str) -> SummaryWriter:
        """Of the stage `train`, `val` or `test`; in the first process alone."""
        name = STAGES[stage]
        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self.folder / name)) if name else self.experiment
        return self._writers[name]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.clock.part("logging"):
            for name, value in metrics.items():
                stage, tag = place(name)
                self.writer(stage).add_scalar(tag, value, step)

    def save(self) -> None:
        with self.clock.part("logging"):
            for writer in (self.experiment, *self._writers.values()):
                writer.flush()

    def finalize(self, status: str) -> None:
        """Keep the files open: the test writes to them after the training."""
        self.save()

    def begin(self, texts: Mapping[str, str]) -> None:
        """What is known of a new run: texts in Markdown, and the layout of the custom scalars."""
        for name, text in texts.items():
            self.experiment.add_text(name, text)
        self.experiment.add_custom_scalars(LAYOUT)

    def start_again(self, step: int) -> None:
        """Tell a TensorBoard that has read this run that what came after `step` will come again."""
        for stage in ("train", "val"):
            start = event_pb2.Event(session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
            self.writer(stage)._get_file_writer().add_event(start, step)

    def end(self, hyperparameters: Mapping[str, Any], varied: Collection[str], metrics: Iterable[str]) -> None:
        """The entry under HPARAMS, where TensorBoard shows the last value of each metric.

        Args:
            hyperparameters: Scalars.
            varied: Those whose columns come first; TensorBoard shows five without being asked.
            metrics: Names of some that have been logged, as in ``test/accuracy``.
        """
        experiment, *session = hparams(dict(hyperparameters), {})
        content = experiment.value[0].metadata.plugin_data
        plugin = hparams_plugin(content.content)
        for info in plugin.experiment.hparam_infos:
            info.differs = info.name in varied  # TensorBoard sorts by that, and by name
        for name in metrics:
            stage, tag = place(name)
            column = plugin.experiment.metric_infos.add(display_name=name)
            column.name.group, column.name.tag = STAGES[stage], tag
        content.content = plugin.SerializeToString()
        for summary in (experiment, *session):
            self.experiment.file_writer.add_summary(summary)
        self.save()


def hparams_plugin(content: bytes) -> Any:
    """What TensorBoard's plugin for hyperparameters has written."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    return HParamsPluginData.FromString(content)


def place(name: str) -> tuple[str, str]:
    """Stage and tag of a metric: `val/loss` is `metrics/loss` of the validation."""
    stage, slash, rest = name.partition("/")
    if not slash or stage not in STAGES:
        return "train", f"{SECTIONS[name]}/{name}" if name in SECTIONS else name
    return stage, f"{SECTIONS.get(rest, 'metrics')}/{rest}"


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files of a run."""
    return sorted(path for pattern in EVENTS for path in folder.glob(pattern))
