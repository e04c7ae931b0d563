"""Starts the training from the weights of another run: ``model.start_from``.

All options that determine the function of the network must agree with those of the other run, even if its weights would fit.
"""

import json
from pathlib import Path
from typing import Any

import torch

from engine.config.errors import as_written
from engine.contracts import Classifier, OptionError, listed
from engine.inference.trained_run import TrainedRun
from engine.terminal import print_line
from engine.training import checkpoint_file

DATA_OPTIONS = ("class_names", "num_classes", "input_shape", "columns", "vocab_size", "pad_id", "max_length")
TOKENIZER = "tokenizer/tokenizer.json"


def load_initial_weights(model: Classifier, run: TrainedRun, folder: Path | None) -> None:
    """Load the weights and the normalization of the best checkpoint of a run. The model is not calibrated afterwards.

    Args:
        model: A new model, on the CPU.
        run: The other run.
        folder: Folder of this run, with its tokenizer; None in all processes but the first.

    Raises:
        OptionError: if the data or the model differs from that of the other run.
    """
    checkpoint = checkpoint_file.read(run.checkpoint)
    _compare(model, checkpoint["hyper_parameters"], run.folder)
    if folder is not None and (folder / TOKENIZER).is_file() and _vocabulary(folder) != _vocabulary(run.folder):
        hint = f"set data.tokenizer={run.folder / 'tokenizer'}"
        raise OptionError(f"model.start_from: {run.folder} has another vocabulary than this run; {hint}")
    model.load_state_dict({**checkpoint["state_dict"], "temperature": torch.ones(())})
    if folder is not None:
        print_line(f"starting from {run.checkpoint}")


def _compare(model: Classifier, theirs: dict[str, Any], folder: Path) -> None:
    """Raise an `OptionError` for the first hyperparameter that differs."""
    ours = model.hparams
    names = [*DATA_OPTIONS, *(name for name in ours if name not in (*DATA_OPTIONS, *model.training_options))]
    for name in names:
        if name not in ours or name not in theirs or _plain(ours[name]) == _plain(theirs[name]):
            continue
        here, there = (as_written(_plain(values[name])) for values in (ours, theirs))
        if name == "class_names":
            here, there = (listed(list(values[name] or ["numbers"])) for values in (ours, theirs))
        if name == "columns":
            problem = f"{folder} has other columns, or other categories, than the data of this run"
        elif name == "max_length":
            problem = f"{folder} takes at most {there} tokens; set data.max_length={there}"
        elif name in ("vocab_size", "pad_id"):
            problem = f"{folder} has another vocabulary than this run; set data.tokenizer={folder / 'tokenizer'}"
        elif name == "architecture":
            problem = f"{folder} has another architecture than model.pretrained; leave out model.start_from"
        elif name in DATA_OPTIONS:
            problem = f"{name} is {there} in {folder}, but {here} in the data of this run"
        else:
            raise OptionError(f"model.{name}: is {here}, but {there} in {folder}; set model.{name}={there}")
        raise OptionError(f"model.start_from: {problem}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _vocabulary(folder: Path) -> Any:
    """Return the tokens of the tokenizer of a run, with their numbers; None if there is no such file."""
    try:
        return json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))["model"]
    except OSError:
        return None
