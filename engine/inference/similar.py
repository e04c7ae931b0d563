"""Finds training samples that are similar to a new sample, by the cosine similarity of the inputs of the last layer."""

import io
import sys
import threading
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.contracts import DataError
from engine.inference.data_urls import image_url
from engine.inference.predictor import Predictor
from engine.inference.trained_run import TrainedRun

# N training samples, B batch, F inputs of the last layer

MAX_SAMPLES = 10_000  # evenly spaced in the training set
BATCH = 64
NUM_FOUND = 5


class TrainingSamples(NamedTuple):
    """Samples of the training set.

    Attributes:
        class_names: Name of the class of each sample.
        directions: Features of length 1 (N, F).
        inputs: The inputs of the training set; None if they are not images.
        rows: (N,) index in `inputs` of each sample.
    """

    class_names: list[str]
    directions: Tensor
    inputs: Any
    rows: Tensor


class SimilarSamples:
    """Finds similar training samples. A thread computes the features of the training set.

    Args:
        run: The run.
        device: The device of the model.
    """

    def __init__(self, run: TrainedRun, device: torch.device) -> None:
        self.run, self.device = run, device
        self._samples: TrainingSamples | None = None

    def start(self) -> None:
        """Start to compute the features of the training set. If this fails, print a note to the terminal."""
        threading.Thread(target=self._collect, name="training samples", daemon=True).start()

    def find(self, features: Tensor | None) -> list[dict[str, Any]] | None:
        """Return the classes of the most similar samples, with the cosine similarity and, for images, a picture.

        Args:
            features: Features of one sample (1, F).

        Returns:
            The most similar sample first; None if the training set has not been read.
        """
        if self._samples is None or features is None:
            return None
        samples = self._samples
        similarities = samples.directions @ F.normalize(features)[0]
        best = similarities.topk(min(NUM_FOUND, len(similarities)))
        found = []
        for similarity, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            one: dict[str, Any] = {"class": samples.class_names[place], "similarity": similarity}
            if samples.inputs is not None:
                one["picture"] = image_url(samples.inputs[samples.rows[place : place + 1]][0])
            found.append(one)
        return found

    def _collect(self) -> None:
        try:
            self._samples = read_training_samples(self.run, self.device)
        except (DataError, NotImplementedError) as error:
            reason = str(error) or "the datamodule has no splits"
            print(f"note: similar training samples are not available: {reason}", file=sys.stderr, flush=True)


def read_training_samples(run: TrainedRun, device: torch.device) -> TrainingSamples:
    """Compute the features of the training set with a second copy of the model, so that predictions do not wait.

    Raises:
        DataError: if the training set has changed since the training, or if the last layer of the model is not linear.
    """
    predictor = Predictor(run, str(device))
    with redirect_stdout(io.StringIO()):  # a datamodule describes what it reads
        inputs, labels = predictor.datamodule.splits()["train"]
    if predictor.datamodule.spec.model_arguments() != predictor.spec.model_arguments():
        raise DataError("the data has changed since the training")
    rows = torch.linspace(0, len(labels) - 1, min(len(labels), MAX_SAMPLES)).round().long()
    directions = []
    for part in rows.split(BATCH):
        if (features := predictor.features(inputs[part])) is None:
            raise DataError("the last layer of the model is not linear")
        directions.append(F.normalize(features))
    class_names = [predictor.class_names[label] for label in labels[rows].tolist()]
    images = inputs if predictor.spec.modality == "image" else None
    return TrainingSamples(class_names, torch.cat(directions), images, rows)
