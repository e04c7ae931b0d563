"""Checks of a network before training: its initial loss, its gradients, and whether it can learn.

Each check uses a copy of the network in 32-bit precision, without dropout. Batch normalization uses the statistics of the
batch, as in training. Slow checks have a time limit.
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from engine.contracts import Batch, CheckResult, Classifier, first_rows, listed
from engine.terminal import count_of
from engine.training.shared_buffers import NORMS

# K classes
BATCH_SAMPLES, OVERFIT_SAMPLES = 128, 32  # maximum number of samples in a batch, and in the batch to overfit
OVERFIT_SECONDS, OVERFIT_STEPS = 3.0, 200  # for each learning rate
OVERFIT_RATES = (1e-3, 1e-2, 1e-4)  # learning rates of Adam: default, for small outputs, for pretrained weights
# Fractions of the loss of the best constant output. Below the first value, the network learns. Above the second value, it
# has only learned the class frequencies.
LEARNED, CONSTANT = 0.5, 0.99
MIN_STEPS = 20  # fewer steps within the time limit are not significant
GRADIENT_STEPS = 3  # every parameter must get a gradient that is not zero within these steps
RATE_SECONDS, RATE_STEPS, RATE_WARM_UP = 2.0, 20, 5  # the learning rate rises during the warm-up
UNCHANGED = 0.99  # the loss has not changed if it stays above this fraction of the first loss
MIN_OUTPUTS = 16  # samples; with fewer samples, all logits can be between 0 and 1 by chance
SMALL_LOSS = 0.1  # a first loss below this value need not decrease


def check_model(
    module: Classifier, optimizer: Optimizer | None, batches: Sequence[Batch], clip: float | None = None
) -> Iterator[CheckResult]:
    """Check a network that is about to be trained.

    Args:
        module: The classifier on its device. It is not changed.
        optimizer: Optimizer of its parameters before the first step; None if the run has several optimizers.
        batches: A few hundred training samples without augmentation, on the same device.
        clip: Maximum norm of gradients in the run; None for no clipping.
    """
    batches = [_head(batch, BATCH_SAMPLES) for batch in batches]
    few = _first_samples(batches, OVERFIT_SAMPLES)
    if (
        isinstance(few[0], Tensor) and module.hparams.get("columns") is None
    ):  # a model scales the columns of a table itself
        yield check_input_scale(module, batches)
    if (problem := find_activation(_make_probe(module), batches)) is not None:
        yield problem  # the hints of the other checks would be misleading
        if problem.level == "WRONG":
            return
    yield check_initial_loss(_make_probe(module), batches)
    yield check_gradients(_make_probe(module), batches[0])
    yield check_overfitting(module, few)
    if optimizer is not None:
        yield check_learning_rate(module, optimizer, few, clip)


def check_input_scale(module: Classifier, batches: Sequence[Batch]) -> CheckResult:
    """Check mean and standard deviation of the network's inputs. They should be about 0 and 1."""
    values = torch.cat([module.normalized(inputs).float().flatten() for inputs, _ in batches])
    mean, std = values.mean().item(), values.std().item()
    text = f"mean {round(mean, 2) + 0.0:.2f}, standard deviation {std:.2f} of the network's inputs"
    if 0.1 < std < 10 and abs(mean) < 10:
        return CheckResult("ok", "input scale", text)
    hint = "scale them to about mean 0 and standard deviation 1; data.normalize=true does it"
    return CheckResult("warning", "input scale", f"{text}; {hint}")


@torch.no_grad()
def find_activation(probe: Classifier, batches: Sequence[Batch]) -> CheckResult | None:
    """Return a result if the network ends with a softmax or a sigmoid, and None if its outputs can be logits."""
    outputs = torch.cat([probe(inputs).float() for inputs, _ in batches])  # (N, K)
    if not ((outputs >= 0) & (outputs <= 1)).all() or not outputs.any(1).all():
        return None
    remedy = "return logits, because the loss applies a softmax itself"
    if ((outputs.sum(1) - 1).abs() < 0.01).all():
        text = f"probabilities, which sum to 1; remove the softmax at the end of the network: {remedy}"
        return CheckResult("WRONG", "outputs", text)
    if len(outputs) < MIN_OUTPUTS:
        return None
    return CheckResult(
        "warning", "outputs", f"all between 0 and 1; remove a sigmoid at the end of the network: {remedy}"
    )


