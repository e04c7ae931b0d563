"""Structured pruning: removes the least important hidden units, channels or attention heads before the training.

The tensors become smaller. The checkpoint has the new widths as hyperparameters.

A unit is important if the loss changes much without it. The first-order Taylor criterion of Molchanov et al. 2019
(https://arxiv.org/abs/1906.10771) estimates the squared change: each unit is multiplied by a gate of 1, and its importance
is the mean of the squared derivative of the loss with respect to the gate. The derivatives are those of single samples, as
in the Fisher pruning of Theis et al. 2018 (https://arxiv.org/abs/1801.05787). Michel et al. 2019
(https://arxiv.org/abs/1905.10650) remove attention heads by such gates.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.contracts import Classifier, OptionError, PrunableLayer, first_rows, map_tensors, plain_training_batches
from engine.terminal import print_line
from engine.training import checkpoint_file
from engine.training.training_state import rng_state, set_rng_state

# B batch, N units of a layer, K classes

MAX_SAMPLES = 1024  # training samples for the importance
# Layers of at least WIDE units keep a multiple of MULTIPLE units, because a vector of AVX-512 holds 16 numbers. Without half
# of its multiply-adds, mnist_cnn is 1.6 (PyTorch) and 1.9 (ONNX Runtime) times as fast if the widths are multiples of 16,
# and 1.2 and 1.3 times as fast if they are multiples of 8.
WIDE, MULTIPLE = 32, 16
BISECTIONS = 16


class Pruning(Callback):
    """Removes units of the trained network in `model.start_from` before the training.

    All layers lose the same fraction of their units, as far as possible.

    Args:
        amount: Fraction of the multiply-adds of the network to remove.
    """

    def __init__(self, amount: Annotated[float, "> 0, < 1"] = 0.5) -> None:
        self.amount = amount

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        model = cast(Classifier, pl_module)
        if trainer.ckpt_path is not None:  # the checkpoint has the weights of the smaller network
            checkpoint = checkpoint_file.read(Path(str(trainer.ckpt_path)))
            _replace_network(model, checkpoint["hyper_parameters"])
            return
        choice: Any = self._choose(trainer, model) if trainer.is_global_zero else None
        hparams, kept = trainer.strategy.broadcast(choice)
        state = _slice(model.network.state_dict(), model.prunable_layers(), kept)
        _replace_network(model, hparams)
        model.network.load_state_dict(state)

    def _choose(self, trainer: Trainer, model: Classifier) -> tuple[dict[str, Any], list[list[int]]]:
        """Return the hyperparameters of the smaller network, and the numbers of the units that each layer keeps."""
        layers, name = model.prunable_layers(), type(model).__name__
        if not layers:
            raise OptionError(
                f"callbacks.pruning.amount: {name} has no layer with units to remove (method prunable_layers)"
            )
        random_state = rng_state()  # restored below, because other processes draw no random numbers here
        batches = iter(plain_training_batches(trainer.datamodule))  # type: ignore[attr-defined]
        first = next(batches)
        if trainer.strategy.root_device.type == "cuda":
            cast(nn.Module, model).to(trainer.strategy.root_device)
        importance = measure_importance(model, layers, itertools.chain([first], batches))
        device = next(model.network.parameters()).device
        inputs = model.normalized(map_tensors(lambda values: values.to(device), first_rows(first[0], 1)))
        hparams, (before, after) = choose_sizes(model, layers, self.amount, inputs)
        set_rng_state(random_state)
        if after == before:
            raise OptionError(f"callbacks.pruning.amount: {self.amount} is too small; no unit would be removed")
        sizes = [_get(hparams, layer.option) for layer in layers]
        kept = [
            values.argsort(descending=True, stable=True)[:size].sort().values.tolist()
            for values, size in zip(importance, sizes, strict=True)
        ]
        options = dict.fromkeys(_shown_option(layer) for layer in layers)
        changes = [f"{option[-1]} {_get(model.hparams, option)} -> {_get(hparams, option)}" for option in options]
        removed = f"multiply-adds of a sample {before:,} -> {after:,} (-{1 - after / before:.0%})"
        print_line(f"pruned {name}: {', '.join(changes)}, {removed}")
        return hparams, kept


def measure_importance(model: Classifier, layers: Sequence[PrunableLayer], batches: Any) -> list[Tensor]:
    """Return the importance (N,) of the units of each layer.

    It is the mean squared derivative of the loss of a sample with respect to the gate.

    Args:
        model: The trained model, which computes in evaluation mode.
        layers: Its layers.
        batches: Training batches. Whole batches are used until there are at least `MAX_SAMPLES` samples.
    """
    module, device = cast(nn.Module, model), next(model.network.parameters()).device
    was_training, num_samples = module.training, 0
    module.eval()
    sums = [torch.zeros(layer.num_units, dtype=torch.float64) for layer in layers]
    for inputs, labels in batches:
        inputs, labels = map_tensors(lambda values: values.to(device), inputs), labels.to(device)
        with torch.enable_grad(), _gates(model.network, layers, len(labels)) as gates:
            loss = F.cross_entropy(model(inputs), labels, reduction="sum")
            derivatives = torch.autograd.grad(loss, gates)
        for total, derivative in zip(sums, derivatives, strict=True):
            total += derivative.double().square().sum(0).cpu()
        num_samples += len(labels)
        if num_samples >= MAX_SAMPLES:
            break
    module.train(was_training)
    return [total / num_samples for total in sums]


@contextmanager
def _gates(network: nn.Module, layers: Sequence[PrunableLayer], batch_size: int) -> Iterator[list[Tensor]]:
    """Multiply the units of each layer by a gate of ones (B, N)."""
    example = next(network.parameters())
    gates = [example.new_ones(batch_size, layer.num_units).requires_grad_() for layer in layers]
    handles = []

    def multiply(gate: Tensor, axis: int, inputs: Tensor) -> Tensor:
        factors = gate.repeat_interleave(inputs.shape[axis] // gate.shape[1], 1)
        shape = [1] * inputs.ndim
        shape[0], shape[axis] = factors.shape
        return inputs * factors.view(shape)

    for gate, layer in zip(gates, layers, strict=True):
        for name in layer.consumers:
            module = network.get_submodule(name)
            axis = 1 if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else -1
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, arguments, gate=gate, axis=axis: (multiply(gate, axis, arguments[0]), *arguments[1:])
                )
            )
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def choose_sizes(
    model: Classifier, layers: Sequence[PrunableLayer], amount: float, inputs: Any
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Choose how many units each layer keeps. Bisection finds the fraction that gives the wanted number of multiply-adds.

    Args:
        model: The model.
        layers: Its layers.
        amount: Fraction of the multiply-adds to remove.
        inputs: A normalized sample (1, ...).

    Returns:
        The new hyperparameters, and the multiply-adds before and after.

    Raises:
        OptionError: if even the smallest network has too many multiply-adds.
    """

    def shrink(fraction: float) -> tuple[dict[str, Any], int]:
        hparams = {name: _as_lists(value) for name, value in model.hparams.items()}
        for layer in layers:
            _set(hparams, layer.option, _kept_units(layer.num_units, fraction))
        return hparams, count_multiply_adds(model, hparams, inputs)

    before = count_multiply_adds(model, dict(model.hparams), inputs)
    target, (smaller, larger), high = (1 - amount) * before, (shrink(0.0), shrink(1.0)), 1.0
    if smaller[1] > target:
        most = 1 - smaller[1] / before
        raise OptionError(
            f"callbacks.pruning.amount: {amount} is too large; with one unit in each layer, pruning removes"
            f" {most:.2%} of the multiply-adds"
        )
    low = 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        candidate = shrink(middle)
        if candidate[1] <= target:
            low, smaller = middle, candidate
        else:
            high, larger = middle, candidate
    hparams, after = min(smaller, larger, key=lambda found: abs(found[1] - target))
    return hparams, (before, after)


