"""What can be wrong with a network before anything is trained: its start, its gradients, whether it can learn at all.

Each function works on a copy and gives what it found as ``(level, title, text)``, level being "ok", "note", "warning" or
"WRONG". Copies are in 32 bits and without dropout; batch normalisation takes the batch, as in training. What costs more with
a larger network has a limit in seconds.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from engine.contracts import Batch, CheckResult, Classifier, listed
from engine.training.shared_buffers import NORMS

# K classes
SOME, FEW = 128, 32  # samples of a batch that are looked at, and those that are to be learnt
LEARN_SECONDS, LEARN_STEPS = 3.0, 200  # at each of the rates
LEARNT = 0.5  # of what knowing the labels' frequencies alone would leave of the loss
MOVED = 0.99  # of that loss: what is not below it comes of the frequencies alone
SILENT_STEPS = 3  # until every gradient must have been another number than zero
RATES = (1e-3, 1e-2, 1e-4)  # of Adam: its default, for small outputs, for pretrained weights; one that learns is enough
LEAST_STEPS = 20  # with fewer, for lack of time, nothing is proved
STILL, KNOWN = 0.99, 0.1  # of the first loss: below that it moves; a loss so small need not
PEAK_SECONDS, PEAK_STEPS, PEAK_RISE = 2.0, 20, 5  # at the run's own rate, which the first five steps rise to


def check_model(
    module: Classifier, optimizer: Optimizer | None, batches: Sequence[Batch], clip: float | None = None
) -> Iterator[CheckResult]:
    """What is to be said of a network that is about to be trained.

    Args:
        module: On its device; it stays as it is.
        optimizer: Of its parameters, before its first step; null if there is not exactly one.
        batches: Some hundred training samples, not augmented, on that device.
        clip: Norm that the run clips gradients to; null for none.
    """
    batches = [_first(batch, SOME) for batch in batches]
    few = _some(batches, FEW)
    if isinstance(few[0], Tensor):
        yield scale_of_inputs(module, batches)
    yield loss_at_the_start(_probe(module), batches)
    yield gradients(_probe(module), batches[0])
    yield one_batch_is_learnt(module, few)
    if optimizer is not None:
        yield peak_rate(module, optimizer, few, clip)


def scale_of_inputs(module: Classifier, batches: Sequence[Batch]) -> CheckResult:
    """Mean and deviation of what the network gets; initialisations expect about 0 and 1."""
    values = torch.cat([module.normalized(inputs).float().flatten() for inputs, _ in batches])
    mean, std = values.mean().item(), values.std().item()
    text = f"mean {round(mean, 2) + 0.0:.2f}, standard deviation {std:.2f} as the network gets them"
    if 0.1 < std < 10 and abs(mean) < 10:
        return CheckResult("ok", "scale of inputs", text)
    return CheckResult("warning", "scale of inputs", f"{text}; set data.normalize=true, or scale them to about 0 and 1")


@torch.no_grad()
def loss_at_the_start(probe: Classifier, batches: Sequence[Batch]) -> CheckResult:
    """Cross-entropy beside ln K, that of a network which holds all classes for equally likely."""
    title, num_classes = "loss at the start", int(probe.hparams["num_classes"])
    chance, count = math.log(num_classes), sum(len(labels) for _, labels in batches)
    loss = sum(_loss(probe, batch).item() * len(batch[1]) for batch in batches) / count
    text = f"{loss:.2f}, and ln {num_classes} = {chance:.2f}"
    if not loss <= 1.5 * chance + 0.5:  # also where it is no number
        return CheckResult(
            "WRONG", title, f"{text}; start the last layer with smaller weights, and look at the scale of its inputs"
        )
    if loss < 0.5 * chance:
        return CheckResult(
            "note", title, f"{text}; it knows much already, as a model does that was trained on these classes"
        )
    return CheckResult("ok", title, text)


def gradients(probe: Classifier, batch: Batch) -> CheckResult:
    """Whether every parameter that is not frozen gets a gradient that is finite and somewhere not zero."""
    title, named = "gradients", dict(probe.network.named_parameters())
    trained = {name: one for name, one in named.items() if one.requires_grad}
    num_frozen = len(named) - len(trained)
    frozen = f" ({num_frozen} are frozen)" if num_frozen else ""
    if not trained:
        return CheckResult("WRONG", title, f"all {num_frozen} parameters are frozen: there is nothing to train")
    loss = _loss(probe, batch)
    if not loss.requires_grad:
        return CheckResult(
            "WRONG", title, "the loss depends on no parameter; look for .detach(), .data or no_grad in forward"
        )
    names = dict(zip(trained, torch.autograd.grad(loss, list(trained.values()), allow_unused=True), strict=True))
    silent = [name for name, one in names.items() if one is None]
    if any(one is not None and not one.any() for one in names.values()):  # as behind a layer that starts with zeros
        silent = _still_silent(probe, trained, batch)
    broken = [name for name, one in names.items() if one is not None and not one.isfinite().all()]
    if broken:
        return CheckResult(
            "WRONG",
            title,
            f"not finite in {len(broken)} of {len(trained)} parameters: {listed(broken)}; look for log(0), 1/0 and sqrt(0)",
        )
    if silent:
        mend = "use them in forward, or freeze them with requires_grad_(False)"
        return CheckResult(
            "WRONG", title, f"none for {len(silent)} of {len(trained)} parameters: {listed(silent)}{frozen}; {mend}"
        )
    return CheckResult("ok", title, f"all {len(trained)} parameters get one{frozen}")


def _still_silent(probe: Classifier, trained: Mapping[str, Tensor], batch: Batch) -> list[str]:
    """The parameters whose gradients are zero, or none, also after some steps."""
    optimizer, silent = torch.optim.Adam(trained.values(), RATES[0]), list(trained)
    for _ in range(SILENT_STEPS):
        optimizer.zero_grad()
        _loss(probe, batch).backward()
        optimizer.step()
        silent = [name for name in silent if (found := trained[name].grad) is None or not found.any()]
    return silent


def one_batch_is_learnt(module: Classifier, batch: Batch) -> CheckResult:
    """Whether the network can learn a few samples by heart: by Adam at any of three rates, whatever the run's own are."""
    title, labels = "one batch is learnt", batch[1]
    parameters = sum(one.numel() for one in module.network.parameters())
    frozen = sum(one.numel() for one in module.network.parameters() if not one.requires_grad)
    shares = labels.cpu().bincount().double() / len(labels)
    by_frequency = float(-torch.special.xlogy(shares, shares).sum())  # the loss of the best constant output
    if by_frequency == 0:
        return CheckResult(
            "note", title, f"all {len(labels)} samples of the first batch have one label; shuffle the training set"
        )
    at_best = _entropy_of_equal_inputs(batch)
    if at_best > 0.9 * by_frequency:
        return CheckResult(
            "note", title, f"the {len(labels)} samples are nearly all alike, with unlike labels: too much so to tell"
        )
    text, least = "", math.inf
    for rate in RATES:
        probe = _probe(module)
        trained = [one for one in probe.network.parameters() if one.requires_grad]
        if not trained or not _loss(probe, batch).requires_grad:
            return CheckResult("WRONG", title, "no parameter moves the loss")
        optimizer = torch.optim.Adam(trained, rate)
        losses = _train(
            probe, optimizer, batch, LEARN_STEPS, LEARN_SECONDS, enough=at_best + 0.1 * (by_frequency - at_best)
        )
        text = f"loss {_said(losses[0])} -> {_said(losses[-1])} in {len(losses) - 1} steps ({len(labels)} samples)"
        least = min([least, *losses])
        if losses[-1] < at_best + LEARNT * (by_frequency - at_best):
            return CheckResult("ok", title, text)
        if len(losses) <= LEAST_STEPS and math.isfinite(losses[-1]):
            return CheckResult("note", title, f"{text}, and time was up: too few to tell")
    if frozen > parameters / 2:
        return CheckResult(
            "warning", title, f"{text}; most of the network is frozen: freeze less of it (model.freeze_layers)"
        )
    if least < MOVED * by_frequency:
        return CheckResult("warning", title, f"{text}; a small network need not learn more: a larger one might")
    return CheckResult("WRONG", title, f"{text}; follow one sample through forward: do the outputs depend on it?")


