"""Muon: momentum whose update is made orthogonal, for weights that are matrices; SGD for everything else.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; for CIFAR-10 in https://github.com/KellerJordan/cifar10-airbench.
One optimizer for both, because Lightning schedules, clips and saves one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

# the quintic whose iteration takes singular values in (0, 1] to about 1 in few steps (Jordan et al. 2024)
A, B, C = 3.4445, -4.7750, 2.0315
MIN_NORM = 1e-7


class Muon(Optimizer):
    """Nesterov momentum for all; groups with ``matrices=True`` have their update made orthogonal.

    Args:
        groups: Parameter groups with "lr", "momentum", "weight_decay" and "matrices".
        ns_steps: Of the iteration that makes an update orthogonal.
        normalize: Hold each matrix, seen as rows of weights per output, at rows of norm 1 on average. Right where a norm
            follows, which makes the scale of the weights meaningless, and only there.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], ns_steps: int = 5, normalize: bool = False) -> None:
        super().__init__(groups, {"ns_steps": ns_steps, "normalize": normalize})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [one for one in group["params"] if one.grad is not None]
            gradients = [one.grad for one in parameters]
            for one in parameters:
                if "momentum_buffer" not in self.state[one]:
                    self.state[one]["momentum_buffer"] = torch.zeros_like(one)
            momenta = [self.state[one]["momentum_buffer"] for one in parameters]
            if group["matrices"]:
                _orthogonal_step(parameters, gradients, momenta, group)
            elif parameters:
                for parameter in parameters if group["weight_decay"] else ():
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                sgd(
                    parameters, gradients, momenta, has_sparse_grad=False, foreach=True, lr=group["lr"], dampening=0.0,
                    momentum=group["momentum"], weight_decay=0.0, nesterov=True, maximize=False,
                )  # fmt: skip
        return loss


def _orthogonal_step(
    parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], group: dict[str, Any]
) -> None:
    for momentum, gradient in zip(momenta, gradients, strict=True):
        momentum.mul_(group["momentum"]).add_(gradient)
    by_shape: dict[torch.Size, list[int]] = {}
    for i, one in enumerate(parameters):
        by_shape.setdefault(one.shape, []).append(i)
    for shape, members in by_shape.items():  # matrices of one shape are multiplied together
        ahead = torch.stack([gradients[i].add(momenta[i], alpha=group["momentum"]).flatten(1) for i in members])
        updates = orthogonal(ahead, group["ns_steps"]).to(ahead.dtype)
        for i, update in zip(members, updates, strict=True):
            if group["normalize"]:
                parameters[i].mul_(shape[0] ** 0.5 / parameters[i].norm().clamp(min=MIN_NORM))
            elif group["weight_decay"]:
                parameters[i].mul_(1 - group["lr"] * group["weight_decay"])
            parameters[i].add_(update.view(shape), alpha=-group["lr"])


def orthogonal(matrices: Tensor, ns_steps: int) -> Tensor:
    """Matrices (N, R, C) with the singular vectors of those given, and singular values nearer to 1.

    Five steps bring those above a hundredth of the Frobenius norm to 0.68 to 1.14; fewer leave the small ones small. In
    bf16 where a GPU is fast at it.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=MIN_NORM)
    for _ in range(ns_steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x if wide else x.mT
