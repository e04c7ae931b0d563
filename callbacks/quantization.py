"""Quantization-aware training (QAT, Jacob et al. 2018, https://arxiv.org/abs/1712.05877) for `export.py --int8`.

The last epochs round weights and activations as the int8 file does. Gradients pass through the rounding unchanged (the
straight-through estimator), so the weights adapt to it. `engine.inference.quantization` writes these files:

- Weights of linear layers and convolutions have 255 levels, symmetric, with a scale for each output channel. Folding a batch
  normalization into a convolution multiplies a channel and its scale by the same number, so the training does not fold.
- Inputs of these layers have 256 levels between the smallest and the largest value of the tensor.
- In networks with convolutions, outputs of these layers are also rounded. If a batch normalization follows a convolution
  directly, it is folded, so its output is rounded instead.
- In other networks, tables of embeddings are also rounded, with one scale for a table.

The range of an activation is that of its batch, so this callback needs no state. Without convolutions, the int8 model does
the same. With convolutions, its ranges are those of at least 512 training rows. Attention, and layers other than
`nn.Linear`, `nn.Embedding` and convolutions, are not rounded.
"""

import itertools
from typing import Annotated, Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from engine.contracts import OptionError
from engine.terminal import print_line
from engine.training.checkpoints import forget_best
from engine.training.shared_buffers import NORMS

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
EVALUATED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # do nothing in an exported model
SMALLEST = torch.finfo(torch.float32).tiny  # scale of a tensor of zeros


class Quantization(Callback):
    """Simulates int8 in the last epochs of the training, so that `export.py --int8` loses less accuracy.

    Validations in these epochs simulate int8, too. `best.ckpt` is chosen among these epochs only. The test does not simulate
    int8. Checkpoints have the same keys as without this callback.

    Args:
        epochs: Number of epochs at the end of the training that simulate int8.
        bits: Bits of a weight and of an activation. Only int8 can be exported.
    """

    def __init__(self, epochs: Annotated[int, ">= 1"] = 1, bits: Literal[8] = 8) -> None:
        self.epochs = epochs
        self._first = 0  # first epoch that simulates int8, counted from 0
        self._classes: list[tuple[nn.Module, type[nn.Module]]] = []  # quantized modules with their own classes

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        key = "callbacks.quantization"
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            raise OptionError(f"{key}: the number of epochs is not known; set trainer.max_epochs")
        strategy = trainer.strategy
        if type(strategy) not in (SingleDeviceStrategy, DDPStrategy) or strategy.root_device.type not in (
            "cpu",
            "cuda",
        ):
            problem = f"is not possible with {type(strategy).__name__} on the device {strategy.root_device.type}"
            raise OptionError(f"{key}: {problem}; it needs a CPU or CUDA, and trainer.strategy=ddp for several devices")
        if self.epochs > trainer.max_epochs:
            raise OptionError(f"{key}.epochs: {self.epochs} is more than trainer.max_epochs={trainer.max_epochs}")
        self._first = trainer.max_epochs - self.epochs
        if trainer.is_global_zero:
            print_line(f"int8 is simulated from epoch {self._first + 1} on")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a run that resumes within an epoch does not call `on_train_epoch_start`
        if trainer.current_epoch >= self._first:
            self._begin(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self._first:
            forget_best(trainer)  # it was measured without int8
            self._begin(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._classes and trainer.is_global_zero:
            epoch = self._first + 1
            print_line(f"callbacks.quantization: int8 was not simulated, because training ended before epoch {epoch}")
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def _begin(self, pl_module: LightningModule) -> None:
        """Replace the classes of the modules by subclasses that quantize. Parameters and their names do not change."""
        if not self._classes:
            for module, mixins in quantized_modules(pl_module.network):  # type: ignore[arg-type]
                own = type(module)
                self._classes.append((module, own))
                module.__class__ = type(own.__name__, (*mixins, own), {})

    def _end(self) -> None:
        for module, own in self._classes:
            module.__class__ = own
        self._classes = []


class QuantizedWeight(nn.Module):
    """A layer that computes with its weight in int8, with a scale for each output channel, and with inputs in int8."""

    @property
    def weight(self) -> Tensor:
        weight = cast(Tensor, super().__getattr__("weight"))
        scale = (weight.detach().flatten(1).abs().amax(1).float() / 127).clamp(min=SMALLEST)
        return torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros_like(scale), 0, -127, 127)

    def forward(self, inputs: Tensor) -> Any:
        return super().forward(fake_quantize(inputs))


class QuantizedTable(nn.Module):
    """An embedding whose table is in uint8. Only the vectors of the batch are rounded, which takes less time."""

    def forward(self, codes: Tensor) -> Any:
        return fake_quantize(super().forward(codes), self.weight)  # type: ignore[arg-type]


class QuantizedOutput(nn.Module):
    """A layer whose output is in int8."""

    def forward(self, inputs: Tensor) -> Any:
        return fake_quantize(super().forward(inputs))


def quantized_modules(network: nn.Module) -> list[tuple[nn.Module, tuple[type[nn.Module], ...]]]:
    """Return the modules that `export.py --int8` quantizes, each with the classes that simulate it.

    The module that follows a convolution is the next one in the order of their definition.
    """
    leaves = [module for module in network.modules() if not [*module.children()] and not isinstance(module, EVALUATED)]
    is_static = any(isinstance(module, CONVOLUTIONS) for module in leaves)
    folded = {b for a, b in itertools.pairwise(leaves) if isinstance(a, CONVOLUTIONS) and isinstance(b, NORMS)}
    found: list[tuple[nn.Module, tuple[type[nn.Module], ...]]] = []
    for module, following in itertools.pairwise([*leaves, None]):
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            has_output = is_static and following not in folded
            found.append((module, (QuantizedOutput, QuantizedWeight) if has_output else (QuantizedWeight,)))
        elif module in folded:
            found.append((module, (QuantizedOutput,)))
        elif isinstance(module, nn.Embedding) and not is_static:
            found.append((module, (QuantizedTable,)))
    return found


def fake_quantize(values: Tensor, source: Tensor | None = None) -> Tensor:
    """Round values to 256 levels between the smallest and the largest value of `source` (default: `values`).

    The range of the levels is extended so that it contains 0.
    """
    source = (values if source is None else source).detach()
    low, high = source.amin().float().clamp(max=0), source.amax().float().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=SMALLEST)
    return torch.fake_quantize_per_tensor_affine(values, scale, (-low / scale).round().int(), 0, 255)
