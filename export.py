"""Write the model of a run to a file for deployment, and check the file on the test set of the run.

python export.py RUN --to onnx                  a file for ONNX Runtime, which needs no PyTorch
python export.py RUN --to onnx --int8           a second file with int8 weights: smaller and faster
python export.py RUN --to torch_export          an archive of torch.export, for PyTorch without this project
python export.py RUN --to safetensors           only the weights
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all modules are imported: Ctrl-C shows no traceback

import argparse
import glob
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from engine.contracts import COMMAND_LINE, ConfigError
from engine.inference.command import run_command
from engine.inference.trained_run import find_trained_run
from engine.terminal import CommandLineParser, home_path, print_line, quiet_lightning

if TYPE_CHECKING:
    from engine.inference.quantization import Measurement

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": (), "safetensors": ("safetensors",)}


def main(argv: list[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    arguments = make_parser().parse_args(argv)
    check_arguments(arguments)
    run = find_trained_run(arguments.run, arguments.root)
    output = arguments.output or run.folder / f"exports/model{SUFFIXES[arguments.to]}"
    with new_files(output) as folder:
        show("export", f"{run.folder} to {output.name}")
        quiet_lightning()
        from engine.inference import export, model_card, quantization

        model, datamodule = export.load_model(run), export.load_data(run)
        inputs = export.first_inputs(datamodule.test_dataloader())
        description = model_card.describe(run, model, datamodule.spec, inputs)
        path, int8 = folder / output.name, folder / f"{output.stem}.int8.onnx"
        export.write(model, inputs, path, description)
        show("compare", "the file with the checkpoint on the test set")
        found = export.compare(model, export.read(path, model), datamodule.test_dataloader(), arguments.tolerance)
        export.check_agreement(found, arguments.tolerance)
        show("", export.summary(found))
        comparisons, refusal = {path: found}, None
        if arguments.int8:
            show("quantize", "the file to int8")
            quantization.quantize(path, int8, quantization.training_batches(datamodule, run.config["seed"]))
            show("measure", "accuracy and speed of PyTorch, fp32 and int8, in turn")
            test = datamodule.test_dataloader()
            comparisons[int8] = export.compare(model, export.read(int8, model), test, arguments.tolerance)
            measured = quantization.measure(model, comparisons, datamodule.test_dataloader())
            show_table(measured)
            description["measurements"] = {name: asdict(values) for name, values in measured.items()}
            description["machine"] = quantization.describe_machine()
            refusal = quantization.refusal(measured[path.name], measured[int8.name], arguments.max_loss)
            if refusal:
                int8.unlink()
        description["comparison"] = {file.name: asdict(values) for file, values in comparisons.items()}
        written = [file for file in (path, int8) if file.exists()]
        for file in written:
            model_card.write(run, model, datamodule.spec, description, file)
    for file in written:
        show("wrote", f"{output.with_name(file.name)}, with metadata (.json) and example code (.md)")
    if refusal:
        for file in output.parent.glob(f"{glob.escape(output.stem)}.int8.onnx*"):  # of an earlier export
            file.unlink()
        raise export.ExportError(refusal)
    return 0


def make_parser() -> CommandLineParser:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = CommandLineParser(
        prog="python export.py", description=description, epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="folder of a run, its best.ckpt, or CONFIG/NAME")
    parser.add_argument("--to", required=True, choices=SUFFIXES, help="format of the file")
    parser.add_argument("--int8", action="store_true", help="also write a file with int8 weights (only onnx)")
    parser.add_argument("--output", type=home_path, metavar="FILE", help="default: RUN/exports/model.onnx, .pt2, ...")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, metavar="NUMBER",
        help="largest difference of a logit from the checkpoint (default: 0.0001)",
    )  # fmt: skip
    parser.add_argument(
        "--max-loss", type=float, default=0.5, metavar="POINTS",
        help="accuracy that int8 may lose, in percentage points (default: 0.5)",
    )  # fmt: skip
    parser.add_argument("--root", type=home_path, default=Path("runs"), metavar="FOLDER", help="folder of all runs")
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise a `ConfigError` for an invalid argument, before the model is loaded."""
    output, suffix = arguments.output, SUFFIXES[arguments.to]
    if arguments.int8 and arguments.to != "onnx":
        raise ConfigError(COMMAND_LINE, "--int8", f"is not possible for {arguments.to}", "use --to onnx")
    for option in ("tolerance", "max_loss"):
        if not (value := getattr(arguments, option)) >= 0:  # also NaN
            raise ConfigError(COMMAND_LINE, f"--{option.replace('_', '-')}", f"{value} is not 0 or a positive number")
    if output is not None and output.suffix != suffix:
        raise ConfigError(COMMAND_LINE, "--output", f"{output} does not end with {suffix}")
    if output is not None and not output.parent.is_dir():
        raise ConfigError(COMMAND_LINE, "--output", f"the folder {output.parent} does not exist")
    if output is not None and output.is_dir():
        raise ConfigError(COMMAND_LINE, "--output", f"{output} is a folder")
    for package in PACKAGES[arguments.to]:
        if find_spec(package) is None:
            hint = "run: pip install -e '.[export]' -c constraints.txt"
            raise ConfigError(COMMAND_LINE, "--to", f"{arguments.to} needs the package {package}", hint)


@contextmanager
def new_files(output: Path) -> Iterator[Path]:
    """Yield an empty folder. At the end its files are moved to the folder of `output`; after an error they are deleted."""
    part, is_new = output.with_name(f"{output.name}.part"), not output.parent.exists()
    try:
        output.parent.mkdir(exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir()
    except OSError as error:
        raise ConfigError(COMMAND_LINE, "--output", f"{output} cannot be written ({error.strerror})") from None
    try:
        yield part
        for path in part.iterdir():
            os.replace(path, output.with_name(path.name))
    finally:
        shutil.rmtree(part)
        if is_new:
            with suppress(OSError):  # it is not empty after a success
                output.parent.rmdir()


def show(title: str, text: str) -> None:
    print_line(f"{title:<13}{text}")


def show_table(measured: "Mapping[str, Measurement]") -> None:
    """Print accuracy, size and speed side by side."""
    width = max(map(len, measured))
    print_line(f"{'':<{width}}{'accuracy':>10}{'megabytes':>12}{'rows per second':>18}")
    for name, values in measured.items():
        size = "" if values.num_bytes is None else f"{values.num_bytes / 1e6:.2f}"
        print_line(f"{name:<{width}}{values.accuracy:>10.2%}{size:>12}{values.rows_per_second:>18,.0f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
