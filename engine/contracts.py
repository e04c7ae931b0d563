"""What the rooms of the project promise each other. Imports neither torch nor Lightning, so that errors are answered fast."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, device, nn

# N samples, B batch, C channels, H height, W width, D features, K classes
Modality = Literal["features", "image", "tokens"]
Split = Literal["train", "val", "test"]
Batch: TypeAlias = "tuple[Any, Tensor]"  # inputs: a tensor or a dict of tensors; labels (B,) of 0..K-1


class UserError(ValueError):
    """A mistake of the user: shown as one line, without a traceback, with exit code 2."""


class ConfigError(UserError):
    """A mistake in a config or on the command line: ``WHERE: KEY: problem; hint``."""

    def __init__(self, where: str, key: str, problem: str, hint: str = "") -> None:
        problem = problem.rstrip(" .!") if hint else problem
        line = ": ".join(part for part in (where, key, problem) if part) + (f"; {hint}" if hint else "")
        super().__init__(" ".join(line.split()))


class OptionError(UserError):
    """A component refuses one of its options: ``KEY: problem``, or a problem of the whole section."""


class DataError(UserError):
    """Data files that are missing or broken, or options that do not fit the data."""


class BrokenCheckpointError(UserError):
    """A file that is not a complete checkpoint of this project. The message names the file and the problem."""


class CheckResult(NamedTuple):
    """One line of ``--check``.

    Attributes:
        level: "ok", "note", "warning" or "WRONG".
        title: What was checked.
        text: What was found and, unless it is fine, how to fix it.
    """

    level: Literal["ok", "note", "warning", "WRONG"]
    title: str
    text: str


@dataclass(frozen=True)
class DataSpec:
    """What a datamodule promises and what a model is built from. It does not need the data in memory.

    Attributes:
        modality: "features" (D,), "image" (C, H, W) or "tokens".
        input_shape: Shape of one input without the batch dimension; () for tokens, whose number varies.
        class_names: K names, in the order of the labels.
        vocab_size: For tokens: ids go from 0 to vocab_size - 1.
        pad_id: For tokens: the id that fills up short rows.
        max_length: For tokens: the largest number of tokens in a row.
        feature_names: For features: D names. Empty if features have no names.
    """

    modality: Modality
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    vocab_size: int | None = None
    pad_id: int = 0
    max_length: int | None = None
    feature_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def model_arguments(self) -> dict[str, Any]:
        """The arguments that a model's constructor gets from the data. The last three exist only for tokens."""
        arguments: dict[str, Any] = {"input_shape": list(self.input_shape), "num_classes": self.num_classes}
        arguments["class_names"] = list(self.class_names)
        if self.modality == "tokens":
            arguments |= {"vocab_size": self.vocab_size, "pad_id": self.pad_id, "max_length": self.max_length}
        return arguments


class Classifier(Protocol):
    """What callbacks and checks ask of a classifier, besides what a LightningModule has. `LitClassifier` fulfils it."""

    network: "nn.Module"
    hparams: Any

    @property
    def device(self) -> "device": ...

    @property
    def class_names(self) -> list[str]:
        """K names; the numbers of the classes if the data has no names."""

    def normalized(self, inputs: "Tensor") -> "Tensor":
        """Inputs (B, *input_shape) as the network gets them."""

    def features(self, inputs: Any) -> "Tensor | None":
        """The input (B, F) of the last linear layer."""

    def attribution_inputs(self, inputs: Any) -> "tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]":
        """A sample, its baseline, and the function from such inputs to logits (B, K)."""

    def __call__(self, inputs: Any) -> "Tensor":
        """Logits (B, K)."""


@runtime_checkable
class TokenTable(Protocol):
    """Rows of token ids of different lengths. `datamodules.parts.tokens.TokenRows` fulfils it."""

    ids: "Tensor"
    starts: "Tensor"
    lengths: "Tensor"
    second_starts: "Tensor | None"

    def tensors(self) -> "list[Tensor]": ...


def first_rows(inputs: Any, count: int) -> Any:
    """The first `count` samples of a batch of inputs: a tensor, or a mapping of tensors."""
    if isinstance(inputs, Mapping):
        return {name: values[:count] for name, values in inputs.items()}
    return inputs[:count]


def listed(names: "list[str] | tuple[str, ...]", most: int = 5) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_lower_better(metric: str) -> bool:
    """Whether the lowest value of a metric is the best, judged by its name."""
    return any(word in metric for word in ("loss", "error", "seconds"))
