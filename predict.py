"""Predict the classes of new data with the model of a run.

python predict.py RUN customers.csv                       print the predictions as CSV
python predict.py RUN photos --output classes.parquet     write a CSV, JSON Lines or Parquet file
python predict.py RUN - < reviews.txt                     read from the standard input
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all modules are imported: Ctrl-C shows no traceback

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from engine.contracts import COMMAND_LINE, ConfigError, DataError
from engine.inference.command import run_command
from engine.inference.trained_run import TrainedRun, find_trained_run
from engine.terminal import CommandLineParser, count_of, home_path
from engine.training.exits import INTERRUPTED

if TYPE_CHECKING:
    from engine.contracts import InputPart, NewInputs
    from engine.inference.output import Output
    from engine.inference.predictor import Predictor
    from engine.inference.threshold import Rule

FORMATS = (".csv", ".jsonl", ".parquet")
MAX_PROCESSES = 256
STANDARD_INPUT = {"tokens": ".txt", "image": ".txt", "features": ".csv"}  # how it is read


def main(argv: list[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    arguments = make_parser().parse_args(argv)
    check_arguments(arguments)
    run = find_trained_run(arguments.run, arguments.root)
    from engine.inference.output import Columns, Output
    from engine.inference.predictor import Predictor
    from engine.terminal import quiet_lightning

    quiet_lightning()
    predictor = Predictor(run, arguments.device)
    explained = predictor.spec.modality if arguments.explain else None
    if explained == "image" and arguments.output is None:
        raise ConfigError(
            COMMAND_LINE, "--explain", "writes a picture for each row beside the output", "add --output FILE"
        )
    threshold = None if arguments.threshold is None else find_threshold(predictor, arguments.threshold)
    with input_file(arguments.input, STANDARD_INPUT[predictor.spec.modality]) as source:
        inputs = predictor.open(source)
        names = predictor.feature_names if explained == "features" else []
        name = "file" if predictor.spec.modality == "image" and source.suffix != ".npy" else "row"
        columns = Columns(name, arguments.top, arguments.skip_broken, threshold, explained, names)
        output = Output(arguments.output, columns, describe(run, arguments.input), arguments.resume)
        try:
            with output:
                predict(predictor, inputs, output, arguments)
        except KeyboardInterrupt:
            hint = "; go on with --resume" if arguments.output and arguments.input != "-" else ""
            print(f"interrupted after {count_of(output.num_rows, 'row')}{hint}", file=sys.stderr)
            return INTERRUPTED
    if arguments.output:
        print(f"{count_of(output.num_rows, 'prediction')} in {arguments.output}", file=sys.stderr)
    return 0


def make_parser() -> CommandLineParser:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = CommandLineParser(
        prog="python predict.py", description=description, epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="folder of a run, its best.ckpt, or CONFIG/NAME")
    parser.add_argument("input", metavar="INPUT", help="a table, texts, pictures, a folder, an .npy array, or -")
    parser.add_argument("--output", type=home_path, metavar="FILE", help=f"new file: {', '.join(FORMATS)}")
    parser.add_argument("--top", type=int, metavar="K", help="write the K most probable classes instead of all")
    parser.add_argument(
        "--threshold", metavar="RULE", help="for two classes: a number, f1, youden, recall>=R or precision>=P"
    )
    parser.add_argument("--explain", action="store_true", help="add how much each feature, token or pixel contributes")
    parser.add_argument("--skip-broken", action="store_true", help="write the reason for a row that cannot be read")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted prediction")
    processes = "number of processes, which share the GPUs or cores (default: 1)"
    parser.add_argument("--processes", type=int, default=1, metavar="N", help=processes)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    parser.add_argument("--root", type=home_path, default=Path("runs"), metavar="FOLDER", help="folder of all runs")
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise a `ConfigError` for an invalid argument, before the model is loaded."""
    output, source = arguments.output, Path(os.path.expanduser(arguments.input))
    if arguments.input != "-" and not source.exists():
        raise ConfigError(COMMAND_LINE, "INPUT", f"{source} does not exist")
    if output is not None and output.suffix.lower() not in FORMATS:
        raise ConfigError(COMMAND_LINE, "--output", f"{output} has an unknown format", f"use {', '.join(FORMATS)}")
    if output is not None and not output.parent.is_dir():
        raise ConfigError(COMMAND_LINE, "--output", f"the folder {output.parent} does not exist")
    if output is not None and (output.is_dir() or output.resolve() == source.resolve()):
        raise ConfigError(COMMAND_LINE, "--output", f"{output} is {'a folder' if output.is_dir() else 'the input'}")
    if arguments.top is not None and arguments.top < 1:
        raise ConfigError(COMMAND_LINE, "--top", f"{arguments.top} is below 1")
    if not 1 <= arguments.processes <= MAX_PROCESSES:
        raise ConfigError(COMMAND_LINE, "--processes", f"{arguments.processes} is not from 1 to {MAX_PROCESSES}")
    if arguments.threshold is not None:
        from engine.inference.threshold import parse_threshold

        arguments.threshold = parse_threshold(arguments.threshold)
    if arguments.resume and (output is None or arguments.input == "-"):
        raise ConfigError(COMMAND_LINE, "--resume", "needs a file as INPUT and --output")


