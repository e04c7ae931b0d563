"""Benchmarks: the same work by us and by what a user would write instead, in turn, in one run.

    start       the command, until its first step and until its end, beside the imports alone (1 minute)
    loader      an epoch of MNIST batches, beside raw indexing and DataLoaders (1 minute)
    step        an epoch of a small MLP on MNIST, beside a bare loop and Lightning as documented (2 minutes)
    mnist       MNIST to 99 %, beside a bare loop (6 minutes)
    cifar       steps of the CNN on CIFAR-10, beside bare loops in bf16 and fp32 (5 minutes)
    bert        fine-tuning on SST-2, beside transformers' Trainer; needs --model and the extra [bert] (13 minutes)
    checkpoint  saving, beside Lightning's (1 minute)
    pictures    what TensorBoard's pictures cost a training of MNIST (2 minutes)
    ddp         two processes, beside a bare loop in DistributedDataParallel (5 minutes)

Ratios are medians over the pairs, with their spread; they say more than seconds, on a machine that others share. They are
printed, and kept with versions and threads in benchmarks/results, in the file of this hardware. Minutes are those of two
cores; OMP_NUM_THREADS sets the threads.
"""

import argparse
import importlib
import sys

NAMES = ("start", "loader", "step", "mnist", "cifar", "bert", "checkpoint", "pictures", "ddp")


def main() -> None:
    summary, _, rest = (__doc__ or "").partition("\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks", description=summary, epilog=rest, formatter_class=layout)
    parser.add_argument("names", nargs="+", choices=[*NAMES, "all"], metavar="NAME", help="see below; or all")
    parser.add_argument("--data", default="data", help="folder of the data sets, their data.root (default: data)")
    parser.add_argument("--model", help="folder of a pretrained BERT, which `bert` needs")
    parser.add_argument("--pairs", type=_positive, default=5, help="how often each side runs (default: 5)")
    options = parser.parse_args()
    names = NAMES if "all" in options.names else options.names
    if "bert" in names and options.model is None:
        parser.error("bert needs --model FOLDER")

    import torch

    from benchmarks.measure import BenchmarkError, hardware, save, show
    from engine.contracts import ConfigError, DataError
    from engine.terminal import quiet_lightning

    quiet_lightning()
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


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is out of range; give 1 or more")
    return value


if __name__ == "__main__":
    main()