def count_multiply_adds(model: Classifier, hparams: dict[str, Any], inputs: Any) -> int:
    """Return the multiply-adds of a network with other hyperparameters.

    The network runs on the meta device, which computes no values.

    Args:
        model: The model.
        hparams: The hyperparameters.
        inputs: Normalized inputs.
    """
    with torch.device("meta"), torch.no_grad():
        network = type(model)(**hparams).network.eval()
        with FlopCounterMode(display=False) as counter:
            network(map_tensors(lambda values: values.to("meta"), inputs))
    return int(counter.get_total_flops()) // 2


def _kept_units(count: int, fraction: float) -> int:
    """Return the number of units that a layer keeps, at least 1."""
    wanted = fraction * count
    if wanted >= count:
        return count
    if count >= WIDE and wanted >= MULTIPLE:
        return min(count, MULTIPLE * round(wanted / MULTIPLE))
    return max(1, round(wanted))


def _slice(state: dict[str, Tensor], layers: Sequence[PrunableLayer], kept: Sequence[list[int]]) -> dict[str, Tensor]:
    """Return the tensors of a network with only the units that are kept."""
    state = dict(state)
    for layer, units in zip(layers, kept, strict=True):
        produced = [name for name in state if name.rpartition(".")[0] in layer.producers and state[name].ndim]
        for name, axis in [(name, 0) for name in produced] + [(f"{name}.weight", 1) for name in layer.consumers]:
            size = state[name].shape[axis] // layer.num_units  # values of a unit
            indices = torch.tensor(units)[:, None] * size + torch.arange(size)
            state[name] = state[name].index_select(axis, indices.flatten().to(state[name].device))
    return state


def _replace_network(model: Classifier, hparams: dict[str, Any]) -> None:
    """Replace the network by a new one with the hyperparameters `hparams`, with the same dtype, on the same device."""
    example = next(model.network.parameters())
    model.network = type(model)(**hparams).network.to(example.device, example.dtype)
    model.hparams.update(hparams)


def _shown_option(layer: PrunableLayer) -> tuple[str | int, ...]:
    """Return the hyperparameter of a layer, and the whole list if it is in a list."""
    return layer.option[:-1] if isinstance(layer.option[-1], int) else layer.option


def _get(hparams: Any, option: tuple[str | int, ...]) -> Any:
    for key in option:
        hparams = hparams[key]
    return hparams


def _set(hparams: Any, option: tuple[str | int, ...], value: int) -> None:
    *keys, last = option
    _get(hparams, tuple(keys))[last] = value


def _as_lists(value: Any) -> Any:
    """Return a copy of nested data with lists in the place of tuples, which are the defaults of constructors."""
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value
