"""Parses the command line of ``train.py``. Options such as ``--help`` print an answer instead of starting a run."""

import os
from dataclasses import replace

from engine.config.config import Config, load_config
from engine.config.cross_checks import check_requirements
from engine.config.errors import closest
from engine.config.explain import explain, help_text
from engine.config.yaml_reader import read_override
from engine.contracts import COMMAND_LINE, ConfigError
from engine.inference.trained_run import with_found_runs
from engine.runs.resume import check_unfinished, find_restarted, find_run, is_finished
from engine.terminal import CommandLineParser, StoreOnce, home_path, print_line

OPTIONS = ("--config", "--resume", "--check", "--print-config", "--explain", "--help")
# Overrides of ``--check``: one process, and only the output of the checks.
CHECK = (
    "trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy=auto", "trainer.enable_progress_bar=false",
    "trainer.enable_checkpointing=false",
)  # fmt: skip


def parse(argv: list[str], description: str) -> Config | None:
    """Return the experiment to train; None if the command line only asks for information, which is then printed."""
    parser = CommandLineParser(prog="python train.py", description=description, add_help=False)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change a value: optimizer.lr=0.1")
    parser.add_argument(
        "--config", metavar="FILE", type=home_path, action=StoreOnce, help="experiment to run: configs/iris_mlp.yaml"
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        type=os.path.expanduser,
        action=StoreOnce,
        help="continue the run in the folder RUN, or from the checkpoint RUN; with --config and RUN=auto, "
        "the newest unfinished run of the config",
    )
    parser.add_argument("--check", action="store_true", help="check data and model for mistakes, without training")
    parser.add_argument("--print-config", action="store_true", help="print the complete config, without training")
    parser.add_argument(
        "--explain", metavar="KEY", action=StoreOnce, help="print the meaning of a key, and where its value comes from"
    )
    parser.add_argument("-h", "--help", action="store_true", help="print this text; with --config, also every key")
    arguments, rest = parser.parse_known_args(argv)
    for option in rest:
        if option.startswith("-"):
            if close := closest(option, OPTIONS):
                raise ConfigError(COMMAND_LINE, option, "unknown option", f"did you mean {close}?")
            read_override(option)  # raises the error
    if arguments.check and arguments.resume is not None:
        raise ConfigError(COMMAND_LINE, "--check", "checks a new run", "leave out --resume")
    overrides = [*arguments.overrides, *rest]
    if arguments.resume is not None and not arguments.help:
        config: Config | None = find_run(arguments.resume, arguments.config, overrides)
    elif arguments.config is None and not arguments.help:
        files = [file for file in arguments.overrides if file.endswith(".yaml")] or ["configs/iris_mlp.yaml"]
        raise ConfigError(COMMAND_LINE, "--config", "is missing", f"write {parser.prog} --config {files[0]}")
    else:
        config = load_config(arguments.config, overrides) if arguments.config else None
    if arguments.help:
        print_line(parser.format_help() + "\n" + help_text(config))
    elif config and arguments.explain:
        print_line(explain(config, arguments.explain))
    elif config and arguments.print_config:
        print_line(config.to_yaml().rstrip("\n"))
    elif config:
        if arguments.check:
            config = replace(load_config(config.path, [*overrides, *CHECK]), is_check=True)
        if arguments.resume is None:
            config = with_found_runs(config)
        if arguments.resume is None and not arguments.check:
            config = find_restarted(config)
            if config.resumed_folder is not None and is_finished(config.resumed_folder):
                print_line(f"{config.resumed_folder} is finished")  # a process died after the end of the run
                return None
        check_unfinished(config)
        check_requirements(config)
        return config
    return None