def _entropy_of_equal_inputs(batch: Batch) -> float:
    """The least mean loss that there can be: of samples with equal inputs and unlike labels all but one kind are missed."""
    inputs, labels = batch[0], batch[1].cpu()
    rows = torch.cat(
        [one.flatten(1).cpu().double() for one in ([inputs] if isinstance(inputs, Tensor) else inputs.values())], 1
    )
    kinds = rows.unique(dim=0, return_inverse=True)[1]
    shares = F.one_hot(kinds).double().T @ F.one_hot(labels).double() / len(labels)  # (inputs, K)
    return float((torch.special.xlogy(shares.sum(1), shares.sum(1)) - torch.special.xlogy(shares, shares).sum(1)).sum())


def peak_rate(module: Classifier, optimizer: Optimizer, batch: Batch, clip: float | None) -> CheckResult:
    """Whether the run's own optimizer, at the highest rate of its schedule, moves the loss of a few samples, and down."""
    probe, own = copy.deepcopy((module, optimizer))
    _without_dropout(probe.float())
    peaks = [float(group.get("initial_lr", group["lr"])) for group in own.param_groups]

    def rise(step: int) -> None:
        for group, peak in zip(own.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1.0, (step + 1) / PEAK_RISE)

    losses = _train(probe, own, batch, PEAK_STEPS, PEAK_SECONDS, clip=clip, before_step=rise)
    title, steps = "learning rate", len(losses) - 1
    text = f"at optimizer.lr={peaks[0]:.3g} loss {_said(losses[0])} -> {_said(losses[-1])} in {steps} steps"
    if not losses[-1] < 1.5 * losses[0] + 0.5:  # also where it is no number
        return CheckResult("warning", title, f"{text}: it explodes; lower optimizer.lr tenfold")
    if steps > PEAK_RISE and min(losses) > STILL * losses[0] > STILL * KNOWN:
        return CheckResult("warning", title, f"{text}: it hardly moves; raise optimizer.lr tenfold")
    if steps <= PEAK_RISE:
        return CheckResult("note", title, f"{text}, and time was up: too few to tell")
    return CheckResult("ok", title, text)


