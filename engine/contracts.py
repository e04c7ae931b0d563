"""Types that the folders of the project share: data, batches, check results and errors.

This module imports neither torch nor Lightning, so that errors in a config are reported fast.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, device, nn

COMMAND_LINE = "command line"  # replaces file and line in messages

# N samples, B batch, C channels, H height, W width, D features, K classes
Modality = Literal["features", "image", "tokens"]
Split = Literal["train", "val", "test"]
Batch: TypeAlias = "tuple[Any, Tensor]"  # inputs: a tensor or a dict of tensors; labels (B,) of 0..K-1
TrainingBatch: TypeAlias = "Batch | tuple[Any, Tensor, Tensor]"  # the third part: logits (B, K) of a teacher
Labelled: TypeAlias = "tuple[Any, Tensor]"  # a whole split; inputs: Rows (N, ...) or a TokenTable; labels (N,)


def escape(text: str) -> str:
    """Return `text` with escape sequences in place of control characters, which could move a terminal's cursor."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class UserError(ValueError):
    """A mistake of the user. The command prints one line without a traceback and returns exit code 2.

    The message may contain text from the user's files, so control characters in it are escaped.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        # torch raises the error of a DataLoader's worker again, with the worker's traceback in the message
        if "\nOriginal Traceback (" in text:
            text = text.strip().rpartition("\n")[2].partition(": ")[2]
        super().__init__(escape(text))


class ConfigError(UserError):
    """A mistake in a config or on the command line, with the message ``WHERE: KEY: problem; hint``.

    Args:
        where: File and line, or "command line"; may be empty.
        key: The dotted key; may be empty.
        problem: What is wrong.
        hint: How to fix it; may be empty.
    """

    def __init__(self, where: str, key: str, problem: str, hint: str = "") -> None:
        problem = problem.rstrip(" .!") if hint else problem
        line = ": ".join(part for part in (where, key, problem) if part) + (f"; {hint}" if hint else "")
        super().__init__(" ".join(line.split()))


class OptionError(UserError):
    """A component does not accept an option. The message is ``KEY: problem``, or only the problem."""


class DataError(UserError):
    """A data file is missing or broken, or an option does not fit the data."""


class BrokenCheckpointError(UserError):
    """A file that is not a complete checkpoint of this project. The message names the file and the problem."""


class CheckResult(NamedTuple):
    """One line of ``--check``.

    Attributes:
        level: "ok", "note", "warning" or "WRONG".
        title: Name of the check.
        text: The finding and, if something is wrong, how to fix it.
    """

    level: Literal["ok", "note", "warning", "WRONG"]
    title: str
    text: str


@dataclass(frozen=True)
class DataSpec:
    """The description of a dataset. A datamodule provides it, and a model is built from it.

    Attributes:
        modality: "features" (D,), "image" (C, H, W) or "tokens".
        input_shape: Shape of one input without the batch dimension; () for tokens, because their number varies.
        class_names: K names, in the order of the labels.
        vocab_size: For tokens: ids are 0 to vocab_size - 1.
        pad_id: For tokens: the id that pads short rows.
        max_length: For tokens: the largest number of tokens in a row.
        feature_names: For features: D names; empty if features have no names.
        categories: For the columns of a table: the names of the categories of each column, which have codes from 1 on; ()
            for a column with numbers. None if the features are not a table. Only a table may have missing values.
    """

    modality: Modality
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    vocab_size: int | None = None
    pad_id: int = 0
    max_length: int | None = None
    feature_names: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def model_arguments(self) -> dict[str, Any]:
        """Return the arguments of a model's constructor that depend on the data."""
        arguments: dict[str, Any] = {"input_shape": list(self.input_shape), "num_classes": self.num_classes}
        arguments["class_names"] = list(self.class_names)
        if self.categories is not None:
            arguments["columns"] = dict(zip(self.feature_names, map(list, self.categories), strict=True))
        if self.modality == "tokens":
            arguments |= {"vocab_size": self.vocab_size, "pad_id": self.pad_id, "max_length": self.max_length}
        return arguments

    @classmethod
    def from_arguments(cls, modality: Modality, arguments: Mapping[str, Any]) -> "DataSpec":
        """Return the description that is in the arguments of a model: the inverse of `model_arguments`."""
        columns = arguments.get("columns")
        return cls(
            modality,
            tuple(arguments["input_shape"]),
            tuple(arguments["class_names"] or map(str, range(arguments["num_classes"]))),
            arguments.get("vocab_size"),
            arguments.get("pad_id", 0),
            arguments.get("max_length"),
            tuple(columns or ()),
            None if columns is None else tuple(map(tuple, columns.values())),
        )


