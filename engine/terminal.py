"""Print lines, format counts and durations, and hide messages of Lightning."""

import argparse
import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from engine.contracts import COMMAND_LINE, ConfigError, escape

# Beginnings of messages, and regular expressions of warnings, that a user of this project cannot act on.
QUIET_MESSAGES = (
    "GPU available", "TPU available", "💡", "`Trainer.fit` stopped", "Loading `", "Loaded", "Restor",
    "Found current_model_state", "Using ", "Initializing distributed", "-----", "LOCAL_RANK", "You are using a CUDA device",
)  # fmt: skip
QUIET_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda", "lightning.fabric.utilities.distributed",
)  # fmt: skip
QUIET_WARNINGS = (
    "GPU available but not used",
    "The `srun` command is available",  # runs on a login node, and runs that torchrun starts, do not need it
    "The number of training batches .* is smaller than the logging interval",  # every epoch is logged
    ".*LeafSpec.* is deprecated",  # caused by Lightning, like the next warning
    "torch.distributed.* is deprecated",
    "It is recommended to use `self.log",  # `sync_dist=True` is not needed, because metrics are already synchronized
    "The checkpoint was not created with WeightAveraging",  # the test needs only the averaged weights
)


class CommandLineParser(argparse.ArgumentParser):
    """Raises a `ConfigError` for a mistake on the command line. Options cannot be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(COMMAND_LINE, "", message, f"see {self.prog} --help")


class StoreOnce(argparse.Action):
    """Stores the value of an option, and refuses a second value."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice")
        setattr(namespace, self.dest, values)


def home_path(text: str) -> Path:
    """Return a path of the command line. A shell does not expand ``~`` in ``--option=~/folder``."""
    return Path(os.path.expanduser(text))  # Path.expanduser fails if there is no such user


def prepare_output() -> None:
    """Make printing safe: `sys.stdout` is None if it is closed, and the encoding of a terminal may be ASCII."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def print_line(text: str, end: str = "\n") -> None:
    """Print a text with its control characters escaped, except line breaks and a leading carriage return.

    If the output is a closed pipe, print nothing: Ctrl-C may end ``| tee log`` before it ends the run.
    """
    start = "\r" if text.startswith("\r") else ""
    lines = text.removeprefix(start).split("\n")
    try:
        print(start + "\n".join(map(escape, lines)), end=end, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def shell_word(path: object) -> str:
    """Return a path as a word of a shell command, so that a printed command can be pasted."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def count_of(number: int, name: str) -> str:
    """Return a number and a noun: ``1 run``, ``2 runs``."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format seconds: 0.4 s, 8.1 s, 2 min 5 s, 3 h 20 min."""
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
    for name in QUIET_LOGGERS:
        logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(QUIET_MESSAGES))
    for message in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
