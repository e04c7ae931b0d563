"""Accuracy of configs/table_mlp.yaml in five stratified folds: ``python -m benchmarks.tables --data FOLDER NAME ...``.

The folder has a CSV file for each NAME, whose last column is the label, such as phoneme.csv of https://www.openml.org/d/1489.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

METRICS = ("test/accuracy", "test/roc_auc", "test/loss")


def main() -> None:
    from sklearn.model_selection import StratifiedKFold

    parser = argparse.ArgumentParser("python -m benchmarks.tables", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help="name of a CSV file without .csv")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the files")
    options = parser.parse_args()
    for name in options.names:
        with (options.data / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        found = []
        folds = StratifiedKFold(5, shuffle=True, random_state=0).split(rows, [row[-1] for row in rows])
        for number, (training, test) in enumerate(folds):
            with tempfile.TemporaryDirectory() as temporary:
                for split, indices in (("train", training), ("test", test)):
                    with Path(temporary, f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                        csv.writer(file).writerows([header, *(rows[i] for i in indices)])
                data = [
                    f"data.train={temporary}/train.csv",
                    f"data.test={temporary}/test.csv",
                    f"data.target={header[-1]}",
                ]
                command = ["train.py", "--config", "configs/table_mlp.yaml", *data, f"run.root={temporary}/runs"]
                subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
                (path,) = Path(temporary).glob("runs/*/*/metrics.json")
                found.append(json.loads(path.read_text(encoding="utf-8")))
            print(name, f"fold {number}", *(f"{metric} {found[-1][metric]:.4f}" for metric in METRICS), flush=True)
        print(name, "mean", *(f"{metric} {mean(one[metric] for one in found):.4f}" for metric in METRICS), flush=True)


if __name__ == "__main__":
    main()
