"""Printing for people: lines, counts and durations, and which messages of Lightning are hidden."""

import argparse
import logging
import os
import sys
import warnings
from typing import NoReturn

from engine.contracts import COMMAND_LINE, ConfigError

# Messages (by their first words) and warnings (regular expressions) that a user of this project cannot act on.
QUIET_MESSAGES = (
    "GPU available", "TPU available", "💡", "`Trainer.fit` stopped", "Loading `", "Loaded", "Restor",
    "Found current_model_state", "Using ", "Initializing distributed", "-----",
)  # fmt: skip
QUIET_WARNINGS = (
    "The number of training batches .* is smaller than the logging interval",  # every epoch is logged
    ".*LeafSpec.* is deprecated",  # Lightning's use of torch, as the next
    "torch.distributed.* is deprecated",
    "It is recommended to use `self.log",  # sync_dist: the metrics already add up all processes
    "The checkpoint was not created with WeightAveraging",  # the test needs the averaged weights only
)


class CommandLineParser(argparse.ArgumentParser):
    """Raises a `ConfigError` for a mistake on the command line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(COMMAND_LINE, "", message, f"see {self.prog} --help")


def print_line(text: str, end: str = "\n") -> None:
    """Print a line. Without a reader, continue silently: the same Ctrl-C ends the run and, before it, ``| tee log``."""
    try:
        print(text, end=end, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def count_of(number: int, name: str) -> str:
    """Return a number and a noun: ``1 run``, ``2 runs``."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format seconds for people: 0.4 s, 8.1 s, 2 min 5 s, 3 h 20 min."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def quiet_lightning() -> None:
    """Hide `QUIET_MESSAGES` and `QUIET_WARNINGS`."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(QUIET_MESSAGES))
    for message in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
