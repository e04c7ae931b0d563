"""List, compare and delete runs.

examples:
  python runs.py                               list all runs, the newest first
  python runs.py list mnist_cnn --status failed
  python runs.py compare A B                   show the differences between two runs
  python runs.py compare 'iris_mlp/*'          show one row per run, with the keys that differ
  python runs.py compare iris_mlp iris_bert    compare the means over all runs of two configs
  python runs.py best val/accuracy iris_mlp    list finished runs, the best first
  python runs.py tensorboard iris_mlp          show the curves of all runs of a config
  python runs.py prune --older-than 7          delete failed and interrupted runs
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all modules are imported: Ctrl-C shows no traceback

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.contracts import COMMAND_LINE, ConfigError, is_lower_better
from engine.runs.comparison import compare_configs, compare_environments, compare_metrics
from engine.runs.run_index import (
    STATUSES,
    STUDY_FILE,
    Run,
    delete_run,
    find_runs,
    find_single_run,
    find_studies,
    find_study,
    folder_size,
    is_group,
    is_number,
    is_own,
    metric_values,
    read_mapping,
)
from engine.runs.tables import print_json, print_table
from engine.terminal import CommandLineParser, count_of, home_path, prepare_output, print_line

COMMANDS = ("list", "compare", "best", "prune", "tensorboard")
COLUMNS = {"accuracy": "test/accuracy", "f1": "test/f1", "loss": "test/loss", "val acc": "val/accuracy"}
TITLES = ["run", "status", *COLUMNS, "trained", "began", "reason"]
NAMES = "CONFIG, CONFIG/NAME or the folder of a run; * stands for any text (default: all runs)"
NUMBER = "show N runs; 0 for all (default: %(default)s)"
MAX_COLUMNS = 4  # most runs that are shown side by side; with more runs, each run is a row
FIRST_RUN = "start one with: python train.py --config configs/iris_mlp.yaml"
PART_OF_NAME = "folder of a run, CONFIG/NAME, a part of a name that fits only one run, or a pattern with *"


def main(argv: list[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    try:
        common, rest = common_options().parse_known_args(argv)
        if not rest or rest[0] not in (*COMMANDS, "-h", "--help"):
            rest = ["list", *rest]
        if rest[0] == "tensorboard" and not {"-h", "--help"}.intersection(rest):
            names = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
            rest, common.options = names, rest[len(names) :]  # the other words are for TensorBoard
        arguments = make_parser().parse_args(rest, common)
        if arguments.study is not None:
            arguments.root = find_study(arguments.root, arguments.study)
        return arguments.run_command(arguments) or 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def common_options() -> CommandLineParser:
    """Return a parser of the options that can stand before or after a command. Their defaults are set elsewhere."""
    parser = CommandLineParser(add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--root", type=home_path, metavar="FOLDER", help="folder of all runs (default: runs)")
    parser.add_argument("--study", metavar="NAME", help="only the runs of this study, see study.py")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def make_parser() -> CommandLineParser:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = CommandLineParser(
        prog="python runs.py", description=description, epilog=examples, parents=[common_options()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(root=Path("runs"), study=None, json=False)
    commands = parser.add_subparsers(metavar="COMMAND")

    def add_command(name: str, function: Any, summary: str) -> argparse.ArgumentParser:
        description = f"{summary.capitalize()}."
        command = commands.add_parser(name, help=summary, description=description, parents=[common_options()])
        command.set_defaults(run_command=function)
        return command

    command = add_command("list", list_runs, "list runs, the newest first")
    command.add_argument("runs", nargs="*", metavar="RUN", help=NAMES)
    add_status(command, "all")
    command.add_argument("--last", "--top", type=count, default=30, metavar="N", help=NUMBER)

    command = add_command("compare", compare_runs, "show the differences in config, environment and metrics")
    command.add_argument("runs", nargs="+", metavar="RUN", help=PART_OF_NAME)
    command.epilog = (
        "Several configs or patterns are compared as groups: means, intervals, and a verdict for each metric."
    )

    command = add_command("best", rank_runs, "list finished runs by a metric, the best first")
    command.add_argument("metric", metavar="METRIC", help="such as val/accuracy")
    command.add_argument("runs", nargs="*", metavar="RUN", help=NAMES)
    order = command.add_mutually_exclusive_group()
    order.add_argument(
        "--smallest", action="store_true", help="smallest value first (default for loss, error, seconds)"
    )
    order.add_argument("--largest", action="store_true", help="largest value first (default for other metrics)")
    command.add_argument("--path", action="store_true", help="print only the folder of the best run")
    command.add_argument("--top", "--last", dest="last", type=count, default=10, metavar="N", help=NUMBER)

    command = add_command("prune", prune_runs, "delete runs, after asking for confirmation")
    command.add_argument("runs", nargs="*", metavar="RUN", help=NAMES)
    add_status(command, "failed and interrupted")
    command.add_argument("--older-than", type=days, default=0.0, metavar="DAYS", help="only runs older than DAYS days")
    command.add_argument("--yes", action="store_true", help="delete without asking")

    command = add_command("tensorboard", show_curves, "start TensorBoard with all runs selected; Ctrl-C ends it")
    command.usage = "python runs.py tensorboard [--root FOLDER] [RUN ...] [OPTION ...]"
    command.add_argument("runs", nargs="*", metavar="RUN", help=NAMES)
    command.epilog = "Options such as --port 6007 or --bind_all are passed to TensorBoard."
    return parser


def add_status(command: argparse.ArgumentParser, default: str) -> None:
    text = f"only runs with this status: {', '.join(STATUSES)}; can be repeated (default: {default})"
    command.add_argument("--status", action="append", choices=STATUSES, metavar="STATUS", help=text)


def list_runs(arguments: argparse.Namespace) -> None:
    found, studies = chosen_runs(arguments, arguments.status or STATUSES), find_studies(arguments.root)
    if arguments.json:
        print_json([run.to_dict() for run in found])
    elif found:
        shown = found[: arguments.last or None]
        print_table(TITLES, [format_row(run) for run in shown])
        if len(shown) < len(found):
            print(f"... and {len(found) - len(shown):,} earlier runs; --last 0 shows all")
    elif find_runs(arguments.root):
        print(f"no runs with status {' or '.join(arguments.status)}")
    elif not studies:
        print(f"no runs below {arguments.root}; {FIRST_RUN}")
    if not arguments.json and not arguments.runs and studies:
        print_table(
            ["study", "runs", "finished", "failed", "best mean", "began"], [format_study(each) for each in studies]
        )
        print(f"python runs.py --study {studies[0].name} shows the runs of a study")


def chosen_runs(arguments: argparse.Namespace, statuses: Sequence[str] = STATUSES) -> list[Run]:
    return [run for run in find_runs(arguments.root, arguments.runs, COMMANDS) if run.status in statuses]


def format_row(run: Run) -> list[str]:
    values = [run.metrics.get(name) for name in COLUMNS.values()]
    shown = [f"{value:.4f}" if is_number(value) else "" for value in values]
    seconds = run.metrics.get("train_seconds")
    trained = f"{seconds:,.0f} s" if is_number(seconds) else ""
    return [run.name, run.status, *shown, trained, format_time(run.began), run.reason.partition(";")[0]]


def format_study(folder: Path) -> list[str]:
    found = find_runs(folder)
    num_finished = sum(run.status == "finished" for run in found)
    report = read_mapping(folder / "study.json") or {}  # written at the end of the study
    failed = report.get("states", {}).get("failed", sum(run.status == "failed" for run in found))
    metric = report.get("metric", "")
    best = [setting for setting in report.get("settings", []) if setting.get("number") == report.get("best")]
    means = [setting.get("metrics", {}).get(metric, {}).get("mean") for setting in best]
    mean = f"{metric} {means[0]:.4f}" if means and is_number(means[0]) else ""
    began = format_time((folder / STUDY_FILE).stat().st_mtime)
    return [folder.name, f"{len(found):,}", f"{num_finished:,}", f"{failed:,}", mean, began]


def format_time(seconds: float) -> str:
    """Return local time like `ls -l`: with hours and minutes only for the current year."""
    time_ = datetime.fromtimestamp(seconds)
    return f"{time_:%b %d %H:%M}" if time_.year == datetime.now().year else f"{time_:%Y-%m-%d}"


def compare_runs(arguments: argparse.Namespace) -> None:
    if len(arguments.runs) > 1 and all(is_group(arguments.root, text) for text in arguments.runs):
        show_groups(arguments)
        return
    found = [run for text in arguments.runs for run in named_runs(arguments.root, text)]
    if len(found) < 2:
        raise ConfigError(COMMAND_LINE, "compare", "needs at least two runs", "python runs.py shows all")
    sections = {
        "config": list(compare_configs(found)),
        "environment": list(compare_environments(found)),
        "metrics": list(compare_metrics(found)),
    }
    if arguments.json:
        print_json({"runs": [run.to_dict() for run in found]} | {title: dict(rows) for title, rows in sections.items()})
        return
    names = [run.folder.name for run in found]
    names = names if len({*names}) == len(names) else [run.name for run in found]
    if len(found) > MAX_COLUMNS:
        rows = sections["config"] + [(key, values) for key, values in sections["metrics"] if key in COLUMNS.values()]
        columns = [[format_value(value, "") for value in values] for _, values in rows]
        print_table(["run", *(key for key, _ in rows)], list(map(list, zip(names, *columns, strict=True))))
        return
    for title, rows in sections.items():
        missing = "null" if title == "config" else ""
        if rows:
            shown = {key: [format_value(value, missing) for value in values] for key, values in rows}
            lines = [[key, *shown[key], format_difference(title, values)] for key, values in rows]
            print_table([title, *names, "difference"], lines)
        else:
            print(f"{title}: no differences" if title != "metrics" else "metrics: no run is finished")
        print()


def show_groups(arguments: argparse.Namespace) -> None:
    """Compare groups of runs: mean and standard deviation of each group, and a verdict for each pair of groups."""
    from engine.studies import groups as studies  # not above, so that the other commands start fast

    names = [text.rstrip("/").removesuffix("/*") for text in arguments.runs]
    names = names if len({*names}) == len(names) else arguments.runs
    found = [find_runs(arguments.root, [text]) for text in arguments.runs]
    groups = list(map(studies.read_group, names, found))
    comparisons = studies.compare_groups(groups)
    if arguments.json:
        print_json(studies.to_dict(groups, comparisons))
        return
    means = [[each.metric, *map(str, each.summaries)] for each in comparisons]
    if len(groups) == 2:
        rows = [
            [*row, *pair[2:]] for row, each in zip(means, comparisons, strict=True) for pair in studies.pair_rows(each)
        ]
        print_table(["metric", *names, "interval of the difference", "verdict"], rows, shorten=False)
    else:
        print_table(["metric", *names], means, shorten=False)
        print()
        shown = [each for each in comparisons if each.metric in COLUMNS.values()] or comparisons
        rows = [row for each in shown for row in studies.pair_rows(each)]
        print_table(["metric", "groups", "interval of the difference", "verdict"], rows, shorten=False)
    print("", *studies.group_notes(groups, comparisons), sep="\n")


def named_runs(root: Path, text: str) -> list[Run]:
    """Return the run that `text` names, or all runs of a pattern with ``*``, the oldest first."""
    return find_runs(root, [text])[::-1] if "*" in text else [find_single_run(root, text)]


def format_value(value: Any, missing: str) -> str:
    if value is None:
        return missing
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def format_difference(title: str, values: Sequence[Any]) -> str:
    if title != "metrics" or len(values) != 2 or None in values:
        return ""
    return f"{values[1] - values[0]:+.4g}"


def rank_runs(arguments: argparse.Namespace) -> None:
    metric = arguments.metric
    found = metric_values(chosen_runs(arguments), metric)
    smallest_first = arguments.smallest or (is_lower_better(metric) and not arguments.largest)
    sign = 1 if smallest_first else -1
    loss = f"{metric.partition('/')[0]}/loss"  # ranks runs with the same value

    def rank(item: tuple[Run, float]) -> tuple[bool, float, bool, float]:
        value = item[0].metrics.get(loss)
        tie = float(value or 0.0) if is_number(value) else math.nan
        return math.isnan(item[1]), sign * item[1], math.isnan(tie), tie  # NaN last

    found.sort(key=rank)
    best, value = found[0]
    if arguments.path:
        if math.isnan(value):
            raise ConfigError(COMMAND_LINE, metric, "is nan in every run", "choose another metric")
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(best.folder) + b"\n")  # the exact bytes, for a shell
    elif arguments.json:
        print_json([run.to_dict() for run, _ in found])
    else:
        shown = found[: arguments.last or None]
        differences: list[tuple[str, list[Any]]] = []
        with suppress(ConfigError):  # a config that cannot be read
            differences = [
                (key, values) for key, values in compare_configs([run for run, _ in shown]) if key != "run.name"
            ]
        columns = [[f"{value:.6g}" for _, value in shown], [str(run.folder) for run, _ in shown]]
        columns += [[format_value(value, "null") for value in values] for _, values in differences]
        titles = [metric, "run", *(key for key, _ in differences)]
        print_table(
            titles, list(map(list, zip(*columns, strict=True))), shorten=False
        )  # so that a folder can be copied
        if metric.startswith("test") and len(found) > 1:
            print("a run that is chosen by a test metric looks better than it is; choose by a metric of the validation")


def prune_runs(arguments: argparse.Namespace) -> None:
    if arguments.json and arguments.yes:
        raise ConfigError(COMMAND_LINE, "prune", "--json lists the runs and deletes nothing", "leave out --yes")
    latest = time.time() - 86400 * arguments.older_than
    found = chosen_runs(arguments, arguments.status or ("failed", "interrupted"))
    found = [run for run in found if run.began <= latest and run.status != "running"]
    foreign = [run for run in found if not is_own(run)]
    found = [run for run in found if run not in foreign]
    if arguments.json:
        print_json([run.to_dict() for run in found])
        return
    for run in foreign:
        print_line(f"not deleted: {run.folder}, because its config.yaml or .lock is not from train.py")
    if not found:
        print("no runs to delete")
        return
    print_table(TITLES, [format_row(run) for run in found])
    megabytes = sum(map(folder_size, found)) / 1e6
    if not arguments.yes and not confirm(f"delete {count_of(len(found), 'run')} ({megabytes:.0f} MB)?"):
        print("no runs were deleted")
        return
    kept = [run for run in found if not delete_run(run)]
    changed = f"; kept {count_of(len(kept), 'run')} that changed meanwhile" if kept else ""
    print(f"deleted {count_of(len(found) - len(kept), 'run')}{changed}")


def show_curves(arguments: argparse.Namespace) -> int:
    found = chosen_runs(arguments)
    if not found:
        raise ConfigError(COMMAND_LINE, "tensorboard", f"there are no runs below {arguments.root}", FIRST_RUN)
    from engine.runs.tensorboard_page import start_tensorboard

    return start_tensorboard(arguments.root, found if arguments.runs else [], arguments.options)


def confirm(question: str) -> bool:
    """Ask a question on the terminal. Ctrl-D means no."""
    if not sys.stdin.isatty():
        raise ConfigError(COMMAND_LINE, "prune", "cannot ask without a terminal", "add --yes")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0; 0 shows all")
    return number


def days(text: str) -> float:
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of days")
    return number


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare_output()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:  # a closed pipe, such as after `| head`, or a full disk
        if error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0 if isinstance(error, BrokenPipeError) else 1
        if code:
            print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)