@torch.no_grad()
def check_initial_loss(probe: Classifier, batches: Sequence[Batch]) -> CheckResult:
    """Compare the loss with ln K, which is the cross-entropy if all classes get the same probability."""
    title, num_classes = "initial loss", int(probe.hparams["num_classes"])
    chance, count = math.log(num_classes), sum(len(labels) for _, labels in batches)
    loss = sum(_loss(probe, batch).item() * len(batch[1]) for batch in batches) / count
    text = f"{loss:.2f}; by chance: ln {num_classes} = {chance:.2f}"
    if not loss <= 1.5 * chance + 0.5:  # also if it is NaN
        hint = "initialize the last layer with smaller weights, and check the scale of its inputs"
        return CheckResult("WRONG", title, f"{text}; {hint}")
    if loss < 0.5 * chance:
        return CheckResult("note", title, f"{text}; the model seems to be trained on these classes already")
    return CheckResult("ok", title, text)


def check_gradients(probe: Classifier, batch: Batch) -> CheckResult:
    """Check that every trained parameter gets a gradient that is finite and not zero everywhere."""
    title, named = "gradients", dict(probe.network.named_parameters())
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    num_frozen = len(named) - len(trained)
    frozen = f" ({num_frozen} are frozen)" if num_frozen else ""
    if not trained:
        return CheckResult("WRONG", title, f"all {num_frozen} parameters are frozen: there is nothing to train")
    loss = _loss(probe, batch)
    if not loss.requires_grad:
        hint = "look for .detach(), .data or no_grad in forward"
        return CheckResult("WRONG", title, f"the loss does not depend on any parameter; {hint}")
    gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values()), allow_unused=True), strict=True))
    infinite = [name for name, values in gradients.items() if values is not None and not values.isfinite().all()]
    if infinite:
        text = f"not finite for {len(infinite)} of {len(trained)} parameters: {listed(infinite)}"
        return CheckResult("WRONG", title, f"{text}; look for log(0), 1/0 and sqrt(0)")
    missing = [name for name, values in gradients.items() if values is None]
    has_zeros = any(values is not None and not values.any() for values in gradients.values())
    if has_zeros:  # a later layer may be initialized with zeros
        missing = _without_gradient_after_steps(probe, trained, batch)
    if missing:
        text = f"no gradient for {len(missing)} of {len(trained)} parameters: {listed(missing)}{frozen}"
        return CheckResult("WRONG", title, f"{text}; use them in forward, or freeze them with requires_grad_(False)")
    return CheckResult("ok", title, f"all {len(trained)} parameters get a gradient{frozen}")


def _without_gradient_after_steps(probe: Classifier, trained: Mapping[str, Tensor], batch: Batch) -> list[str]:
    """Return the parameters whose gradient was None or zero in each of `GRADIENT_STEPS` steps."""
    optimizer, missing = torch.optim.Adam(trained.values(), OVERFIT_RATES[0]), list(trained)
    for _ in range(GRADIENT_STEPS):
        optimizer.zero_grad()
        _loss(probe, batch).backward()
        optimizer.step()
        missing = [name for name in missing if (values := trained[name].grad) is None or not values.any()]
    return missing


def check_overfitting(module: Classifier, batch: Batch) -> CheckResult:
    """Check that Adam, with one of three learning rates, can overfit the network to a few samples."""
    title, labels = "overfits one batch", batch[1]
    frequencies = labels.cpu().bincount().double() / len(labels)
    constant_loss = float(-torch.special.xlogy(frequencies, frequencies).sum())  # of the best constant output
    if constant_loss == 0:
        problem = f"all {len(labels)} samples of the first batch have the same label"
        return CheckResult("note", title, f"{problem}; shuffle the training set")
    best_loss = _best_loss(batch)
    if best_loss > 0.9 * constant_loss:
        problem = "have nearly the same inputs and different labels"
        return CheckResult("note", title, f"the {len(labels)} samples {problem}, so the check is not possible")
    text, lowest = "", math.inf
    for rate in OVERFIT_RATES:
        probe = _make_probe(module)
        trained = [parameter for parameter in probe.network.parameters() if parameter.requires_grad]
        if not trained or not _loss(probe, batch).requires_grad:
            return CheckResult("WRONG", title, "no parameter changes the loss")
        target = best_loss + 0.1 * (constant_loss - best_loss)
        losses = _train(probe, torch.optim.Adam(trained, rate), batch, OVERFIT_STEPS, OVERFIT_SECONDS, target)
        text = f"{_format_losses(losses)} ({len(labels)} samples)"
        lowest = min([lowest, *losses])
        if losses[-1] < best_loss + LEARNED * (constant_loss - best_loss):
            return CheckResult("ok", title, text)
        if len(losses) <= MIN_STEPS and math.isfinite(losses[-1]):
            return CheckResult("note", title, f"{text}; too few steps within the time limit to judge")
    parameters = list(module.network.parameters())
    num_frozen = sum(parameter.numel() for parameter in parameters if not parameter.requires_grad)
    if num_frozen > sum(parameter.numel() for parameter in parameters) / 2:
        hint = "most of the network is frozen: freeze fewer layers (model.freeze_layers)"
        return CheckResult("warning", title, f"{text}; {hint}")
    if lowest < CONSTANT * constant_loss:
        return CheckResult("warning", title, f"{text}; the network may be too small")
    hint = "the outputs do not seem to depend on the inputs: debug forward with one sample"
    return CheckResult("WRONG", title, f"{text}; {hint}")


