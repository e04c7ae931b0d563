"""Predicts the classes of new data with the model of a run."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.build import component_class, make
from engine.contracts import COMMAND_LINE, ConfigError, DataError, DataSpec, InputPart, NewInputs, map_tensors, one_line
from engine.inference.trained_run import TrainedRun, find_trained_run
from engine.training.hardware import choose_precision

if TYPE_CHECKING:
    from engine.inference.explanations import Explanation

MAX_ROWS, MAX_VALUES = 4096, 2**18  # in a batch of features, unless `data.eval_batch_size` is larger

# n rows, K classes


@dataclass(frozen=True)
class Predictions:
    """The predictions for some rows, in the order of the data.

    Attributes:
        names: Name of each row: its number, counted from 1, or its file.
        class_names: K names.
        probabilities: (n, K) of float32.
        problems: Why a row could not be read, by its index. The probabilities of such a row are NaN.
        explanations: The explanation of each row, None if it could not be read; () if they were not computed.
    """

    names: Sequence[Any]
    class_names: Sequence[str]
    probabilities: np.ndarray
    problems: dict[int, str]
    explanations: "Sequence[Explanation | None]" = ()

    def __len__(self) -> int:
        return len(self.probabilities)

    def __getitem__(self, rows: slice) -> "Predictions":
        start, stop, _ = rows.indices(len(self))
        problems = {row - start: problem for row, problem in self.problems.items() if start <= row < stop}
        return Predictions(self.names[rows], self.class_names, self.probabilities[rows], problems)

    @property
    def classes(self) -> list[str]:
        """The name of the most probable class of each row; "" for a row that could not be read."""
        best = self.probabilities.argmax(1).tolist()
        return ["" if row in self.problems else self.class_names[number] for row, number in enumerate(best)]


class Predictor:
    """The model of a run, with the code that reads its data.

    Args:
        run: The run.
        device: Such as cpu or cuda; auto for a GPU if there is one.
    """

    def __init__(self, run: TrainedRun, device: str = "auto") -> None:
        config, self.run = run.config, run
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
            if self.device.type == "xla":
                raise RuntimeError("predictions on TPUs are not supported; evaluate.py supports them")
        except (RuntimeError, AssertionError) as error:
            problem = f"{device} is not a device of this machine ({one_line(error)[:80]})"
            raise ConfigError(COMMAND_LINE, "--device", problem) from None
        self.model = component_class(config, "model").load_from_checkpoint(run.checkpoint, "cpu")
        self.precision = choose_precision(self.device.type, config["trainer.precision"])
        kinds = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
        self.model.to(kinds.get(self.precision, torch.float32))
        self.model.eval().requires_grad_(False).to(self.device)
        self.datamodule = make(config, "data", seed=config["seed"])
        self.spec = DataSpec.from_arguments(self.datamodule.modality, self.model.hparams)
        self.batch_size = self.datamodule.eval_batch_size
        if self.spec.modality == "features":  # small rows are up to twice as fast in larger batches
            self.batch_size = max(self.batch_size, min(MAX_ROWS, MAX_VALUES // math.prod(self.spec.input_shape)))

    @property
    def class_names(self) -> list[str]:
        """K names."""
        return list(self.model.class_names)

    @property
    def feature_names(self) -> list[str]:
        """D names of the features. They are numbered if they have no names."""
        names = self.spec.feature_names or getattr(self.datamodule.spec, "feature_names", ())
        return list(names or (f"feature_{number}" for number in range(1, math.prod(self.spec.input_shape) + 1)))

    def predict(self, data: Any, skip_broken: bool = False) -> Predictions:
        """Predict the classes of data that fits in memory.

        Args:
            data: What the datamodule of the run takes: the path of a file or folder, an array or tensor (N, *input_shape),
                a list of texts or of pairs of texts, a list of paths or of the bytes of pictures, or a table (a list of
                dictionaries, a dictionary of columns, or a DataFrame).
            skip_broken: Return an empty class and NaN for a sample that cannot be read, and the reason in `problems`.

        Raises:
            DataError: if the data or, without `skip_broken`, a sample cannot be read.
        """
        found = []
        for part in self.predict_parts(self.open(data)):
            if part.problems and not skip_broken:
                row, problem = next(iter(part.problems.items()))
                raise DataError(f"INPUT: {part.names[row]}: {problem}; skip_broken=True leaves its class empty")
            found.append(part)
        names = [name for part in found for name in part.names]
        problems: dict[int, str] = {}
        start = 0
        for part in found:
            problems |= {start + row: problem for row, problem in part.problems.items()}
            start += len(part)
        empty = np.empty((0, len(self.class_names)), np.float32)
        probabilities = np.concatenate([empty, *(part.probabilities for part in found)])
        return Predictions(names, self.class_names, probabilities, problems)

    def open(self, data: Any, with_labels: bool = False) -> NewInputs:
        """Return the inputs in a file or in values, for `predict_parts`."""
        if isinstance(data, str | Path):
            return self.datamodule.read_inputs(Path(data).expanduser(), self.spec, self.run.folder, with_labels)
        return self.datamodule.take_inputs(data, self.spec, self.run.folder)

    def predict_parts(self, inputs: NewInputs) -> Iterator[Predictions]:
        """Predict part after part, so that the data may be larger than memory."""
        return map(self.predict_part, inputs.parts)

    def predict_part(self, part: InputPart) -> Predictions:
        """Predict the rows of a part."""
        probabilities = self.logits(part.inputs).softmax(1).float().numpy()
        probabilities[list(part.problems)] = np.nan
        return Predictions(part.names, self.class_names, probabilities, part.problems)

    @torch.inference_mode()
    def logits(self, inputs: Any) -> Tensor:
        """Return logits (n, K) of inputs (n, *input_shape) or of n token rows, in float32 or a wider type, on the CPU."""
        kind = torch.float64 if self.precision == "64-true" else torch.float32
        logits = torch.empty(len(inputs), len(self.class_names), dtype=kind)
        with self.autocast():
            for indices in self.datamodule.order(inputs, self.batch_size, False, 0, 1):
                logits[indices] = self._batch_logits(inputs[indices])
        return logits

    @torch.inference_mode()
    def validate(self) -> tuple[np.ndarray, np.ndarray]:
        """Predict the validation set of the run. Returns probabilities (n, K) and labels (n,).

        Raises:
            DataError: if the training data of the run cannot be read.
        """
        self.datamodule.prepare_data()
        self.datamodule.setup()
        with self.autocast():
            batches = [(self._batch_logits(inputs), labels) for inputs, labels in self.datamodule.val_dataloader()]
        logits, labels = (torch.cat(values) for values in zip(*batches, strict=True))
        return logits.softmax(1).float().numpy(), labels.numpy()

    @torch.inference_mode()
    def features(self, inputs: Any) -> Tensor | None:
        """Return the inputs (B, F) of the last linear layer, in float32, on the CPU; None if the model has no such layer.

        Args:
            inputs: A batch, such as ``part.inputs[indices]``.
        """
        with self.autocast():
            features = self.model.features(self.to_device(inputs))
        return None if features is None else features.float().cpu()

    def to_device(self, inputs: Any) -> Any:
        """Return a batch on the device of the model."""
        return map_tensors(lambda values: values.to(self.device), inputs)

    def _batch_logits(self, inputs: Any) -> Tensor:
        logits = self.model(self.to_device(inputs))
        return (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits).cpu()

    def autocast(self) -> AbstractContextManager:
        """Return a context in which the model computes in the precision of the training."""
        if not self.precision.endswith("-mixed"):
            return nullcontext()
        kind = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16
        return torch.autocast(self.device.type, kind)


def load(run: str | Path, device: str = "auto") -> Predictor:
    """Load the model of a run, to predict in Python.

    Args:
        run: Folder of the run, its best.ckpt, or its name below ``runs``.
        device: Such as cpu or cuda; auto for a GPU if there is one.

    Raises:
        ConfigError: if there is no such run.
    """
    return Predictor(find_trained_run(str(run)), device)
