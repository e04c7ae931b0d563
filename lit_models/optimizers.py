"""Optimizers by name: ``optimizer: {name: sgd, lr: 0.1}`` in a config calls ``sgd(network, lr=0.1)``.

The keyword-only parameters of a function are the keys of the config section. Biases and normalization parameters have no
weight decay (He et al. 2019, "Bag of Tricks for Image Classification", https://arxiv.org/abs/1812.01187, section 3.1). The
method ``lr_scales()`` of a network, if it has one, returns factors of the learning rate by parameter name.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.contracts import OptionError
from lit_models.parts.muon import Muon

# layers whose weight is a matrix, or becomes a matrix with one row per output if it is flattened
MATRIX_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def sgd(
    network: nn.Module,
    *,
    lr: Annotated[float, "> 0"] = 0.01,
    momentum: Annotated[float, ">= 0, < 1"] = 0.0,
    nesterov: bool = False,
    weight_decay: Annotated[float, ">= 0"] = 0.0,
    fused: bool | None = None,
) -> Optimizer:
    """Stochastic gradient descent.

    Args:
        lr: Learning rate; its peak if there is a schedule.
        momentum: Momentum factor.
        nesterov: Use Nesterov momentum. It needs a momentum above 0.
        weight_decay: L2 penalty on weights, but not on biases and normalization parameters.
        fused: Update all parameters in one kernel; null to do so on devices that support it.
    """
    if nesterov and momentum == 0:
        raise OptionError("optimizer.nesterov: needs a momentum above 0; set optimizer.momentum=0.9")
    groups, fused = _decay_groups(network, lr, weight_decay), _use_fused(network, fused)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)


def adam(
    network: nn.Module,
    *,
    lr: Annotated[float, "> 0"] = 1e-3,
    betas: Annotated[Sequence[float], ">= 0, < 1"] = (0.9, 0.999),
    eps: Annotated[float, "> 0"] = 1e-8,
    weight_decay: Annotated[float, ">= 0"] = 0.0,
    fused: bool | None = None,
) -> Optimizer:
    """Adam (https://arxiv.org/abs/1412.6980).

    Args:
        lr: Learning rate; its peak if there is a schedule.
        betas: Decay rates of the running means of gradients and of squared gradients.
        eps: Added to the denominator.
        weight_decay: L2 penalty on weights, but not on biases and normalization parameters.
        fused: Update all parameters in one kernel; null to do so on devices that support it.
    """
    groups, fused = _decay_groups(network, lr, weight_decay), _use_fused(network, fused)
    return torch.optim.Adam(groups, lr=lr, betas=_pair(betas), eps=eps, fused=fused)


def adamw(
    network: nn.Module,
    *,
    lr: Annotated[float, "> 0"] = 1e-3,
    betas: Annotated[Sequence[float], ">= 0, < 1"] = (0.9, 0.999),
    eps: Annotated[float, "> 0"] = 1e-8,
    weight_decay: Annotated[float, ">= 0"] = 0.01,
    fused: bool | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101).

    Args:
        lr: Learning rate; its peak if there is a schedule.
        betas: Decay rates of the running means of gradients and of squared gradients.
        eps: Added to the denominator.
        weight_decay: Every step multiplies weights by 1 - lr * weight_decay, but not biases and normalization parameters.
        fused: Update all parameters in one kernel; null to do so on devices that support it.
    """
    groups, fused = _decay_groups(network, lr, weight_decay), _use_fused(network, fused)
    return torch.optim.AdamW(groups, lr=lr, betas=_pair(betas), eps=eps, fused=fused)


def rmsprop(
    network: nn.Module,
    *,
    lr: Annotated[float, "> 0"] = 0.01,
    alpha: Annotated[float, ">= 0, < 1"] = 0.99,
    eps: Annotated[float, "> 0"] = 1e-8,
    momentum: Annotated[float, ">= 0, < 1"] = 0.0,
    weight_decay: Annotated[float, ">= 0"] = 0.0,
) -> Optimizer:
    """RMSprop (Tieleman and Hinton 2012).

    Args:
        lr: Learning rate; its peak if there is a schedule.
        alpha: Decay rate of the running mean of squared gradients.
        eps: Added to the denominator.
        momentum: Momentum factor.
        weight_decay: L2 penalty on weights, but not on biases and normalization parameters.
    """
    groups = _decay_groups(network, lr, weight_decay)
    return torch.optim.RMSprop(groups, lr=lr, alpha=alpha, eps=eps, momentum=momentum)


def muon(
    network: nn.Module,
    *,
    lr: Annotated[float, "> 0"] = 0.02,
    momentum: Annotated[float, ">= 0, < 1"] = 0.95,
    weight_decay: Annotated[float, ">= 0"] = 0.0,
    normalize: bool = False,
    ns_steps: Annotated[int, ">= 1"] = 5,
    head_lr: Annotated[float, "> 0"] = 0.1,
    vector_lr: Annotated[float, "> 0"] = 0.05,
    sgd_momentum: Annotated[float, ">= 0, < 1"] = 0.9,
) -> Optimizer:
    """Muon for the weights of linear and convolutional layers except the last; SGD with momentum for other parameters.

    Source: https://kellerjordan.github.io/posts/muon. The orthogonalization takes little time compared with convolutions. In
    a small MLP, it takes longer than the rest of the step.

    Args:
        lr: Learning rate of Muon; its peak if there is a schedule. The singular values of an update are close to it.
        momentum: Momentum factor of Muon.
        weight_decay: Every step multiplies weights by 1 - lr * weight_decay, but not biases and normalization parameters.
        normalize: Keep the rows of Muon's weights at a norm of about 1, instead of weight decay. Use it only if a
            normalization layer follows every layer.
        ns_steps: Newton-Schulz steps that orthogonalize an update. With fewer steps, small singular values stay small.
        head_lr: Learning rate of the weights of the last layer and of embeddings.
        vector_lr: Learning rate of biases and normalization parameters.
        sgd_momentum: Momentum factor of SGD.
    """
    layers = [module.weight for module in network.modules() if isinstance(module, MATRIX_LAYERS)]
    with_sgd = {"momentum": sgd_momentum, "orthogonalize": False}
    options: dict[str, dict[str, Any]] = {
        "matrix": {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonalize": True},
        "weight": {"lr": head_lr, "weight_decay": weight_decay, **with_sgd},
        "vector": {"lr": vector_lr, "weight_decay": 0.0, **with_sgd},
    }
    return Muon(_param_groups(network, options, matrices=layers[:-1]), ns_steps, normalize)


def _decay_groups(network: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay."""
    options = {"weight": {"lr": lr, "weight_decay": weight_decay}, "vector": {"lr": lr, "weight_decay": 0.0}}
    return _param_groups(network, options)


def _param_groups(
    network: nn.Module, options: dict[str, dict[str, Any]], matrices: Sequence[Tensor] = ()
) -> list[dict[str, Any]]:
    """Group the trained parameters by their kind and by the factor of their learning rate.

    Args:
        network: May have the method ``lr_scales()``.
        options: Options of each kind of parameters, in the order of the groups. A kind is "matrix", "weight" (two or more
            dimensions) or "vector" (biases and normalization parameters).
        matrices: Parameters of the kind "matrix".
    """
    scales: dict[str, float] = getattr(network, "lr_scales", dict)()
    matrix_ids = {id(parameter) for parameter in matrices}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            kind = "matrix" if id(parameter) in matrix_ids else "weight" if parameter.ndim > 1 else "vector"
            groups.setdefault((kind, scales.get(name, 1.0)), []).append(parameter)
    kinds = list(options)
    return [
        {**options[kind], "params": groups[kind, scale], "lr": options[kind]["lr"] * scale}
        for kind, scale in sorted(groups, key=lambda key: (kinds.index(key[0]), -key[1]))  # the highest rate first
    ]


def _use_fused(network: nn.Module, fused: bool | None) -> bool | None:
    """Whether to update all parameters in one kernel; None lets PyTorch choose among its other implementations.

    In torch 2.13, fused optimizers compute wrong updates of bfloat16 and float16 parameters on a CPU.

    Raises:
        OptionError: if the user asks for such an optimizer.
    """
    parameters = list(network.parameters())
    narrow = [parameter.dtype for parameter in parameters if parameter.dtype not in (torch.float32, torch.float64)]
    device = parameters[0].device.type
    if device == "cpu" and narrow:
        if fused:
            raise OptionError(
                f"optimizer.fused: computes wrong updates of {narrow[0]} parameters on a CPU; leave out this key"
            )
        return None
    return (device in ("cpu", "cuda") if fused is None else fused) or None


def _pair(betas: Sequence[float]) -> tuple[float, float]:
    if len(betas) != 2:
        raise OptionError(f"optimizer.betas: {list(betas)} has {len(betas)} values; give two, as in [0.9, 0.999]")
    return betas[0], betas[1]