def _best_loss(batch: Batch) -> float:
    """Return the lowest possible mean loss. It is above 0 if samples with equal inputs have different labels."""
    inputs, labels = batch[0], batch[1].cpu()
    tensors = [inputs] if isinstance(inputs, Tensor) else inputs.values()
    rows = torch.cat([values.flatten(1).cpu().double() for values in tensors], 1)
    groups = rows.unique(dim=0, return_inverse=True)[1]
    fractions = F.one_hot(groups).double().T @ F.one_hot(labels).double() / len(labels)  # (distinct inputs, K)
    totals = fractions.sum(1)
    return float((torch.special.xlogy(totals, totals) - torch.special.xlogy(fractions, fractions).sum(1)).sum())


def check_learning_rate(module: Classifier, optimizer: Optimizer, batch: Batch, clip: float | None) -> CheckResult:
    """Check that the run's optimizer, at the highest learning rate of its schedule, reduces the loss of a few samples."""
    probe, own = copy.deepcopy((module, optimizer))
    _prepare_probe(probe)
    warm_up = LambdaLR(own, lambda step: min(1.0, (step + 1) / RATE_WARM_UP))
    losses = _train(probe, own, batch, RATE_STEPS, RATE_SECONDS, clip=clip, schedule=warm_up)
    title, text = "learning rate", f"optimizer.lr={float(warm_up.base_lrs[0]):.3g}: {_format_losses(losses)}"
    if not losses[-1] < 1.5 * losses[0] + 0.5:  # also if it is NaN
        return CheckResult("warning", title, f"{text}; the loss explodes: divide optimizer.lr by 10")
    if len(losses) - 1 <= RATE_WARM_UP:
        return CheckResult("note", title, f"{text}; too few steps within the time limit to judge")
    if losses[0] > SMALL_LOSS and min(losses) > UNCHANGED * losses[0]:
        return CheckResult("warning", title, f"{text}; the loss hardly changes: multiply optimizer.lr by 10")
    return CheckResult("ok", title, text)


def _format_losses(losses: Sequence[float]) -> str:
    """Format the first loss, the last loss and the number of steps."""
    first, last = (f"{loss:.2f}" if loss >= 0.1 else f"{loss:.1g}" for loss in (losses[0], losses[-1]))
    return f"loss {first} -> {last} in {count_of(len(losses) - 1, 'step')}"


def _make_probe(module: Classifier) -> Classifier:
    return _prepare_probe(copy.deepcopy(module))


def _prepare_probe(module: Any) -> Any:
    """Convert to 32-bit precision, and switch all layers except batch normalization to evaluation mode."""
    module.float().eval()
    for layer in module.modules():
        if isinstance(layer, NORMS):
            layer.train()
    return module


def _first_samples(batches: Sequence[Batch], count: int) -> Batch:
    """Return the first `count` samples. Batches of texts differ in length, so only the largest batch is used."""
    if all(isinstance(inputs, Tensor) for inputs, _ in batches):
        inputs, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        return _head((inputs, labels), count)
    return _head(max(batches, key=lambda batch: len(batch[1])), count)


def _head(batch: Batch, count: int) -> Batch:
    return first_rows(batch[0], count), batch[1][:count]


def _loss(probe: Classifier, batch: Batch) -> Tensor:
    """Return the cross-entropy without label smoothing, class weights or regularization."""
    return F.cross_entropy(probe(batch[0]).float(), batch[1])


def _train(
    probe: Classifier,
    optimizer: Optimizer,
    batch: Batch,
    max_steps: int,
    max_seconds: float,
    target: float = 0.0,
    clip: float | None = None,
    schedule: LambdaLR | None = None,
) -> list[float]:
    """Train on one batch until the loss is below `target` or not finite. Return the losses before and after each step."""
    losses: list[float] = []
    end = time.perf_counter() + max_seconds
    while True:
        loss = _loss(probe, batch)
        losses.append(loss.item())
        is_late = time.perf_counter() > end and len(losses) > 1
        if len(losses) > max_steps or is_late or losses[-1] < target or not math.isfinite(losses[-1]):
            return losses
        optimizer.zero_grad()
        loss.backward()
        if clip:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        if schedule is not None:
            schedule.step()