def _said(loss: float) -> str:
    return f"{loss:.2f}" if loss >= 0.1 else f"{loss:.1g}"


def _probe(module: Classifier) -> Classifier:
    """A copy to try something with."""
    return _without_dropout(copy.deepcopy(module).float())


def _without_dropout(module: Classifier) -> Classifier:
    module.eval()
    for one in module.modules():
        if isinstance(one, NORMS):
            one.train()
    return module


def _some(batches: Sequence[Batch], count: int) -> Batch:
    """The first `count` samples, of several batches where that can be: those of texts are of unlike length."""
    if all(isinstance(inputs, Tensor) for inputs, _ in batches):
        return _first((torch.cat([one for one, _ in batches]), torch.cat([one for _, one in batches])), count)
    return _first(max(batches, key=lambda batch: len(batch[1])), count)


def _first(batch: Batch, count: int) -> Batch:
    inputs, labels = batch
    if isinstance(inputs, Mapping):
        return {name: one[:count] for name, one in inputs.items()}, labels[:count]
    return inputs[:count], labels[:count]


def _loss(probe: Classifier, batch: Batch) -> Tensor:
    """Plain cross-entropy."""
    return F.cross_entropy(probe(batch[0]).float(), batch[1])


def _train(
    probe: Classifier,
    optimizer: Optimizer,
    batch: Batch,
    steps: int,
    seconds: float,
    enough: float = 0.0,
    clip: float | None = None,
    before_step: Callable[[int], None] | None = None,
) -> list[float]:
    """The loss of `batch` before each step on it and after the last: until it is less than `enough`, or no number."""
    losses: list[float] = []
    ends = time.perf_counter() + seconds
    while True:
        loss = _loss(probe, batch)
        losses.append(loss.item())
        late = time.perf_counter() > ends and len(losses) > 1
        if len(losses) > steps or late or losses[-1] < enough or not math.isfinite(losses[-1]):
            return losses
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(probe.parameters(), clip)
        if before_step is not None:
            before_step(len(losses) - 1)
        optimizer.step()
