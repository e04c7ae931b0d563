"""Kills runs at random moments: ``python -m tests.kills COUNT SEED FOLDER [PRECISION]`` prints one line of JSON per trial.

``smaller`` in the place of the precision makes smaller models: by distillation, pruning and quantization.

The process imports everything once and forks for each run, so that a run takes one second instead of six. Each trial starts
a run, kills it with SIGKILL after a random time, resumes it, and compares the result with a run that was not killed. Every
fourth trial kills the resumed run, too. In 32-true, the precision if none is given, the last trials kill at moments that are
rarely hit at random: right after each of the first files was renamed, between the test and the writing of its metrics, and
while a run goes back to its best checkpoint.
"""

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import train
from tests import files
from tests.exactness import differences

HAS_TEXT = Path("configs/text_bert.yaml").is_file()  # a project may have dropped it
WARM = [
    "lightning.pytorch.callbacks", "torch.utils.tensorboard", "engine.training.checkpoints", "engine.runs.run_record",
    "datamodules.mnist", "lit_models.cnn", "datamodules.iris", "lit_models.mlp",
    *(["transformers", "datamodules.text", "lit_models.bert"] if HAS_TEXT else []),
]  # fmt: skip
OPTIONS = {
    "mnist_cnn": [
        "model.widths=[8, 8, 8]", "data.batch_size=32", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=5",
        "schedule={name: plateau}", "trainer.max_epochs=6", "run.checkpoint_every_steps=3",
    ],
    "text_bert": [
        "model.hidden_size=16", "model.num_layers=1", "model.num_heads=2", "model.dropout=0.1", "data.max_tokens=300",
        "data.test=null", "data.text_column=text", "trainer.max_epochs=4", "run.checkpoint_every_steps=5",
    ],
    "iris_mlp": [
        "callbacks.ema_weight_averaging={decay: 0.9}", "model.dropout=0.1", "trainer.max_epochs=null",
        "trainer.max_steps=40", "trainer.log_every_n_steps=5", "run.checkpoint_every_steps=7",
    ],
}  # fmt: skip
# further options of smaller models; {other} is a run without them
SMALLER = {
    "mnist_cnn": [
        "model.start_from={other}", "callbacks.pruning={}", "model.teacher={other}", "callbacks.quantization={epochs: 4}",
    ],
    "text_bert": ["model.start_from={other}", "callbacks.pruning={amount: 0.3}", "callbacks.quantization={epochs: 3}"],
    "iris_mlp": ["model.teacher={other}"],
}  # fmt: skip
if not HAS_TEXT:
    del OPTIONS["text_bert"]


def main(count: int, seed: int, root: Path, precision: str = "32-true") -> None:
    for module in WARM:  # before any fork, because killing a run during its imports tests nothing
        importlib.import_module(module)
    patch = pytest.MonkeyPatch()
    data = files.write_all(root / "data", patch)
    given = {
        "mnist_cnn": [f"data.root={data}"],
        "iris_mlp": [],
        "text_bert": [f"data.train={data}/text/train.tsv", f"data.cache={data}/cache"],
    }
    whole = {}
    if precision == "bf16-true":
        del OPTIONS["iris_mlp"]  # the project refuses this precision for features
    for name, options in OPTIONS.items():
        bits = "32-true" if precision == "smaller" else precision
        argv = ["--config", f"configs/{name}.yaml", f"trainer.precision={bits}", *options, *given[name]]
        assert run([*argv, f"run.root={root}/first"], None) == 0  # slower than the next one, because it creates caches
        if precision == "smaller":
            (other,) = (root / f"first/{name}").iterdir()
            argv += [option.replace("{other}", str(other)) for option in SMALLER[name]]
        started = time.monotonic()
        assert run([*argv, f"run.root={root}/whole"], None) == 0
        (folder,) = (root / f"whole/{name}").iterdir()
        whole[name] = (argv, time.monotonic() - started, folder)
    draw = random.Random(seed)
    trials: list[tuple[str, list[float | str]]] = []
    for trial in range(count):
        name = list(OPTIONS)[trial % len(OPTIONS)]
        trials.append((name, [draw.uniform(0.02, 1.0) * whole[name][1] for _ in range(2 if trial % 4 == 0 else 1)]))
    if precision == "32-true":
        trials += [("iris_mlp", [f"file {number}"]) for number in range(1, 9)] + [("iris_mlp", ["figures"])]
        trials += [("text_bert", ["file 12", f"best, file {number}"]) for number in range(1, 5) if HAS_TEXT]
    for i, (name, moments) in enumerate(trials):
        argv, _, reference = whole[name]
        runs = root / f"trial{i}"
        codes = [run([*argv, f"run.root={runs}"], moments[0])]
        while codes[0] != -signal.SIGKILL or any(runs.glob("*/*/metrics.json")):  # the run ended before
            shutil.rmtree(runs)
            moments[0] *= 0.8  # type: ignore[operator]
            codes = [run([*argv, f"run.root={runs}"], moments[0])]
        found = list(runs.glob("*/*/config.yaml"))
        for moment in [*moments[1:], None]:
            if not found:  # it was killed before it had a folder
                codes.append(run([*argv, f"run.root={runs}"], None))
                found = list(runs.glob("*/*/config.yaml"))
            elif not (found[0].parent / "metrics.json").exists():
                goes_back = isinstance(moment, str) and moment.startswith("best, ")
                checkpoint = found[0].parent / ("checkpoints/best.ckpt" if goes_back else "")
                codes.append(run(["--resume", str(checkpoint)], moment.removeprefix("best, ") if goes_back else moment))
        result = {"trial": i, "config": name, "killed": moments, "codes": codes}
        print(json.dumps(result | {"different": differences(reference, found[0].parent)}), flush=True)


def run(argv: list[str], kill: float | str | None) -> int:
    """The exit code of `train.py` in a process of its own; -9 if it was killed.

    Args:
        argv: Arguments of the command.
        kill: When to kill it: after a number of seconds, after "file N" was renamed, or before the "figures" of the test are
            written; None for never.
    """
    child = os.fork()
    if child == 0:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(sys.stderr if kill is None else nowhere),
        ):
            if isinstance(kill, str):
                kill_itself(kill)
            os._exit(train.main(argv))
    if isinstance(kill, float):
        time.sleep(kill)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_itself(when: str) -> None:
    """Let this process kill itself at a place in the code."""
    from engine.runs.run_record import RunRecord

    rename, renamed = os.replace, []

    def replace(*paths: Any) -> None:
        rename(*paths)
        renamed.append(paths)
        if when == f"file {len(renamed)}":
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    if when == "figures":
        RunRecord.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
