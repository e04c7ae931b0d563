"""Muon: SGD with Nesterov momentum that orthogonalizes the update of every matrix.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; for CIFAR-10 in https://github.com/KellerJordan/cifar10-airbench.
This optimizer also trains all other parameters, without orthogonalization, because Lightning's automatic optimization
supports a single optimizer.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

# N matrices, R rows, C columns

# coefficients of the quintic Newton-Schulz iteration, which moves singular values in (0, 1] close to 1 (Jordan et al. 2024)
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MIN_NORM = 1e-7


class Muon(Optimizer):
    """SGD with Nesterov momentum. Groups with ``orthogonalize=True`` have orthogonal updates.

    Args:
        groups: Parameter groups with "lr", "momentum", "weight_decay" and "orthogonalize".
        ns_steps: Newton-Schulz steps of the orthogonalization.
        normalize: Scale each orthogonalized weight, as a matrix with one row per output, so that the mean square of its row
            norms is 1. Use it only if a normalization layer follows every such weight, because the scale of the weights then
            has no effect on the output.
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
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            momenta: list[Any] = [self._momentum(parameter) for parameter in parameters]
            if group["orthogonalize"]:
                _orthogonal_step(parameters, gradients, momenta, group)
            else:
                if group["weight_decay"]:
                    for parameter in parameters:
                        parameter.mul_(1 - group["lr"] * group["weight_decay"])
                sgd(
                    parameters, gradients, momenta, has_sparse_grad=False, foreach=True, lr=group["lr"], dampening=0.0,
                    momentum=group["momentum"], weight_decay=0.0, nesterov=True, maximize=False,
                )  # fmt: skip
        return loss

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _orthogonal_step(
    parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], group: dict[str, Any]
) -> None:
    indices_by_shape: dict[torch.Size, list[int]] = {}
    for i, (parameter, gradient, momentum) in enumerate(zip(parameters, gradients, momenta, strict=True)):
        momentum.mul_(group["momentum"]).add_(gradient)
        indices_by_shape.setdefault(parameter.shape, []).append(i)
    for shape, indices in indices_by_shape.items():  # matrices of one shape are multiplied together
        matrices = torch.stack([gradients[i].add(momenta[i], alpha=group["momentum"]).flatten(1) for i in indices])
        updates = orthogonalize(matrices, group["ns_steps"]).to(matrices.dtype)  # (N, R, C)
        for i, update in zip(indices, updates, strict=True):
            if group["normalize"]:
                parameters[i].mul_(shape[0] ** 0.5 / parameters[i].norm().clamp(min=MIN_NORM))
            elif group["weight_decay"]:
                parameters[i].mul_(1 - group["lr"] * group["weight_decay"])
            parameters[i].add_(update.view(shape), alpha=-group["lr"])


def orthogonalize(matrices: Tensor, ns_steps: int) -> Tensor:
    """Move the singular values of each matrix close to 1, and keep its singular vectors.

    Five steps move singular values above 1 % of the Frobenius norm into the range 0.68 to 1.14. With fewer steps, small
    singular values stay small. On a GPU it computes in bf16.

    Args:
        matrices: Matrices (N, R, C).
        ns_steps: Newton-Schulz steps.

    Returns:
        Matrices (N, R, C) in float32, or in bf16 on a GPU.
    """
    a, b, c = NS_COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=MIN_NORM)
    for _ in range(ns_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
