"""The house's own rules: imports run one way, files stay readable, what the README says is so."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from engine.config import schema
from engine.config.components import FOLDERS, component_names
from engine.config.signatures import PROJECT

ROOMS = ("lit_models", "datamodules", "callbacks", "engine")
SOURCES = [path for room in ROOMS for path in sorted((PROJECT / room).rglob("*.py"))]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SHIPPED = sorted((PROJECT / "configs").glob("*.yaml"))
HEAVY = {"torch", "lightning", "torchmetrics", "tensorboard", "numpy", "PIL", "transformers"}


def imported(path: Path) -> set[str]:
    """The packages that a file imports, anywhere in it but for type checkers."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_imports_run_one_way(path):
    """`engine` imports no other room, the others import `engine` and never each other, and all of them no verb."""
    room = path.relative_to(PROJECT).parts[0]
    others = {*ROOMS, "train", "runs", "tests", "benchmarks"} - {room} - ({"engine"} if room != "engine" else set())
    if path.is_relative_to(PROJECT / "engine/config") or path.name == "contracts.py":
        others |= HEAVY
    assert imported(path) & others == set()


@pytest.mark.parametrize(
    "path", [*SOURCES, PROJECT / "train.py", PROJECT / "runs.py"], ids=lambda path: str(path.relative_to(PROJECT))
)
def test_a_file_opens_with_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("section", FOLDERS)
def test_a_file_at_the_top_of_a_room_is_a_choice_or_a_base(section):
    folder, _ = FOLDERS[section]
    files = {path.stem for path in (PROJECT / folder).glob("*.py")} - {"__init__"}
    bases = {
        "data": {"classification"},
        "model": {"classifier", "optimizers", "schedules"},
        "callbacks": {"evaluation"},
    }
    assert files - bases[section] == {*component_names(section)} - {*schema.LIGHTNING_CALLBACKS}


def test_configs_holds_yaml_alone():
    assert {path.suffix for path in (PROJECT / "configs").iterdir() if path.name != "__pycache__"} == {".yaml"}


def test_the_top_level_is_what_was_agreed():
    folders = {path.parent.name for path in PROJECT.glob("*/*.py")}
    assert folders == {*ROOMS, "tests", "benchmarks"}
    assert sorted(path.name for path in PROJECT.glob("*.py")) == ["runs.py", "train.py"]


def test_the_first_block_of_the_readme_is_the_two_commands():
    block = re.search(r"```bash\n(.*?)```", README, re.S)
    assert block is not None
    assert block.group(1).splitlines() == [
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e . -c constraints.txt"
        " && python train.py --config configs/iris_mlp.yaml",
        ". .venv/bin/activate && pip install -e '.[dev]' -c constraints.txt && pytest",
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_readme_has_every_config_with_the_accuracy_that_its_header_says(path):
    """A figure stands in two places: they must not drift apart."""
    accuracy = re.search(r"test accuracy (0\.\d+)", path.read_text(encoding="utf-8"))
    row = re.search(rf"^\|.*`configs/{path.name}`.*$", README, re.M)
    assert accuracy is not None
    assert row is not None
    assert f"{float(accuracy.group(1)) * 100:.2f} %" in row.group(0)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_file_and_every_command_that_is_named_exists(name):
    text = (PROJECT / name).read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (PROJECT / path).exists(), path
    for path in re.findall(r"--config (configs/[\w.]+)", text):
        assert (PROJECT / path).exists() or "penguins" in path, path
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (PROJECT / f"{module.replace('.', '/')}.py").exists(), module


def test_constraints_pin_every_dependency_and_name_no_index():
    pins = (PROJECT / "constraints.txt").read_text(encoding="utf-8")
    assert "torch==2.13.0\n" in pins
    assert "//" not in pins
    pinned = {line.split("==")[0].lower() for line in pins.splitlines() if "==" in line}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split(r"[<>=]", one)[0].lower() for one in wanted} <= pinned
