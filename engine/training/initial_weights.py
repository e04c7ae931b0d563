"""Starts the training from the weights of another run: ``model.start_from``.

All options that affect predictions must be equal in both runs, even if the weights have the same shapes.
"""

from typing import Any

import torch

from engine.config.errors import as_written
from engine.contracts import OptionError
from engine.inference.trained_run import TrainedRun
from engine.training import checkpoint_file
from engine.training.same_data import DATA_OPTIONS, check_same_data, plain


def load_initial_weights(model: Any, run: TrainedRun, datamodule: Any, precision: str) -> None:
    """Load the weights and the normalization of a checkpoint of another run. The calibration temperature becomes 1.

    Args:
        model: A new `LitClassifier`, on the CPU.
        run: The other run.
        datamodule: The data of this run.
        precision: Precision of the trainer.

    Raises:
        OptionError: if the data or the model differs from that of the other run.
    """
    checkpoint = checkpoint_file.read(run.checkpoint)
    ours, theirs = model.hparams, checkpoint["hyper_parameters"]
    check_same_data("model.start_from", run.folder, theirs, ours, datamodule)
    names = [name for name in ours if name not in (*DATA_OPTIONS, *model.training_options)]
    for name in sorted(names, key=lambda name: name != "architecture"):  # it decides which other options have an effect
        here, there = plain(ours[name]), plain(theirs.get(name))
        if name not in theirs or here == there:
            continue
        if name == "architecture":
            problem = f"{run.folder} has another architecture than model.pretrained"
            pretrained = as_written(theirs.get("pretrained"))
            is_same = pretrained == as_written(ours.get("pretrained"))  # the architecture of a pruned model differs
            hint = "leave out model.start_from" if is_same else f"set model.pretrained={pretrained}"
            raise OptionError(f"model.start_from: {problem}; {hint}")
        here, there = as_written(here), as_written(there)
        raise OptionError(f"model.{name}: is {here}, but {there} in {run.folder}; set model.{name}={there}")
    model.on_load_checkpoint(checkpoint)  # a run in 64-true has 64-bit weights
    model.load_state_dict({**checkpoint["state_dict"], "temperature": torch.ones(())})
    if precision != "64-true":
        model.float()
