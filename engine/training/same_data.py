"""Checks that the run in `model.teacher` or `model.start_from` has the same kind of data as this run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from engine.config.errors import as_written
from engine.contracts import OptionError, listed
from engine.runs.run_index import read_mapping
from engine.terminal import print_line

# hyperparameters of a model that describe its data
DATA_OPTIONS = ("class_names", "num_classes", "input_shape", "columns", "vocab_size", "pad_id", "max_length")


def check_same_data(
    key: str, folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], datamodule: Any = None
) -> None:
    """Raise an `OptionError` if two models were made for different data. Print a note if only the samples differ.

    Args:
        key: Key of the config that names the other run.
        folder: Folder of the other run.
        theirs: Hyperparameters of its model.
        ours: Hyperparameters of the model of this run.
        datamodule: The data of this run. A datamodule of texts compares the tokenizers.
    """
    for name in DATA_OPTIONS:
        default = 0 if name == "pad_id" else None  # models without tokens do not have these options
        here, there = (plain(values.get(name, default)) for values in (ours, theirs))
        if here == there:
            continue
        if name == "class_names":
            here, there = (listed(list(names or ["numbers"])) for names in (here, there))
            problem = f"the classes are {there} in {folder}, but {here} in the data of this run"
            if here == there:
                problem = f"the classes of {folder} have another order, or other names, than those of this run"
        elif name == "columns":
            problem = f"{folder} has other columns, or other categories, than the data of this run"
        elif name == "max_length":
            if key == "model.teacher" and None not in (here, there) and here < there:
                continue  # a teacher of longer texts takes these texts, too
            problem = f"{folder} takes at most {there} tokens; set data.max_length={there}"
        elif name in ("vocab_size", "pad_id"):
            problem = _other_tokenizer(folder)
        else:
            problem = f"{name} is {as_written(there)} in {folder}, but {as_written(here)} in the data of this run"
        raise OptionError(f"{key}: {problem}")
    has_tokenizer_of = getattr(datamodule, "has_tokenizer_of", None)
    if has_tokenizer_of is not None and not has_tokenizer_of(folder):
        raise OptionError(f"{key}: {_other_tokenizer(folder)}")
    samples = (read_mapping(folder / "environment.json") or {}).get("data_sha256")
    if samples and samples != getattr(datamodule, "fingerprint", samples):
        rank_zero_only(print_line)(
            f"note: {key}: {folder} was trained on other samples. If samples of the test or validation set are among them, "
            "the metrics are too good"
        )


def plain(value: Any) -> Any:
    """Return a hyperparameter as a checkpoint contains it: a list in the place of a tuple."""
    return list(value) if isinstance(value, tuple) else value


def _other_tokenizer(folder: Path) -> str:
    return f"{folder} has another vocabulary than this run; set data.tokenizer={folder / 'tokenizer'}"
