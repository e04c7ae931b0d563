"""What a command costs before it does any work: in turn with what it cannot do without.

    python -m benchmarks.startup [--rounds 5]

`iris_mlp` is a whole process (100 epochs, test, files), beside `import lightning`; `--help` and a mistake are beside
`import omegaconf`.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

TRAIN = ["train.py", "--config", "configs/iris_mlp.yaml"]


def seconds(*arguments: str) -> float:
    """Wall-clock time of one Python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="What a command costs before it does any work.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each one runs")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "import lightning": ["-c", "import lightning"],
            "iris_mlp": [*TRAIN, f"run.root={folder}"],
            "import omegaconf": ["-c", "import omegaconf"],
            "--help": ["train.py", "--help"],
            "--help of a config": [*TRAIN, "--help"],
            "a mistake": [*TRAIN, "optimizer.l=1"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds + 1):
            for name, arguments in commands.items():
                times[name].append(seconds(*arguments))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first round fills caches
    for name, value in median.items():
        beside = "import lightning" if name == "iris_mlp" else "import omegaconf"
        print(f"{name:<20} {value:6.2f} s   {value / median[beside]:5.2f} times {beside}")


if __name__ == "__main__":
    main()