@contextmanager
def input_file(text: str, suffix: str) -> Iterator[Path]:
    """Yield the path of the input. The standard input is copied to a temporary file first."""
    if text != "-":
        yield Path(os.path.expanduser(text))
        return
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Path(file.name)


def describe(run: TrainedRun, source: str) -> list[str]:
    """Return what predictions depend on: the checkpoint and the input."""
    paths = [str(run.checkpoint.resolve()), str(Path(os.path.expanduser(source)).resolve())]
    return [f"{path}:{os.stat(path).st_size}:{os.stat(path).st_mtime_ns}" for path in paths if os.path.exists(path)]


def find_threshold(predictor: "Predictor", rule: "float | Rule") -> float:
    """Return the decision threshold for the second class. A rule chooses it on the validation set."""
    if len(predictor.class_names) != 2:
        problem = f"needs two classes; the run has {len(predictor.class_names)}"
        raise ConfigError(COMMAND_LINE, "--threshold", problem)
    if isinstance(rule, float):
        return rule
    from PIL import Image

    from callbacks.parts.threshold_picture import draw_threshold
    from engine.inference.threshold import choose_index, threshold_curve

    try:
        with redirect_stdout(sys.stderr):  # a datamodule prints what it has read
            probabilities, labels = predictor.validate()
    except DataError as error:
        problem = f"{rule} needs the validation set of the run: {error}"
        raise ConfigError(COMMAND_LINE, "--threshold", problem, "give a number") from error
    if len(set(labels.tolist())) < 2:
        raise ConfigError(COMMAND_LINE, "--threshold", "the validation set of the run has only one of the classes")
    curve = threshold_curve(probabilities[:, 1], labels)
    chosen = choose_index(curve, rule)
    threshold = float(curve.thresholds[chosen])
    picture = predictor.run.folder / "thresholds" / f"{str(rule).replace('>=', '_')}.png"
    picture.parent.mkdir(exist_ok=True)
    title = f"{rule}: threshold {threshold:.4f}"
    Image.fromarray(draw_threshold(curve.thresholds, curve.precision, curve.recall, chosen, title)).save(picture)
    found = (
        f"precision {curve.precision[chosen]:.4f}, recall {curve.recall[chosen]:.4f} of {predictor.class_names[1]!r}"
    )
    print(f"{title} ({found} on {count_of(len(labels), 'validation sample')}; {picture})", file=sys.stderr)
    return threshold


def predict(predictor: "Predictor", inputs: "NewInputs", output: "Output", arguments: argparse.Namespace) -> None:
    """Predict all rows that have not been written, and show the progress in a terminal."""
    from tqdm import tqdm

    from engine.inference.explanations import explain
    from engine.inference.parallel import predict_in_order

    parts = rows_to_predict(inputs, output.num_rows, arguments.skip_broken)
    pictures = None if output.path is None else output.path.with_name(f"{output.path.name}.explanations")
    with tqdm(total=inputs.total, initial=output.num_rows, unit=" rows", unit_scale=True, disable=None) as progress:
        for part, found in predict_in_order(predictor, parts, arguments.processes):
            if arguments.explain:
                found = explain(predictor, part, found, output.columns.threshold, pictures, output.num_rows)
            output.write(found)
            progress.update(len(found))
        progress.total = progress.n


def rows_to_predict(inputs: "NewInputs", num_written: int, skip_broken: bool) -> "Iterator[InputPart]":
    """Yield the parts that were not written before an interruption.

    Raises:
        DataError: if a row cannot be read, unless `skip_broken` is true.
    """
    seen = 0
    for part in inputs.parts:
        seen += len(part.names)
        if seen <= num_written:
            continue
        if part.problems and not skip_broken:
            row, problem = next(iter(part.problems.items()))
            raise DataError(f"INPUT: {part.names[row]}: {problem}; --skip-broken leaves its class empty")
        yield part


if __name__ == "__main__":
    sys.exit(run_command(main))
