"""List, compare and prune runs: a table of their folders, no server.

python runs.py                              all runs, the newest first
python runs.py list mnist_cnn --status failed
python runs.py compare A B                  in what two runs differ, and what came of it
python runs.py best val/accuracy iris_mlp   the best of the finished runs
python runs.py prune --older-than 7         delete the failed and interrupted ones, after asking

A run is named by its folder, by CONFIG/NAME, or by a part of that; several by a config, or by a name with *.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all is imported: no traceback out of an import

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from engine.contracts import COMMAND_LINE, ConfigError, is_lower_better
from engine.runs import comparison, run_index
from engine.runs.run_index import STATUSES, Run, is_number
from engine.runs.tables import dump, table
from engine.terminal import count_of

COMMANDS = ("list", "compare", "best", "prune")
COLUMNS = {"accuracy": "test/accuracy", "f1": "test/f1", "loss": "test/loss", "val acc": "val/accuracy"}
TITLES = ["run", "status", *COLUMNS, "trained", "began", "why"]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(COMMAND_LINE, "", message, "python runs.py --help")


def main(argv: list[str]) -> int:
    """Run the command line `argv`; the exit code comes back."""
    try:
        _, rest = common().parse_known_args(argv)
        if not rest or rest[0] not in (*COMMANDS, "-h", "--help"):
            argv = ["list", *argv]
        arguments = parser().parse_args(argv)
        answer: int = arguments.answer(arguments)
        return answer
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def common() -> Parser:
    """What may stand before a command as well as after it, and so has its default elsewhere."""
    one = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    one.add_argument("--root", type=Path, help="folder of all runs (runs)")
    one.add_argument("--json", action="store_true", help="for programs")
    return one


def parser() -> Parser:
    summary, _, more = (__doc__ or "").partition("\n")
    one = Parser(
        prog="python runs.py", description=summary, epilog=more, parents=[common()], allow_abbrev=False,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    one.set_defaults(root=Path("runs"), json=False)
    commands = one.add_subparsers(metavar="COMMAND")
    for name, answer, text in (
        ("list", show, "runs as a table"), ("compare", compare, "differences of config and metrics"),
        ("best", best, "finished runs by a metric"), ("prune", prune, "delete runs, after asking"),
    ):  # fmt: skip
        command = commands.add_parser(name, help=text, description=text, parents=[common()], allow_abbrev=False)
        command.set_defaults(answer=answer)
        if name == "best":
            command.add_argument("metric", help="as in val/accuracy; losses, errors and seconds are best when smallest")
            order = command.add_mutually_exclusive_group()
            order.add_argument("--smallest", dest="smaller", action="store_true", default=None, help="is best")
            order.add_argument("--largest", dest="smaller", action="store_false", default=None, help="is best")
            command.add_argument("--path", action="store_true", help="print the folder of the best one alone")
        nargs = "+" if name == "compare" else "*"
        command.add_argument("runs", nargs=nargs, default=[], metavar="RUN", help="CONFIG, CONFIG/NAME or a part of it")
        if name in ("list", "prune"):
            text = "those alone; may be repeated" + (" (failed, interrupted)" if name == "prune" else "")
            command.add_argument("--status", action="append", choices=STATUSES, help=text)
        if name in ("list", "best"):
            default = 30 if name == "list" else 10
            command.add_argument("--last", "--top", type=count, default=default, help=f"so many; 0 for all ({default})")
        if name == "prune":
            command.add_argument("--older-than", type=days, default=0.0, metavar="DAYS", help="that began before")
            command.add_argument("--yes", action="store_true", help="do not ask")
    return one


def show(arguments: argparse.Namespace) -> int:
    found = chosen(arguments, arguments.status or STATUSES)
    if arguments.json:
        return dump([run.plain() for run in found])
    if not found:
        begin = f"no runs below {arguments.root}; python train.py --config configs/iris_mlp.yaml makes one"
        print(begin if not run_index.runs(arguments.root) else f"no run is {' or '.join(arguments.status)}")
        return 0
    some = found[: arguments.last or None]
    table(TITLES, [row(run) for run in some])
    if len(some) < len(found):
        print(f"... and {len(found) - len(some):,} earlier ones: --last 0 shows all")
    return 0


def chosen(arguments: argparse.Namespace, statuses: Sequence[str] = STATUSES) -> list[Run]:
    found = run_index.runs(arguments.root, arguments.runs, COMMANDS)
    return [run for run in found if run.status in statuses]


def row(run: Run) -> list[str]:
    values = [run.figures.get(name) for name in COLUMNS.values()]
    shown = [f"{value:.4f}" if is_number(value) else "" for value in values]
    seconds = run.figures.get("train_seconds")
    trained = f"{seconds:,.0f} s" if is_number(seconds) else ""
    return [run.name, run.status, *shown, trained, when(run.began), run.reason.partition(";")[0]]


def when(seconds: float) -> str:
    """Local time as `ls -l` shows it: hours only of this year."""
    then = datetime.fromtimestamp(seconds)
    return f"{then:%b %d %H:%M}" if then.year == datetime.now().year else f"{then:%Y-%m-%d}"


def compare(arguments: argparse.Namespace) -> int:
    if len(arguments.runs) < 2:
        raise ConfigError(COMMAND_LINE, "compare", "needs two runs", "python runs.py shows all")
    found = [run_index.find(arguments.root, text) for text in arguments.runs]
    parts = {
        "config": comparison.configs(found),
        "environment": comparison.environments(found),
        "metrics": run_index.figures(found),
    }
    if arguments.json:
        return dump({"runs": [run.plain() for run in found]} | {part: dict(rows) for part, rows in parts.items()})
    names = [run.folder.name for run in found]
    names = names if len({*names}) == len(names) else [run.name for run in found]
    for part, rows in parts.items():
        missing = "null" if part == "config" else ""
        lines = [[key, *(number(value, missing) for value in values), difference(part, values)] for key, values in rows]
        if lines:
            table([part, *names, "difference"], lines)
        else:
            print(f"{part}: no difference" if part != "metrics" else "no run is finished")
        print()
    return 0


def number(value: Any, missing: str) -> str:
    return missing if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def difference(part: str, values: Sequence[Any]) -> str:
    if part != "metrics" or len(values) != 2 or None in values:
        return ""
    return f"{values[1] - values[0]:+.4g}"


def best(arguments: argparse.Namespace) -> int:
    found = run_index.metric(chosen(arguments), arguments.metric)
    smaller = is_lower_better(arguments.metric) if arguments.smaller is None else arguments.smaller
    sign = 1 if smaller else -1
    found.sort(key=lambda one: (one[1] != one[1], sign * one[1]))  # what is no number comes last
    if arguments.path:
        if math.isnan(found[0][1]):
            raise ConfigError(COMMAND_LINE, arguments.metric, "is nan in every run", "there is no best one")
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(found[0][0].folder) + b"\n")  # the very name, for a shell
    elif arguments.json:
        return dump([run.plain() for run, _ in found])
    else:
        rows = [[f"{value:.6g}", str(run.folder)] for run, value in found[: arguments.last or None]]
        table([arguments.metric, "run"], rows, fits=False)  # a folder is to be copied
        if arguments.metric.startswith("test") and len(found) > 1:
            print("the best of several by the test is better there than it is: choose by val/..., and test that one")
    return 0


def prune(arguments: argparse.Namespace) -> int:
    if arguments.json and arguments.yes:
        raise ConfigError(COMMAND_LINE, "prune", "--json shows what would go, and deletes nothing", "leave out --yes")
    before = time.time() - 86400 * arguments.older_than
    found = chosen(arguments, arguments.status or ("failed", "interrupted"))
    found = [run for run in found if run.began <= before and run.status != "running"]
    if arguments.json:
        return dump([run.plain() for run in found])
    if not found:
        print("nothing to delete")
        return 0
    table(TITLES, [row(run) for run in found])
    size = sum(map(run_index.size, found)) / 1e6
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError(COMMAND_LINE, "prune", "nobody to ask", "give --yes")
        try:
            answer = input(f"delete {count_of(len(found), 'run')} ({size:.0f} MB)? [y/N] ")
        except EOFError:  # Ctrl-D
            answer = ""
            print()
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing is deleted")
            return 0
    kept = [run for run in found if not run_index.delete(run)]
    resumed = f"; {count_of(len(kept), 'run')} went on meanwhile" if kept else ""
    print(f"{count_of(len(found) - len(kept), 'run')} deleted{resumed}")
    return 0


def count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0, which is all")
    return number


def days(text: str) -> float:
    if not 0 <= (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of days")
    return number


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal may know ASCII alone
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)
