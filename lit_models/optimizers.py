"""Optimizers by name: ``optimizer: {name: sgd, lr: 0.1}`` calls `sgd(network, lr=0.1)`.

A function's keyword-only parameters are the keys of the section. Weight decay is left off biases and normalisation
scales (He et al. 2019, "Bag of Tricks for Image Classification", https://arxiv.org/abs/1812.01187, section 3.1). A network
with a method ``lr_scales()``, parameter name -> factor, has some of its parameters trained at a share of the rate.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import nn
from torch.optim import Optimizer

from engine.contracts import OptionError
from lit_models.parts.muon import Muon

# layers whose weights are matrices, or can be seen as one
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
        lr: Learning rate; with a schedule, its peak.
        momentum: Share of the last update that is kept.
        nesterov: Look ahead along the momentum; it needs a momentum above 0.
        weight_decay: L2 penalty on weights, not on biases and norms.
        fused: One kernel for all parameters; null for yes where the device has it.
    """
    if nesterov and momentum == 0:
        raise OptionError("optimizer.nesterov: needs a momentum; set optimizer.momentum=0.9")
    groups, fused = _groups(network, lr, weight_decay), _fused(network, fused)
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
        lr: Learning rate; with a schedule, its peak.
        betas: Decay of the running mean of gradients and of their squares.
        eps: Added to the denominator.
        weight_decay: L2 penalty on weights, not on biases and norms.
        fused: One kernel for all parameters; null for yes where the device has it.
    """
    groups, fused = _groups(network, lr, weight_decay), _fused(network, fused)
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
        lr: Learning rate; with a schedule, its peak.
        betas: Decay of the running mean of gradients and of their squares.
        eps: Added to the denominator.
        weight_decay: Share of a weight that a step at lr=1 removes; not from biases and norms.
        fused: One kernel for all parameters; null for yes where the device has it.
    """
    groups, fused = _groups(network, lr, weight_decay), _fused(network, fused)
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
        lr: Learning rate; with a schedule, its peak.
        alpha: Decay of the running mean of squared gradients.
        eps: Added to the denominator.
        momentum: Share of the last update that is kept.
        weight_decay: L2 penalty on weights, not on biases and norms.
    """
    return torch.optim.RMSprop(_groups(network, lr, weight_decay), lr=lr, alpha=alpha, eps=eps, momentum=momentum)


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
    """Muon for the weights of all linear and convolutional layers but the last, SGD with momentum for the rest
    (https://kellerjordan.github.io/posts/muon). To make an update orthogonal costs little beside convolutions, and more than
    all the rest of a small MLP's step.

    Args:
        lr: Learning rate of Muon; with a schedule, its peak. An update has singular values of about this size.
        momentum: Of Muon: share of the last update that is kept.
        weight_decay: Share of a weight that a step at lr=1 removes; not from biases and norms.
        normalize: Hold the rows of Muon's weights at norm 1, instead of decay; for networks with a norm after each layer.
        ns_steps: Newton-Schulz steps that make an update orthogonal. With fewer, small singular values stay small.
        head_lr: Learning rate of the last layer's weights, and of embeddings.
        vector_lr: Learning rate of biases and norms.
        sgd_momentum: Of SGD.
    """
    layers = [one.weight for one in network.modules() if isinstance(one, MATRIX_LAYERS)]
    matrices = {id(one) for one in layers[:-1]}
    rest = {"momentum": sgd_momentum, "matrices": False}
    options: dict[str, dict[str, Any]] = {
        "matrices": {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "matrices": True},
        "heads": {"lr": head_lr, "weight_decay": weight_decay, **rest},
        "vectors": {"lr": vector_lr, "weight_decay": 0.0, **rest},
    }
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    scales = _scales(network)
    for name, one in network.named_parameters():
        kind = "matrices" if id(one) in matrices else "heads" if one.ndim > 1 else "vectors"
        if one.requires_grad:
            groups.setdefault((kind, scales.get(name, 1.0)), []).append(one)
    made = [
        {**options[kind], "params": groups[kind, scale], "lr": options[kind]["lr"] * scale}
        for kind, scale in sorted(groups, key=lambda group: (list(options).index(group[0]), -group[1]))
    ]
    return Muon(made, ns_steps, normalize)


def _groups(network: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Weights with decay, and biases and normalisation scales without, which have one dimension; the highest rate first."""
    scales = _scales(network)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((scales.get(name, 1.0), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": groups[scale, decays], "lr": lr * scale, "weight_decay": weight_decay if decays else 0.0}
        for scale, decays in sorted(groups, reverse=True)
    ]


def _scales(network: nn.Module) -> dict[str, float]:
    """Shares of the rate, by the names of parameters; 1 for those that are not in it."""
    scales: dict[str, float] = getattr(network, "lr_scales", dict)()
    return scales


def _fused(network: nn.Module, asked: bool | None) -> bool:
    return next(network.parameters()).device.type in ("cpu", "cuda") if asked is None else asked


def _pair(betas: Sequence[float]) -> tuple[float, float]:
    if len(betas) != 2:
        raise OptionError(f"optimizer.betas: {list(betas)} has {len(betas)} values; give two, as in [0.9, 0.999]")
    return betas[0], betas[1]
