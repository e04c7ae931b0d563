"""Test the model of a run again, or test it on new data with labels.

python evaluate.py RUN                              the test set of the run
python evaluate.py RUN data.test=march.csv          new data, as the run's datamodule reads it
python evaluate.py RUN trainer.devices=2            other devices
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all modules are imported: Ctrl-C shows no traceback

import argparse
import sys
from pathlib import Path

from engine.contracts import COMMAND_LINE, ConfigError, DataError
from engine.inference.command import run_command
from engine.inference.trained_run import find_trained_run
from engine.terminal import CommandLineParser, home_path, print_line, quiet_lightning

SHOWN = ("accuracy", "f1", "roc_auc", "average_precision", "loss", "calibration_error")


def main(argv: list[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    arguments = make_parser().parse_args(argv)
    run = find_trained_run(arguments.run, arguments.root, arguments.overrides)
    source = None
    if run.config["data"].get("dataset") is None:  # otherwise the value is the name of a split
        files = [word.partition("=")[2] for word in arguments.overrides if word.startswith("data.test=")]
        others = [word for word in arguments.overrides if not word.startswith("data.test=")]
        run = find_trained_run(arguments.run, arguments.root, others)
        source = home_path(files[-1]) if files else None
    if source is not None and not source.exists():
        raise ConfigError(COMMAND_LINE, "data.test", f"{source} does not exist")
    if (name := arguments.name or (source.stem if source else "test")) != Path(name).name or name.startswith("."):
        raise ConfigError(COMMAND_LINE, "--name", f"{name!r} is not the name of a file")
    quiet_lightning()
    from engine.inference.evaluation import evaluate

    try:
        result = evaluate(run, source, name)
    except DataError as error:
        raise run.config.option_error("data", error) from error
    if result is not None:
        values = {metric: result.get(f"test/{metric}") for metric in SHOWN}
        print_line("  ".join(f"{metric} {value:.4f}" for metric, value in values.items() if value is not None))
        print_line(f"{result['data']}; all metrics are in {run.folder / 'evaluations' / name}.json")
    return 0


def make_parser() -> CommandLineParser:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = CommandLineParser(
        prog="python evaluate.py", description=description, epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="folder of a run, its best.ckpt, or CONFIG/NAME")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change a value of the run's config")
    parser.add_argument("--name", help="name of the evaluation (default: test, or the name of the file)")
    parser.add_argument("--root", type=home_path, default=Path("runs"), metavar="FOLDER", help="folder of all runs")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
