"""Benchmarks: the same work by us and by what a user would write instead, in turn, in one run.

    python -m benchmarks NAME ... [--data data] [--pairs 5]

Ratios are medians over the pairs, with their spread; they say more than seconds, on a machine that others share.
"""

import argparse
import importlib
import sys

NAMES = ("start", "loader", "step", "mnist", "cifar", "bert", "checkpoint", "ddp")


def main() -> None:
    summary, _, rest = (__doc__ or "").partition("\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks", description=summary, epilog=rest, formatter_class=layout)
    parser.add_argument("names", nargs="+", choices=[*NAMES, "all"], metavar="NAME", help=", ".join((*NAMES, "all")))
    parser.add_argument("--data", default="data", help="folder of the data sets (default: data)")
    parser.add_argument("--model", help="folder of a pretrained BERT, which `bert` needs")
    parser.add_argument("--pairs", type=int, default=5, help="how often each side runs (default: 5)")
    options = parser.parse_args()
    names = NAMES if "all" in options.names else options.names
    if "bert" in names and options.model is None:
        parser.error("bert needs --model FOLDER")

    import torch

    from benchmarks.measure import BenchmarkError, hardware, save, show
    from callbacks.progress_line import quieten
    from configs import ConfigError
    from datamodules.classification import DataError

    quieten()
    options.gpu = torch.cuda.is_available()
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        title = (module.__doc__ or "").splitlines()[0]
        print(f"{name}: {title} ({hardware()}, {torch.get_num_threads()} threads)", flush=True)
        try:
            rows = module.run(options)
        except (ConfigError, DataError, BenchmarkError) as error:
            sys.exit(f"error: {name}: {error}")
        show(rows)
        print(f"written to {save(name, rows)}\n")


if __name__ == "__main__":
    main()
