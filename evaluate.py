"""Test the model of a run again, or test it on new data with labels.

python evaluate.py RUN                              the test set of the run
python evaluate.py RUN data.test=march.csv          new data, as the run's datamodule reads it
python evaluate.py RUN --slices country             also the metrics for each value of a column
python evaluate.py RUN trainer.devices=2            other devices
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all modules are imported: Ctrl-C shows no traceback

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config.config import load_config
from engine.contracts import COMMAND_LINE, ConfigError, DataError
from engine.inference.command import run_command
from engine.inference.trained_run import TrainedRun, find_trained_run
from engine.terminal import CommandLineParser, home_path, print_line, quiet_lightning

SHOWN = ("accuracy", "f1", "roc_auc", "average_precision", "loss", "calibration_error")


def main(argv: list[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    arguments = make_parser().parse_args(argv)
    run = find_trained_run(arguments.run, arguments.root, arguments.overrides)
    source, others = None, arguments.overrides
    if run.config["data"].get("dataset") is None:  # otherwise the value is the name of a split
        files = [word.partition("=")[2] for word in arguments.overrides if word.startswith("data.test=")]
        others = [word for word in arguments.overrides if not word.startswith("data.test=")]
        run = find_trained_run(arguments.run, arguments.root, others)
        source = home_path(files[-1]) if files else None
    if source is not None and not source.exists():
        raise ConfigError(COMMAND_LINE, "data.test", f"{source} does not exist")
    for word in others:
        key = word.partition("=")[0]
        if key.partition(".")[0] in ("model", "optimizer", "schedule"):
            raise ConfigError(COMMAND_LINE, key, "cannot be changed: the model comes from the checkpoint")
        if key in ("data.num_folds", "data.fold"):
            raise ConfigError(COMMAND_LINE, key, "cannot be changed: the test set would contain training samples")
    if arguments.slices is not None and source is not None and source.is_dir():
        raise ConfigError(COMMAND_LINE, "--slices", f"{source} is a folder and has no columns", "give a table")
    if (name := arguments.name or (source.stem if source else "test")) != Path(name).name or name.startswith("."):
        raise ConfigError(COMMAND_LINE, "--name", f"{name!r} is not the name of a file")
    slices = None
    if arguments.slices is not None:
        source = source or table_of_test(run)
        slices = load_config(run.folder / "config.yaml", [*others, *as_labels(arguments.slices, run.config["data"])])
    quiet_lightning()
    from engine.inference.evaluation import evaluate

    try:
        result = evaluate(run, source, name, slices)
    except DataError as error:
        raise run.config.option_error("data", error) from error
    if result is not None:
        values = {metric: result.get(f"test/{metric}") for metric in SHOWN}
        print_line("  ".join(f"{metric} {value:.4f}" for metric, value in values.items() if value is not None))
        if slices is not None:
            print_slices(arguments.slices, result["slices"])
        print_line(f"{result['data']}; all metrics are in {run.folder / 'evaluations' / name}.json")
    return 0


def table_of_test(run: TrainedRun) -> Path:
    """Return the file of the run's test set, whose columns can be read.

    Raises:
        ConfigError: if the run has no such file.
    """
    data = run.config["data"]
    if "target" not in data or data.get("dataset") is not None:
        problem = f"the data of the run ({data['name']}) has no columns"
    elif data.get("test") is None:
        problem = "the test set of the run is a part of data.train"
    else:
        return home_path(data["test"])
    raise ConfigError(COMMAND_LINE, "--slices", problem, "give data.test=FILE")


def as_labels(column: str, data: Mapping[str, Any]) -> list[str]:
    """Return overrides with which a datamodule reads a column in the place of the labels."""
    unused = {"drop": "[]", "categorical": "[]", "numeric": "[]", "group_column": "null"}  # they may name the column
    words = {"target": json.dumps(column)} | {key: value for key, value in unused.items() if key in data}
    return [f"data.{key}={value}" for key, value in words.items()]


def print_slices(column: str, slices: list[dict[str, Any]]) -> None:
    """Print a table of the metrics for each value of a column."""
    from engine.runs.tables import print_table

    names = [name for name in SHOWN if any(name in found["metrics"] for found in slices)]
    rows = []
    for found in slices:
        known = found["metrics"]
        cells = ["{:.4f} ({:.4f} to {:.4f})".format(*known[name]) if name in known else "-" for name in names]
        rows.append([found["value"], f"{found['num_samples']:,}", *cells])
    print_table([column, "samples", *names], rows)


def make_parser() -> CommandLineParser:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = CommandLineParser(
        prog="python evaluate.py", description=description, epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="folder of a run, its best.ckpt, or CONFIG/NAME")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change a value of the run's config")
    parser.add_argument("--slices", metavar="COLUMN", help="also report the metrics for each value of a column")
    parser.add_argument("--name", help="name of the evaluation (default: test, or the name of the file)")
    parser.add_argument("--root", type=home_path, default=Path("runs"), metavar="FOLDER", help="folder of all runs")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
