"""Train a config many times: with several seeds, on all folds, or with varied values, and report what may be concluded.

python study.py --config configs/iris_mlp.yaml --seeds 10
python study.py --config configs/iris_mlp.yaml --folds 5 --seeds 3
python study.py --config configs/mnist_mlp.yaml --vary optimizer.name=adam,adamw --seeds 5
python study.py --config configs/mnist_mlp.yaml --vary 'optimizer.lr=log(1e-4, 0.1)' 'model.dropout=range(0, 0.5)' --trials 9
python study.py --resume runs/STUDY                 go on after an interruption, or help on another machine
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all modules are imported: Ctrl-C shows no traceback

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.config import load_config
from engine.config.yaml_reader import read_override
from engine.contracts import COMMAND_LINE, ConfigError
from engine.inference.command import run_command
from engine.studies.folder import create_study
from engine.studies.jobs import PlannedQueue, setting_result
from engine.studies.plan import Plan, make_plan, read_plan
from engine.terminal import CommandLineParser, StoreOnce, home_path, print_line, quiet_lightning, shell_word
from engine.training.exits import Stopped

if TYPE_CHECKING:
    from engine.studies.jobs import Job
    from engine.studies.results import SettingResult
    from engine.studies.search import SearchQueue
    from engine.studies.workers import Train


def main(argv: list[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    arguments = make_parser().parse_intermixed_args(argv)
    if not hasattr(os, "fork"):
        raise ConfigError(COMMAND_LINE, "", "study.py needs Linux or macOS")
    if arguments.resume is not None:
        folder, plan = arguments.resume, read_plan(arguments.resume)
        for option in ("config", "seeds", "folds", "trials", "name"):
            if getattr(arguments, option) is not None:
                raise ConfigError(COMMAND_LINE, f"--{option}", f"{folder} has its own", "leave it out")
        if arguments.overrides or arguments.vary or arguments.grid:
            raise ConfigError(COMMAND_LINE, "--resume", "continues a study as it is", "leave out all other arguments")
    else:
        plan = plan_of(arguments)
        folder = create_study(plan, arguments.name)
    print_line(f"study folder: {folder}")
    try:
        return run_study(plan, folder, arguments.workers or 1)
    except Stopped as error:
        print(f"{error}; go on with: python study.py --resume {shell_word(folder)}", file=sys.stderr)
        return error.exit_code


def run_study(plan: Plan, folder: Path, num_workers: int) -> int:
    """Run what is left of a study, and report what it has found. Returns the exit code."""
    from engine.studies.progress import Progress
    from engine.studies.workers import run_jobs, warm_up

    quiet_lightning()
    warm_up(plan.config)
    search, settings = None, plan.settings()
    with Progress(plan, num_workers) as progress:
        train = train_job(plan, folder)
        if plan.is_search:
            from engine.studies.search import SearchQueue

            search = SearchQueue(plan, folder, num_workers)
            run_jobs(search, num_workers, train, progress.show)
            settings = [best for best in [search.best_values()] if best is not None]
        runs = [run for i, values in enumerate(settings) for run in plan.runs(values, plan.name_of(i, values))]
        run_jobs(PlannedQueue(plan, folder, runs), num_workers, train, progress.show)
    planned = [setting_result(plan, folder, i, values) for i, values in enumerate(settings)]
    return finish(plan, folder, planned, search)


def train_job(plan: Plan, folder: Path) -> "Train":
    """Return a function that trains a job in this process."""
    import train

    def train_run(job: "Job", report: "Callable[[int, float], bool]") -> int:
        from engine.studies.reporter import ReportValidations

        if (job.folder / "config.yaml").is_file():
            argv = ["--resume", str(job.folder)]
        else:
            config = folder / f"{plan.config.path.stem}.yaml"
            argv = ["--config", str(config), *job.run.overrides, f"run.name={job.run.name}"]
        return train.main(argv, [ReportValidations(plan.metric, report)] if job.trial is not None else [])

    return train_run


def finish(plan: Plan, folder: Path, planned: "list[SettingResult]", search: "SearchQueue | None") -> int:
    """Write and print the report. Returns the exit code."""
    for setting in planned:
        print_line(setting.label)
    return 0


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Return the plan of the command line."""
    if arguments.config is None:
        raise ConfigError(
            COMMAND_LINE, "--config", "is missing", "write python study.py --config configs/iris_mlp.yaml"
        )
    for override in arguments.overrides:
        read_override(override)
    config = load_config(arguments.config, arguments.overrides)
    return make_plan(
        config, arguments.overrides, arguments.vary or [], arguments.grid, num_seeds=arguments.seeds,
        num_folds=arguments.folds, num_trials=arguments.trials, prune=not arguments.no_pruning,
    )  # fmt: skip


def make_parser() -> CommandLineParser:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = CommandLineParser(
        prog="python study.py", description=description, epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="change a value of all runs: optimizer.lr=0.1"
    )
    parser.add_argument("--config", metavar="FILE", type=home_path, action=StoreOnce, help="experiment to study")
    parser.add_argument("--seeds", metavar="N", type=at_least(2), help="train each setting with N seeds")
    parser.add_argument("--folds", metavar="K", type=at_least(2), help="train each setting on K folds")
    parser.add_argument(
        "--vary", metavar="KEY=VALUES", nargs="+", action="extend",
        help="choices, such as 64,128, or a range for a search: log(1e-4, 1e-1) or range(0, 0.5)",
    )  # fmt: skip
    parser.add_argument("--grid", action="store_true", help="run all combinations of the choices")
    parser.add_argument("--trials", metavar="N", type=at_least(1), help="search with N trials (needs Optuna)")
    parser.add_argument("--no-pruning", action="store_true", help="do not stop hopeless trials of a search early")
    parser.add_argument("--workers", metavar="N", type=at_least(1), help="number of runs at the same time (default: 1)")
    parser.add_argument("--name", metavar="NAME", help="name of the study's folder (default: the config and the time)")
    parser.add_argument("--resume", metavar="FOLDER", type=home_path, action=StoreOnce, help="go on with a study")
    return parser


def at_least(low: int):  # type: ignore[no-untyped-def]
    """Return a function that reads a number of the command line."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {low}")
        return int(text)

    return read


if __name__ == "__main__":
    sys.exit(run_command(main))