class InputPart(NamedTuple):
    """Consecutive rows of new data, for predictions.

    Attributes:
        names: Name of each row: its number, counted from 1, or its file.
        inputs: Inputs (n, *input_shape) in the units of the data, or n token rows.
        labels: Label of each row as it is written, None if it has none; None if the labels were not read.
        problems: Why a row cannot be read, by its index. The inputs of such a row have no meaning.
    """

    names: Sequence[Any]
    inputs: Any
    labels: Sequence[str | None] | None
    problems: dict[int, str]


class NewInputs(NamedTuple):
    """New data for predictions.

    Attributes:
        parts: The rows, in their order.
        total: Number of rows, which may be an estimate; None if it is unknown.
    """

    parts: Iterator[InputPart]
    total: int | None


class PrunableLayer(NamedTuple):
    """Units of a network that can be removed: hidden units, channels or attention heads.

    A unit may have several consecutive values, as an attention head has. Modules are named as in `network.named_modules`.

    Attributes:
        option: Hyperparameter with the number of units: its name and, if it is nested, the keys or indices in it, such as
            ("widths", 0). Layers with the same hyperparameter keep equally many units, but each layer its own units.
        num_units: Number of units.
        producers: Modules that compute the units. The first axis of all their tensors belongs to the units.
        consumers: Linear layers and convolutions that read the units. The second axis of their weight belongs to the units.
    """

    option: tuple[str | int, ...]
    num_units: int
    producers: Sequence[str]
    consumers: Sequence[str]


class Classifier(Protocol):
    """The interface of a classifier that callbacks and checks use. `LitClassifier` implements it."""

    network: "nn.Module"

    @property
    def hparams(self) -> Any: ...

    @property
    def device(self) -> "device": ...

    @property
    def class_names(self) -> list[str]:
        """K names, or the numbers of the classes if the data has no names."""

    def normalized(self, inputs: "Tensor") -> "Tensor":
        """Return normalized inputs (B, *input_shape), as the network gets them."""

    def features(self, inputs: Any) -> "Tensor | None":
        """Return the input (B, F) of the last linear layer; None if the network does not end with a linear layer."""

    def attribution_inputs(self, inputs: Any) -> "tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]":
        """Return a sample (1, ...), a baseline of the same shape, and a function from (B, ...) to logits (B, K)."""

    def weight_tensors(self) -> "dict[str, Tensor]":
        """Return the trained weights of the network by name, without biases and normalization parameters."""

    def prunable_layers(self) -> list[PrunableLayer]:
        """Return the layers whose units can be removed."""

    def __call__(self, inputs: Any) -> "Tensor":
        """Return logits (B, K)."""


@runtime_checkable
class Rows(Protocol):
    """N inputs of equal shape: a tensor, or rows of a memory-mapped file (`datamodules.parts.mapped.MappedRows`)."""

    shape: Any
    ndim: int

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any) -> "Tensor": ...

    def split(self, size: int) -> "Iterable[Tensor]": ...


@runtime_checkable
class TokenTable(Protocol):
    """Rows of token ids with different lengths. `datamodules.parts.tokens.TokenRows` implements it."""

    ids: "Tensor"
    starts: "Tensor"
    lengths: "Tensor"
    second_starts: "Tensor | None"

    def tensors(self) -> "list[Tensor]": ...


def map_tensors(function: "Callable[[Tensor], Tensor]", inputs: Any) -> Any:
    """Apply a function to a tensor, or to each tensor of a mapping."""
    if isinstance(inputs, Mapping):
        return {name: function(values) for name, values in inputs.items()}
    return function(inputs)


def plain_training_batches(datamodule: Any) -> Any:
    """Return the training batches of a datamodule. Batches of this project are not augmented."""
    batches = datamodule.train_dataloader()
    if hasattr(batches, "augment"):
        batches.augment = None
    return batches


def first_rows(inputs: Any, count: int) -> Any:
    """Return the first `count` samples of a tensor or of a mapping of tensors."""
    return map_tensors(lambda values: values[:count], inputs)


def listed(names: "list[str] | tuple[str, ...]", most: int = 5) -> str:
    """Join the first `most` names, and add the number of the others."""
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + others


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line of at most 200 characters, or its type if it has no message."""
    return escape(" ".join(str(getattr(error, "reason", None) or error).split()))[:200] or type(error).__name__


def is_lower_better(metric: str) -> bool:
    """Return whether lower values of a metric are better, according to its name."""
    return any(word in metric for word in ("loss", "error", "seconds"))
