"""Explains predictions: how much each feature, token or pixel supports the predicted class."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.contracts import InputPart
from engine.inference.integrated_gradients import integrated_gradients
from engine.inference.pictures import colour_attributions, to_pixels
from engine.inference.predictor import Predictions, Predictor

# D features, T tokens, C channels, H height, W width

MIN_SIDE = 224  # of a picture, in pixels; smaller images are enlarged


class Explanation(NamedTuple):
    """The attributions of a prediction.

    Attributes:
        names: The features or the tokens; () for an image.
        attributions: (D,), (T,) or (C, H, W). They add up to the log-odds of the predicted class against the second most
            probable class, minus those of the baseline (see `LitClassifier.attribution_inputs`).
    """

    names: Sequence[str]
    attributions: Tensor


def explain_row(predictor: Predictor, part: InputPart, row: int) -> Explanation:
    """Explain the prediction for a row with integrated gradients."""
    inputs = predictor.to_device(part.inputs[torch.tensor([row])])
    attributions = integrated_gradients(predictor.model, inputs).cpu() / predictor.model.temperature.cpu()
    spec = predictor.spec
    if spec.modality == "image":
        return Explanation((), attributions.reshape(spec.input_shape))
    if attributions.ndim == 2:  # vectors of tokens or columns
        attributions = attributions.sum(1)
    if spec.modality == "tokens":
        return Explanation(predictor.datamodule.tokens(inputs["input_ids"][0].cpu()), attributions)
    return Explanation(predictor.feature_names, attributions)


def explain(
    predictor: Predictor, part: InputPart, found: Predictions, threshold: float | None, folder: Path | None, first: int
) -> Predictions:
    """Add explanations to the predictions for a part.

    Args:
        predictor: The model.
        part: The rows.
        found: Their predictions.
        threshold: Probability from which the second of two classes is predicted; None for the more probable class.
        folder: Folder for pictures of the attributions of images; None for no pictures.
        first: Number of rows before this part.
    """
    explanations: list[Explanation | None] = [
        None if row in part.problems else explain_row(predictor, part, row) for row in range(len(found))
    ]
    for row, explanation in enumerate(explanations):
        if explanation is None:
            continue
        probabilities = found.probabilities[row]
        if threshold is not None and (probabilities[1] >= threshold) != (probabilities.argmax() == 1):
            # the less probable class is predicted
            explanations[row] = explanation = Explanation(explanation.names, 0.0 - explanation.attributions)
        if predictor.spec.modality == "image" and folder is not None:
            folder.mkdir(exist_ok=True)
            stem = f"_{Path(name).stem}" if isinstance(name := part.names[row], str) else ""
            save_picture(folder / f"{first + row + 1:06}{stem}.png", part.inputs[row], explanation.attributions)
    return replace(found, explanations=explanations)


def save_picture(path: Path, image: Tensor, attributions: Tensor) -> None:
    """Write an image (C, H, W), and beside it its attributions (C, H, W), as a PNG file."""
    pixels = to_pixels(image)
    both = np.concatenate([pixels, colour_attributions(pixels, attributions)], 1)
    scale = -(-MIN_SIDE // min(pixels.shape[:2]))
    picture = Image.fromarray(both)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
