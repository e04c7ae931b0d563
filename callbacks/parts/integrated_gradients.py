"""What a decision owes to each part of an input: integrated gradients (Sundararajan et al. 2017, arxiv.org/abs/1703.01365).

The decision is how far the predicted class's logit lies above the next one's. The shares add up to its difference between
the sample and a baseline; of a linear model they are exactly weight times difference.
"""

from typing import Any

import torch
from torch import Tensor

# S steps, K classes

STEPS = 32  # of the path from the baseline to the sample


def integrated_gradients(model: Any, inputs: Any, steps: int = STEPS) -> Tensor:
    """The share of each value of what `model.attribution_inputs(inputs)` gives for one sample, in its shape without the batch.

    Args:
        model: A `LitClassifier` in evaluation mode. Its parameters' gradients are left alone.
        inputs: Of one sample, in a batch of its own: a tensor, or a mapping of tensors.
        steps: S, at whose middles the gradient is taken; all go through the network as one batch.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # tensors that were made in inference mode cannot be differentiated by; their copies can
        given = {name: one.clone() for name, one in inputs.items()} if isinstance(inputs, dict) else inputs.clone()
        with torch.no_grad():
            sample, baseline, logits_of = model.attribution_inputs(given)
            first, second = logits_of(sample)[0].topk(2).indices.tolist()
        middles = (torch.arange(steps, device=sample.device) + 0.5) / steps  # (S,)
        path = baseline + middles.view(-1, *[1] * (sample.ndim - 1)).to(sample.dtype) * (sample - baseline)
        path = path.detach().requires_grad_()
        logits = logits_of(path).float()  # (S, K)
        (gradients,) = torch.autograd.grad((logits[:, first] - logits[:, second]).sum(), path)
        return ((sample - baseline)[0] * gradients.mean(0)).float()
