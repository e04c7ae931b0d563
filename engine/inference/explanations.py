"""Explains predictions: how much each feature, token or pixel supports the predicted class."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.contracts import InputPart
from engine.inference.integrated_gradients import integrated_gradients
from engine.inference.pictures import colour_attributions, to_pixels
from engine.inference.predictor import Predictor

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


def save_picture(path: Path, image: Tensor, attributions: Tensor) -> None:
    """Write an image (C, H, W), and beside it its attributions (C, H, W), as a PNG file."""
    pixels = to_pixels(image)
    both = np.concatenate([pixels, colour_attributions(pixels, attributions)], 1)
    scale = -(-MIN_SIDE // min(pixels.shape[:2]))
    picture = Image.fromarray(both)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
