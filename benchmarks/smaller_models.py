"""Trains smaller models with several methods, and compares their accuracy, size and speed.

    python -m benchmarks.smaller_models mnist cifar10 sst2 --data DIR --model BERT_FOLDER

Each row of the table is a study of several seeds, or a single run. If the command is interrupted, start it again: it resumes
them. All models are exported as ONNX and int8. The speeds of those of the first seeds are measured in turn. DIR has the
layout of `data.root`, plus a folder `sst2` with train.tsv and dev.tsv. The results are written to
ROOT/DATASET/DATASET.json, .md (a table) and .png; `--root` sets ROOT.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.accuracy import data_options
from callbacks.pruning import count_multiply_adds
from engine.config.signatures import PROJECT
from engine.drawing import BLUE, GREY, PALE, VERMILION, Canvas
from engine.inference import export, quantization
from engine.inference.trained_run import TrainedRun, find_trained_run
from engine.memory import keep_freed_memory
from engine.runs.run_index import STUDY_FILE
from engine.studies.rendering import Part, markdown_lines, text_lines
from engine.studies.statistics import summary, within_range

WIDTH, LEFT, TOP, BOTTOM, LINE = 620, 60, 24, 310, 16  # of the picture, in pixels
ROUNDS = 3  # measurements of each speed


@dataclass(frozen=True)
class Way:
    """A way to make a model, which is a row of the table.

    Attributes:
        title: Its name in the table.
        config: Name of the config.
        num_seeds: Number of seeds.
        options: Overrides. ``{0}`` is replaced by the folder of the first run of row 0, and so on.
    """

    title: str
    config: str
    num_seeds: int
    options: tuple[str, ...] = ()


def taught_by(row: int, temperature: float = 2) -> tuple[str, ...]:
    """Return the options of a student of the first run of another row."""
    return f"model.teacher={{{row}}}", "model.teacher_weight=1", f"model.teacher_temperature={temperature}"


AWARE = "callbacks.quantization={}"
HALF = ("model.start_from={0}", "callbacks.pruning.amount=0.5")
MASKED = "data.mask_fraction=0.15"
CNN = ("model.widths=[16, 64, 192]",)  # a quarter of the multiply-adds
# half of the learning rates of the config, so that the pruned network does not lose what it has learned
FINE_TUNED = ("optimizer.lr=0.06", "optimizer.head_lr=0.3", "optimizer.vector_lr=10", "trainer.max_epochs=12")
BERT = (
    "model.pretrained=null", "model.num_layers=3", "model.hidden_size=256", "model.num_heads=4", "data.tokenizer={bert}",
    "optimizer.lr=0.0005", "trainer.max_epochs=4",
)  # fmt: skip
WAYS: dict[str, list[Way]] = {
    "mnist": [
        Way("teacher: mnist_cnn", "mnist_cnn", 3),
        Way("student: mnist_mlp", "mnist_mlp", 5),
        Way("student, twice as many epochs", "mnist_mlp", 5, ("trainer.max_epochs=20",)),
        Way("student, distilled", "mnist_mlp", 5, taught_by(0)),
        Way("student, distilled, quantization-aware", "mnist_mlp", 5, (*taught_by(0), AWARE)),
        Way("teacher, 50 % pruned", "mnist_cnn", 3, HALF),
        Way("teacher, quantization-aware", "mnist_cnn", 3, (AWARE,)),
    ],
    "cifar10": [
        Way("cifar10_cnn", "cifar10_cnn", 3),
        Way("teacher of the student: cifar10_cnn, no label smoothing", "cifar10_cnn", 1, ("model.label_smoothing=0",)),
        Way("teacher of the pruned network: cifar10_cnn, 16 epochs", "cifar10_cnn", 1, ("trainer.max_epochs=16",)),
        Way("student: a quarter of the multiply-adds", "cifar10_cnn", 3, CNN),
        Way("student, distilled", "cifar10_cnn", 3, (*CNN, *taught_by(1))),
        Way("student, distilled, quantization-aware", "cifar10_cnn", 3, (*CNN, *taught_by(1), AWARE)),
        Way("cifar10_cnn, 50 % pruned, distilled", "cifar10_cnn", 3, (*HALF, *taught_by(2, 1), *FINE_TUNED)),
        Way("cifar10_cnn, quantization-aware", "cifar10_cnn", 3, (AWARE,)),
    ],
    "sst2": [
        Way("teacher: sst2_bert", "sst2_bert", 3, ("optimizer.lr=0.0002",)),
        Way("student: 3 layers from scratch", "sst2_bert", 3, BERT),
        Way("student, distilled", "sst2_bert", 3, (*BERT, *taught_by(0), MASKED)),
        Way("student, distilled, quantization-aware", "sst2_bert", 3, (*BERT, *taught_by(0), MASKED, AWARE)),
        Way("teacher, 50 % pruned", "sst2_bert", 2, ("optimizer.lr=0.0002", *HALF)),
        Way("teacher, quantization-aware", "sst2_bert", 3, ("optimizer.lr=0.0002", AWARE)),
    ],
}


def main() -> None:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.smaller_models", description=summary, epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="+", choices=WAYS, metavar="DATASET", help="mnist, cifar10 or sst2")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    parser.add_argument("--model", help="folder of a pretrained BERT, for sst2")
    parser.add_argument("--root", type=Path, default=Path("runs/smaller_models"), help="folder of the studies")
    parser.add_argument("--only", nargs="+", type=int, metavar="ROW", help="train only these rows, counted from 0")
    options = parser.parse_args()
    model = str(Path(options.model).resolve()) if options.model else None
    for name in options.names:
        root = options.root.resolve() / name
        for i, way in enumerate(WAYS[name]):
            if options.only is None or i in options.only:
                train(way, root, i, options.data.resolve(), model)
        rows = compare(WAYS[name], [runs_of(root, i) for i in range(len(WAYS[name]))])
        (root / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        draw(rows).image.save(root / f"{name}.png")
        part = table(name, rows)
        print("\n".join(text_lines(part)))
        (root / f"{name}.md").write_text("\n".join(markdown_lines(part, 0)) + "\n", encoding="utf-8")


def runs_of(root: Path, row: int) -> list[Path]:
    """Return the folders of the finished runs of a row, the first seed first."""
    return sorted(path.parent for path in (root / f"{row}").glob("*/*/metrics.json"))


def train(way: Way, root: Path, number: int, data: Path, bert: str | None) -> None:
    """Train all seeds of a way, as a study or, for one seed, as a run.

    Args:
        way: The way.
        root: Folder of all ways.
        number: Number of the way, which is the name of its folder.
        data: Folder of the data sets.
        bert: Folder of a pretrained BERT.

    Raises:
        SystemExit: if data or runs are missing, or if the folder has a study with other options.
    """
    if (overrides := data_options(way.config, data, bert)) is None:
        raise SystemExit(f"{way.config}: no data in {data}, or no --model")

    def first_run(row: re.Match[str]) -> str:
        if not (runs := runs_of(root, int(row[1]))):
            raise SystemExit(f"--only {number}: there is no run of row {row[1]} in {root}; train it first")
        return str(runs[0])

    overrides += [re.sub(r"\{(\d+)\}", first_run, option).replace("{bert}", str(bert)) for option in way.options]
    folder = root / str(number)
    command = ["--config", f"configs/{way.config}.yaml", *overrides]
    if way.num_seeds == 1:
        program, run = "train.py", folder / way.config / "seed-0"
        if (run / "metrics.json").is_file():
            return
        command = ["--resume", str(run)] if run.exists() else [*command, f"run.root={folder}", f"run.name={run.name}"]
    else:
        program, study = "study.py", folder / STUDY_FILE
        command += [f"run.root={root}", "--seeds", str(way.num_seeds), "--name", str(number)]
        if study.is_file():
            if OmegaConf.load(study).overrides != overrides:
                raise SystemExit(f"{study} has other options: delete this study, or give another --root")
            command = ["--resume", str(folder)]
    subprocess.run([sys.executable, program, *command], cwd=PROJECT, check=True)


def compare(ways: Sequence[Way], folders: Sequence[Sequence[Path]]) -> list[dict[str, Any]]:
    """Return a row for each way with runs: the accuracies of all runs, and size and speed of the first."""
    keep_freed_memory()  # as `predict.py` does
    rows: list[dict[str, Any]] = []
    files: list[tuple[Any, Path, Path]] = []
    batches: Any = None
    for way, runs in zip(ways, folders, strict=True):
        accuracies: dict[str, list[float]] = {"PyTorch": [], "int8": []}
        for i, run in enumerate(runs):
            model, fp32, int8, datamodule = exported(find_trained_run(str(run)))
            batches = datamodule.test_dataloader()
            found = export.compare(model, export.read(int8, model), batches, math.inf)
            accuracies["PyTorch"].append(found.checkpoint_accuracy)
            accuracies["int8"].append(found.accuracy)
            if i == 0:
                files.append((model, fp32, int8))
                inputs, labels = next(iter(batches))
                total = count_multiply_adds(model, dict(model.hparams), model.normalized(inputs))
                sizes = {"fp32": fp32.stat().st_size, "int8": int8.stat().st_size}
                rows.append({"way": way.title, "multiply_adds": total / len(labels), "bytes": sizes})
        if runs:
            rows[-1]["accuracies"] = accuracies
    speeds: list[dict[str, list[float]]] = [{"PyTorch": [], "fp32": [], "int8": []} for _ in files]
    for _ in range(ROUNDS):
        for of_row, (model, fp32, int8) in zip(speeds, files, strict=True):
            functions = [model, export.read(fp32, model), export.read(int8, model)]
            for measured, function in zip(of_row.values(), functions, strict=True):
                # one by one, because the idle threads of an ONNX Runtime session use the cores for a while
                measured += quantization.rows_per_second([function], batches)
    for row, of_row in zip(rows, speeds, strict=True):
        row["rows_per_second"] = {name: statistics.median(measured) for name, measured in of_row.items()}
    return rows


def exported(run: TrainedRun) -> tuple[Any, Path, Path, Any]:
    """Return the model of a run, its ONNX file, its int8 file, and its data. Files newer than the checkpoint are reused."""
    model, datamodule = export.load_model(run), export.load_data(run)
    fp32, int8 = run.folder / "model.onnx", run.folder / "model.int8.onnx"
    if not int8.exists() or int8.stat().st_mtime < run.checkpoint.stat().st_mtime:
        export.write(model, export.first_inputs(datamodule.test_dataloader()), fp32, {})
        unfinished = run.folder / "model.unfinished.onnx"
        quantization.quantize(fp32, unfinished, quantization.training_batches(datamodule, run.config["seed"]))
        unfinished.replace(int8)
    return model, fp32, int8, datamodule


def interval(values: Sequence[float]) -> str:
    """Return the mean and its 95 % interval as text."""
    found = within_range(summary(values), 1.0)
    if found.low is None or found.high is None:
        return f"{found.mean:.2%}"
    return f"{found.mean:.2%} ({found.low:.2%} to {found.high:.2%})"


def table(name: str, rows: Sequence[dict[str, Any]]) -> Part:
    """Return the table of a data set."""
    titles = ["model", "million multiply-adds", "MB, fp32 and int8", "rows per second: PyTorch", "ONNX", "int8"]
    cells = [
        [
            row["way"],
            f"{row['multiply_adds'] / 1e6:.2f}",
            " and ".join(f"{size / 1e6:.2f}" for size in row["bytes"].values()),
            *(f"{speed:,.0f}" for speed in row["rows_per_second"].values()),
            *(interval(values) for values in row["accuracies"].values()),
        ]
        for row in rows
    ]  # fmt: skip
    return Part(f"Smaller models: {name}", titles=[*titles, "accuracy", "accuracy of int8"], rows=cells)


def draw(rows: Sequence[dict[str, Any]]) -> Canvas:
    """Return a picture of accuracy against speed, for fp32 (blue) and int8 (red)."""
    canvas = Canvas(WIDTH, BOTTOM + 60 + LINE * len(rows))
    points = [
        (row["rows_per_second"][speed], sum(values) / len(values), f"{i}", colour)
        for i, row in enumerate(rows, 1)
        for speed, kind, colour in (("fp32", "PyTorch", BLUE), ("int8", "int8", VERMILION))
        for values in [row["accuracies"][kind]]
    ]
    speeds, heights = [math.log10(point[0]) for point in points], [point[1] for point in points]
    low, high = min(speeds) - 0.1, max(speeds) + 0.1
    bottom, top = min(heights) - 0.002, max(heights) + 0.002

    def place(speed: float, accuracy: float) -> tuple[float, float]:
        x = LEFT + (math.log10(speed) - low) / (high - low) * (WIDTH - LEFT - 20)
        return x, BOTTOM - (accuracy - bottom) / (top - bottom) * (BOTTOM - TOP)

    for i in range(5):
        height = bottom + (top - bottom) * i / 4
        y = place(10**low, height)[1]
        canvas.pen.line([(LEFT, y), (WIDTH - 20, y)], PALE)
        canvas.write(LEFT - 6, y, f"{height:.1%}", GREY, anchor="rm")
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        for step in (1, 2, 5):
            if low <= math.log10(step * 10**exponent) <= high:
                x = place(step * 10**exponent, bottom)[0]
                canvas.pen.line([(x, TOP), (x, BOTTOM)], PALE)
                canvas.write(x, BOTTOM + 6, f"{step * 10**exponent:,.0f}", GREY, anchor="ma")
    title = "rows per second with ONNX Runtime: fp32 (blue), int8 (red)"
    canvas.write((LEFT + WIDTH) / 2, BOTTOM + 36, title, anchor="mm")
    canvas.write(LEFT, 4, "test accuracy")
    taken = [place(speed, mean) for speed, mean, *_ in points]  # places without room for a number
    for speed, mean, number, colour in points:
        x, y = place(speed, mean)
        canvas.pen.ellipse([x - 4, y - 4, x + 4, y + 4], colour)
        spots = [
            (x + dx * step, y + dy * step) for step in (11, 22, 33) for dx, dy in ((0, -1), (1, 0), (-1, 0), (0, 1))
        ]
        x, y = next((spot for spot in spots if not any(math.dist(spot, other) < 11 for other in taken)), spots[0])
        taken.append((x, y))
        canvas.write(x, y, number, colour, size=11, anchor="mm", halo=1)
    for i, row in enumerate(rows, 1):
        canvas.write(LEFT, BOTTOM + 44 + LINE * i, f"{i}  {row['way']}", size=11, anchor="lm")
    return canvas


if __name__ == "__main__":
    main()
