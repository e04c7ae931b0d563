"""Train a config with several seeds, on all folds or with different values, and report means, intervals and differences.

python study.py --config configs/iris_mlp.yaml --seeds 10
python study.py --config configs/iris_mlp.yaml --folds 5 --seeds 3
python study.py --config configs/mnist_mlp.yaml --vary optimizer.name=adam,adamw --seeds 5
python study.py --config configs/mnist_mlp.yaml --vary 'optimizer.lr=log(1e-4, 0.1)' 'model.dropout=range(0, 0.5)' --trials 9
python study.py --resume runs/STUDY                 continue an interrupted study, also from a second machine
python study.py --resume runs/STUDY --seeds 20      extend a study with more seeds (or with more trials: --trials)
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all modules are imported: Ctrl-C shows no traceback

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.config import load_config
from engine.contracts import COMMAND_LINE, ConfigError
from engine.inference.command import run_command
from engine.inference.trained_run import with_found_runs
from engine.studies.folder import change_study, create_study
from engine.studies.jobs import (
    PlannedQueue,
    check_metric,
    compared_metric,
    forget_failures,
    read_result,
    setting_result,
)
from engine.studies.plan import METRICS, Plan, dropped_keys, make_plan, read_plan
from engine.studies.results import RunResult, StudyResult
from engine.studies.space import split_values
from engine.terminal import CommandLineParser, StoreOnce, count_of, home_path, print_line, quiet_lightning, shell_word
from engine.training.exits import Stopped

if TYPE_CHECKING:
    from engine.studies.jobs import Job
    from engine.studies.workers import Train, Worker


def main(argv: list[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    if "--slurm" in argv[:-1]:  # argparse would take the value, which begins with two dashes, for an option
        place = argv.index("--slurm")
        argv = [*argv[:place], f"--slurm={argv[place + 1]}", *argv[place + 2 :]]
    arguments = make_parser().parse_intermixed_args(argv)
    if not hasattr(os, "fork"):
        raise ConfigError(COMMAND_LINE, "", "study.py needs Linux or macOS")
    folder, num_workers = arguments.resume, arguments.workers
    earlier = folder or arguments.repeat
    if arguments.slurm is not None and shutil.which("sbatch") is None:
        hint = "run this on a login node of the cluster"
        raise ConfigError(COMMAND_LINE, "--slurm", "there is no command sbatch", hint)
    if earlier is not None:
        check_earlier(arguments)
    plan = plan_of(arguments) if earlier is None else read_plan(earlier)
    if folder is not None:
        plan = change_study(folder, seeds=arguments.seeds, trials=arguments.trials, metric=arguments.metric)
    root = Path(plan.config["run.root"]) if arguments.repeat is None else earlier.parent
    if arguments.slurm is not None:
        is_new, folder = folder is None, folder or create_study(plan, arguments.name, root)
        code = submit(folder, arguments.slurm)
        if code and is_new:
            shutil.rmtree(folder)
        return code
    train = make_train(plan)
    plan, num_workers = choose_workers(plan, num_workers, earlier is not None, train)
    if folder is None:
        folder = create_study(plan, arguments.name, root)
    else:
        forget_failures(folder)
    print_line(f"study folder: {folder}")
    threads = f", {count_of(plan.threads, 'thread')} each" if plan.threads else ""
    print_line(f"workers      {count_of(num_workers, 'run')} at the same time{threads}")
    for note in dropped_keys(plan) if earlier is None else ():
        print_line(f"note         {note}")
    try:
        result = run_study(plan, folder, num_workers, train)
    except Stopped as error:
        print(f"{error}; continue with: python study.py --resume {shell_word(folder)}", file=sys.stderr)
        return error.exit_code
    if result is None:
        print_line("other commands train the remaining runs; the last of them writes the report")
        return 0
    return show_result(result)


def submit(folder: Path, options: str) -> int:
    """Submit jobs of SLURM that work on a study. Returns the exit code of sbatch."""
    command = f"exec {shlex.join([sys.executable, sys.argv[0], '--resume', str(folder), '--workers', '1'])}"
    fixed = [f"--job-name={folder.name}", f"--output={folder}/slurm-%A_%a.out", "--signal=B:TERM@120"]
    print_line(f"study folder: {folder}")
    return subprocess.run(["sbatch", *fixed, *shlex.split(options), "--wrap", command], check=False).returncode


def make_train(plan: Plan) -> "Train":
    """Import everything that the runs need, and return the function that trains a job."""
    # count GPUs without initializing CUDA: a forked process cannot use CUDA if its parent has initialized it
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    import train
    from engine.studies.reporter import ReportValidations
    from engine.studies.workers import warm_up

    num_gpus = torch.cuda.device_count()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(num_gpus)))

    def train_job(job: "Job", report: "Callable[[int, float], bool]") -> int:
        if num_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus.split(",")[job.slot % num_gpus]
        if (job.folder / "config.yaml").is_file():
            argv = ["--resume", str(job.folder)]
        else:
            study = job.folder.parent.parent
            argv = ["--config", str(study / f"{plan.config.path.stem}.yaml"), *job.run.overrides]
            argv += [f"run.root={study}", f"run.name={job.run.name}"]  # the folder of the study may have moved
        sys.argv = [train.__file__, *argv]  # the command of the run, which its record contains
        return train.main(argv, [ReportValidations(plan.metric, report)] if job.trial is not None else [])

    quiet_lightning()
    warm_up(plan.config)
    return train_job


def choose_workers(plan: Plan, wanted: int | None, is_resumed: bool, train: "Train") -> tuple[Plan, int]:
    """Return the plan with the number of threads of each run, and the number of runs at the same time."""
    import torch

    from engine.studies.workload import chooses_threads, fastest_workers, is_measured
    from engine.threads import available_cores

    if num_gpus := torch.cuda.device_count():
        return plan, wanted or num_gpus
    if is_resumed:  # another number of threads would change the rounding of the remaining runs
        return plan, wanted or (max(1, available_cores() // plan.threads) if plan.threads else 1)
    if wanted is not None:
        is_shared = wanted > 1 and chooses_threads(plan)
        return replace(plan, threads=max(1, available_cores() // wanted)) if is_shared else plan, wanted
    if not is_measured(plan):
        return plan, 1
    print_line("measuring how many runs at the same time are fastest (--workers skips this)")
    num_workers, threads = fastest_workers(plan, train)
    return replace(plan, threads=threads), num_workers


def run_study(plan: Plan, folder: Path, num_workers: int, train: "Train") -> StudyResult | None:
    """Run what is left of a study. Returns None if other commands still train runs of the study."""
    while True:
        result = run_plan(plan, folder, num_workers, train)
        latest = read_plan(folder)
        if (latest.num_seeds, latest.num_trials, latest.compared) == (plan.num_seeds, plan.num_trials, plan.compared):
            return result
        plan = latest  # another command has changed the study meanwhile


def run_plan(plan: Plan, folder: Path, num_workers: int, train: "Train") -> StudyResult | None:
    """Run what is left of a plan. Returns None if other commands still train its runs."""
    from engine.studies.progress import Progress
    from engine.studies.workers import run_jobs

    trials, settings = [], dict(enumerate(plan.settings()))
    with Progress(plan, num_workers) as progress:
        if plan.is_search:
            from engine.studies.search import SearchQueue

            search = SearchQueue(plan, folder)
            num_later = plan.num_runs() - (plan.num_trials or 0)
            if run_jobs(search, num_workers, train, progress.begin(search, num_later).show):
                return None
            trials, settings = search.settings(), search.best_trial()
        runs = [run for i, values in settings.items() for run in plan.runs(values, plan.name_of(i, values))]
        queue = PlannedQueue(plan, folder, runs)
        for run in runs:
            check_metric(plan, folder, read_result(plan, folder, run))  # of an earlier command
        progress.begin(queue)

        def show(workers: "Sequence[Worker]", ended: RunResult | None, seconds: float) -> None:
            progress.show(workers, ended, seconds)
            if ended is not None:
                check_metric(plan, folder, ended)

        if run_jobs(queue, num_workers, train, show):
            return None
    planned = [setting_result(plan, folder, i, values) for i, values in settings.items()]
    confirmation = planned[0] if plan.is_search and planned else None
    metric = compared_metric(plan, planned)
    return StudyResult(
        folder, trials if plan.is_search else planned, plan.vary, metric, plan.is_search, plan.num_folds, confirmation,
        plan.mode_of(metric),
    )  # fmt: skip


def show_result(study: StudyResult) -> int:
    """Write and print the report. Returns the exit code: 1 if no run is finished."""
    from engine.runs.run_folder import write_json, write_text
    from engine.studies.pictures import write_tensorboard
    from engine.studies.report import report

    found = report(study)
    write_text(study.folder / "study.md", found.markdown)
    write_json(study.folder / "study.json", found.data)
    write_tensorboard(study, study.folder)
    print_line(f"\n{found.text}")
    print_line(f"report       {study.folder / 'study.md'}")
    print_line(f"TensorBoard  tensorboard --logdir {shell_word(study.folder)}")
    states = {run.state for setting in study.settings for run in setting.runs}
    return 0 if states & {"finished", "pruned"} else 1


def check_earlier(arguments: argparse.Namespace) -> None:
    """Raise a `ConfigError` if `--resume` or `--repeat` is combined with an option that the study stores."""
    if arguments.resume is not None and arguments.repeat is not None:
        raise ConfigError(COMMAND_LINE, "--repeat", "cannot be combined with --resume", "leave out one of them")
    options = ["config", "folds", "vary", "overrides", "grid", "no_pruning"]
    for option in [*options, *(["seeds", "trials", "metric"] if arguments.resume is None else ["name"])]:
        if getattr(arguments, option):
            name = "KEY=VALUE" if option == "overrides" else f"--{option.replace('_', '-')}"
            problem = f"cannot be used, because {arguments.resume or arguments.repeat} stores this option"
            raise ConfigError(COMMAND_LINE, name, problem, "leave it out")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Return the plan of the command line."""
    if arguments.config is None:
        hint = "for example: python study.py --config configs/iris_mlp.yaml --seeds 10"
        raise ConfigError(COMMAND_LINE, "--config", "is missing", hint)
    vary, single = split_values(arguments.vary or [])
    overrides = [*arguments.overrides, *single]
    config = with_found_runs(load_config(arguments.config, overrides))
    return make_plan(
        config, overrides, vary, arguments.grid, num_seeds=arguments.seeds,
        num_folds=arguments.folds, num_trials=arguments.trials, prune=not arguments.no_pruning, metric=arguments.metric,
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
    parser.add_argument("--config", metavar="FILE", type=home_path, action=StoreOnce, help="config to train")
    parser.add_argument(
        "--seeds", metavar="N", type=at_least(2),
        help="train each setting with N seeds; with --resume, a larger N adds seeds",
    )  # fmt: skip
    parser.add_argument("--folds", metavar="K", type=at_least(2), help="train each setting on K folds")
    parser.add_argument(
        "--vary", metavar="KEY=VALUES", nargs="+", action="extend",
        help="list of values, such as 64,128, or a range for a search, such as log(1e-4, 1e-1) or range(0, 0.5)",
    )  # fmt: skip
    parser.add_argument("--grid", action="store_true", help="train all combinations of the values of --vary")
    parser.add_argument(
        "--trials", metavar="N", type=at_least(1),
        help="search with N trials (needs Optuna); with --resume, a larger N adds trials",
    )  # fmt: skip
    parser.add_argument("--no-pruning", action="store_true", help="train all trials of a search to the end")
    parser.add_argument(
        "--metric", metavar="NAME", choices=METRICS,
        help=f"metric that the report compares: {', '.join(METRICS)} (default: accuracy). A search optimizes run.monitor",
    )  # fmt: skip
    parser.add_argument(
        "--workers", metavar="N", type=at_least(1), help="number of runs at the same time (default: measured)"
    )
    parser.add_argument(
        "--slurm", metavar="OPTIONS", help="submit jobs with these options of sbatch: '--array=1-8 --cpus-per-task=4'"
    )
    parser.add_argument("--name", metavar="NAME", help="name of the study's folder (default: the config and the time)")
    parser.add_argument(
        "--resume", metavar="FOLDER", type=home_path, action=StoreOnce,
        help="continue a study; a larger --seeds or --trials extends it, --metric changes the metric",
    )  # fmt: skip
    parser.add_argument(
        "--repeat", metavar="FOLDER", type=home_path, action=StoreOnce, help="start a study again, in a new folder"
    )
    return parser


def at_least(low: int):  # type: ignore[no-untyped-def]
    """Return a function that reads a number of the command line."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {low}")
        return int(text)

    return read


if __name__ == "__main__":
    sys.exit(run_command(main))
