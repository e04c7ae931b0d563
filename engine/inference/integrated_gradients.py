"""Integrated gradients: how much each input value contributes to a prediction.

The method is from Sundararajan et al. 2017 (https://arxiv.org/abs/1703.01365). It explains the logit of the predicted class
minus the logit of the second most likely class. The attributions add up to the difference of this value between the sample
and a baseline. For a linear model, each attribution is exactly the weight times the difference of the input.
"""

from typing import Any

import torch
from torch import Tensor

from engine.contracts import Classifier, map_tensors

# S steps, K classes

STEPS = 32  # number of points on the straight line from the baseline to the sample


def integrated_gradients(model: Classifier, inputs: Any, steps: int = STEPS) -> Tensor:
    """Return the attributions of a sample, in the shape of `model.attribution_inputs(inputs)[0]` without batch dimension.

    Args:
        model: A classifier in evaluation mode. The gradients of its parameters do not change.
        inputs: A batch of one sample: a tensor, or a mapping such as the output of a tokenizer.
        steps: Number of steps S. The gradients in the middle of all steps are computed as one batch.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # autograd cannot use tensors that were created in inference mode, but it can use copies of them
        def copy(value: Any) -> Any:
            return value.to(model.device, copy=True) if isinstance(value, Tensor) else value

        copied = map_tensors(copy, inputs)
        with torch.no_grad():
            sample, baseline, compute_logits = model.attribution_inputs(copied)
            first, second = compute_logits(sample)[0].topk(2).indices.tolist()
        fractions = (torch.arange(steps, device=sample.device) + 0.5) / steps  # (S,)
        path = baseline + fractions.view(-1, *[1] * (sample.ndim - 1)).to(sample.dtype) * (sample - baseline)
        path = path.detach().requires_grad_()
        logits = compute_logits(path).float()  # (S, K)
        (gradients,) = torch.autograd.grad((logits[:, first] - logits[:, second]).sum(), path)
        return ((sample - baseline)[0] * gradients.mean(0)).float()
