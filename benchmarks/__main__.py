"""Benchmarks: compare this project with code that a user would write instead. Both sides run in turn.

    start       a command until its first step and until its end, compared with its imports (1 minute)
    loader      an epoch of MNIST batches, compared with raw indexing and DataLoaders (1 minute)
    step        an epoch of a small MLP on MNIST, compared with a bare loop and with Lightning as documented (2 minutes)
    mnist       training until 99 % on MNIST, compared with a bare loop (6 minutes)
    cifar94     training until 94 % on CIFAR-10 (or --target), compared with a bare loop; for a GPU (1 minute there)
    cifar       training steps of the CNN on CIFAR-10, compared with bare loops in bf16 and fp32 (5 minutes)
    bert        fine-tuning on SST-2, compared with Trainer of transformers; needs --model and the extra [bert] (13 minutes)
    checkpoint  saving a checkpoint, compared with Lightning (1 minute)
    pictures    time of TensorBoard's pictures in a training on MNIST (2 minutes)
    busy        training beside 0, 1 and 2 busy processes, compared with the defaults of libgomp and Linux (3 minutes)
    predict     predictions, compared with bare loops and with reading a CSV file; with --model also of texts (5 minutes)
    decode      decoding CIFAR-10 as PNG files, compared with a loop with Pillow on every core (2 minutes)
    large       training from files that are larger than the memory for data, compared with training from memory
                (15 minutes, 20 GB of disk)
    serve       requests to serve.py in batches, compared with one client without batching; needs the extra [serve]
                (2 minutes)
    ddp         two processes, compared with a bare loop with DistributedDataParallel (5 minutes)
    teacher     training steps with a teacher, compared with the step and the forward pass of the teacher (2 minutes)

The results are medians of ratios, with their ranges. On a shared machine, ratios are more reliable than seconds. They are
printed, and saved with versions and number of threads in a file for this hardware in benchmarks/results. The minutes are for
two CPU cores. OMP_NUM_THREADS sets the number of threads.
"""

import argparse
import importlib
import sys

from engine.contracts import UserError

NAMES = (
    "start",
    "loader",
    "step",
    "mnist",
    "cifar94",
    "cifar",
    "bert",
    "checkpoint",
    "pictures",
    "busy",
    "predict",
    "decode",
    "large",
    "serve",
    "ddp",
    "teacher",
)


def main() -> None:
    summary, _, rest = (__doc__ or "").partition("\n")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=summary, epilog=rest, formatter_class=formatter
    )
    parser.add_argument("names", nargs="+", choices=[*NAMES, "all"], metavar="NAME", help="a name below, or all")
    parser.add_argument("--data", default="data", help="folder of the data sets, as data.root (default: data)")
    parser.add_argument("--model", help="folder of a pretrained BERT, for `bert`")
    parser.add_argument("--pairs", type=_positive, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--target", type=float, default=0.94, help="validation accuracy of `cifar94` (default: 0.94)")
    options = parser.parse_args()
    names = NAMES if "all" in options.names else options.names
    if "bert" in names and options.model is None:
        parser.error("bert needs --model FOLDER")

    import torch

    from benchmarks.measure import BenchmarkError, describe_hardware, print_table, save_results
    from engine.terminal import quiet_lightning

    quiet_lightning()
    options.gpu = torch.cuda.is_available()
    has_failed = False
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        title = (module.__doc__ or "").splitlines()[0]
        print(f"{name}: {title} ({describe_hardware()}, {torch.get_num_threads()} threads)", flush=True)
        try:
            comparisons = module.run(options)
        except (UserError, BenchmarkError) as error:
            print(f"error: {name}: {error}\n", file=sys.stderr)
            has_failed = True
            continue
        print_table(comparisons)
        print(f"results saved in {save_results(name, comparisons)}\n")
    if has_failed:
        sys.exit(1)


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is out of range; give 1 or more")
    return value


if __name__ == "__main__":
    main()
