"""``argv`` -> the experiment to train, or the answer to what was asked about it."""

import argparse
import difflib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from engine.config.config import Config, load_config
from engine.config.cross_checks import check_requirements
from engine.config.explain import explain, help_text
from engine.config.yaml_reader import COMMAND_LINE, read_override
from engine.contracts import ConfigError
from engine.runs.resume import check_unfinished, find_run

OPTIONS = ("--config", "--resume", "--check", "--print-config", "--explain", "--help")
# what a check sets: one process, and no output but its own
CHECK = (
    "trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy=auto", "trainer.enable_progress_bar=false",
    "trainer.enable_checkpointing=false",
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Answers a wrong command line like a wrong config: in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(COMMAND_LINE, "", message, "python train.py --help")


def show(text: str) -> None:
    """Print it, as far as somebody reads: `| head` stops."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(argv: list[str], description: str) -> Config | None:
    """The experiment to train, or None if it was only to be shown.

    Raises:
        ConfigError: whatever is wrong with the command line or the config.
    """
    parser = Parser(prog="python train.py", description=description, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", type=Path, help="the experiment, a YAML file of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set a key of it, as in optimizer.lr=0.1")
    parser.add_argument(
        "--resume",
        metavar="RUN|auto",
        help="go on with the run in folder RUN, or with the newest unfinished one of FILE",
    )
    parser.add_argument("--check", action="store_true", help="say in seconds what is wrong with it, keep nothing")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config, train nothing")
    parser.add_argument("--explain", metavar="KEY", help="where KEY's value comes from, what it means and accepts")
    parser.add_argument("-h", "--help", action="store_true", help="this; with --config, every key of the experiment")
    arguments, rest = parser.parse_known_args(argv)
    for option in rest:
        if option.startswith("-"):
            if close := difflib.get_close_matches(option, OPTIONS, 1, 0.75):
                raise ConfigError(COMMAND_LINE, option, "unknown option", f"did you mean {close[0]}?")
            read_override(option)  # which says why not
    if arguments.check and arguments.resume is not None:
        raise ConfigError(COMMAND_LINE, "--check", "is for a run that begins", "leave out --resume")
    overrides = [*arguments.overrides, *rest]
    if arguments.resume is not None and not arguments.help:
        config: Config | None = find_run(arguments.resume, arguments.config, overrides)
    elif arguments.config is None and not arguments.help:
        files = [one for one in arguments.overrides if one.endswith(".yaml")] or ["configs/iris_mlp.yaml"]
        raise ConfigError(COMMAND_LINE, "--config", "is missing", f"python train.py --config {files[0]}")
    else:
        config = load_config(arguments.config, overrides) if arguments.config else None
    if arguments.help:
        show(parser.format_help() + "\n" + help_text(config))
    elif config and arguments.explain:
        show(explain(config, arguments.explain))
    elif config and arguments.print_config:
        show(config.to_yaml().rstrip("\n"))
    elif config:
        check_unfinished(config)
        check_requirements(config)
        return replace(load_config(config.path, [*overrides, *CHECK]), checks=True) if arguments.check else config
    return None
