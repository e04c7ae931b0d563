"""Repeats the table of accuracies in docs/speed.md with `study.py`, and reports the values that are not reproduced.

    python -m benchmarks.accuracy --data DIR [CONFIG ...]       such as iris_mlp mnist_mlp; all if none is given

DIR has the layout of `data.root`, plus a folder `adult` with train.csv and test.csv, and a folder `sst2` with train.tsv and
dev.tsv. A config whose data is missing is left out. Interrupted studies are resumed. A value is reproduced if it lies in the
95 % confidence interval of the new mean. A value of a single run must lie in the 95 % prediction interval of a single run.
"""

import argparse
import json
import math
import re
import subprocess
import sys
from pathlib import Path

from engine.config.signatures import PROJECT
from engine.runs.run_index import STUDY_FILE
from engine.runs.tables import print_table

ROW = re.compile(r"^\| `configs/(\w+)\.yaml` \| ([\d.]+) %(.*?)\|", re.M)
SEEDS = re.compile(r"seeds (\d+) (?:to|and) (\d+)")
NUM_SEEDS = 3  # number of seeds if the value is of a single run


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.accuracy", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "configs", nargs="*", metavar="CONFIG", help="names of configs, such as iris_mlp (default: all)"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    parser.add_argument("--model", help="folder of a pretrained BERT, for sst2_bert")
    parser.add_argument("--root", type=Path, default=Path("runs/accuracy"), help="folder of the studies")
    options = parser.parse_args()
    rows = ROW.findall((PROJECT / "docs/speed.md").read_text(encoding="utf-8"))
    found = []
    for name, text, rest in rows:
        if options.configs and name not in options.configs:
            continue
        if (data := data_options(name, options.data, options.model)) is None:
            found.append([name, f"{text} %", "", "", "no data"])
            continue
        seeds = SEEDS.search(rest)
        num_seeds = int(seeds[2]) - int(seeds[1]) + 1 if seeds else NUM_SEEDS
        mean, low, high = measure(name, num_seeds, data, options.root, is_single=seeds is None)
        state = "reproduced" if low <= float(text) / 100 <= high else "NOT REPRODUCED"
        interval = f"{low:.2%} to {high:.2%}"
        found.append([name, f"{text} %", f"{mean:.2%} ({num_seeds} seeds)", interval, state])
    print_table(["config", "docs/speed.md", "measured", "95 % interval", ""], found)


def data_options(name: str, data: Path, model: str | None) -> list[str] | None:
    """Return the overrides with the data of a config; None if it is missing."""
    kind = name.split("_")[0]
    if kind == "iris":
        return []
    if kind in ("mnist", "cifar10"):
        folder = data / ("MNIST" if kind == "mnist" else "cifar-10-batches-bin")
        return [f"data.root={data}"] if folder.is_dir() else None
    if kind == "table" and (data / "adult/train.csv").is_file():
        return [f"data.train={data}/adult/train.csv", f"data.test={data}/adult/test.csv", "data.target=income"]
    if kind in ("text", "sst2") and (data / "sst2/train.tsv").is_file():
        files = [f"data.train={data}/sst2/train.tsv", f"data.test={data}/sst2/dev.tsv", "data.text_column=sentence"]
        if kind == "text":
            return [*files, "trainer.max_epochs=3"]
        return ["data.dataset=null", *files, f"model.pretrained={model}"] if model else None
    return None


def measure(name: str, num_seeds: int, data: list[str], root: Path, is_single: bool) -> tuple[float, float, float]:
    """Return the mean test accuracy of a study, and its confidence interval or the prediction interval of a single run."""
    folder = root / name
    command = ["--config", f"configs/{name}.yaml", *data, f"run.root={root}", "--seeds", str(num_seeds), "--name", name]
    if (folder / STUDY_FILE).is_file():
        command = ["--resume", str(folder)]
    subprocess.run([sys.executable, "study.py", *command], cwd=PROJECT, check=True)
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    accuracy = study["settings"][0]["metrics"]["test/accuracy"]
    mean, half = accuracy["mean"], (accuracy["high"] or accuracy["mean"]) - accuracy["mean"]
    half *= math.sqrt(num_seeds + 1) if is_single else 1.0
    return mean, mean - half, mean + half


if __name__ == "__main__":
    main()
