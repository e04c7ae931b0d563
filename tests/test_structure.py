"""The house's own rules: imports run one way, files stay readable, what the README says is so."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from configs.catalogue import PROJECT

PACKAGES = ("lit_models", "datamodules", "callbacks", "configs")
SOURCES = [path for package in PACKAGES for path in sorted((PROJECT / package).glob("*.py"))]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SHIPPED = sorted((PROJECT / "configs").glob("*.yaml"))
HEAVY = {"torch", "lightning", "torchmetrics", "tensorboard", "numpy", "PIL", "transformers"}


def imported(path: Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_packages_never_import_one_another(path):
    others = {package for package in PACKAGES if package != path.parent.name} | {"train", "tests", "benchmarks"}
    if path.parent.name == "configs":
        others |= HEAVY
    assert imported(path) & others == set()


@pytest.mark.parametrize(
    "path", [*SOURCES, PROJECT / "train.py", PROJECT / "runs.py"], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_a_file_opens_with_what_it_is_for_and_can_be_read_at_one_sitting(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= (150 if path.name == "train.py" else 250)


def test_the_top_level_is_what_was_agreed():
    folders = {path.parent.name for path in PROJECT.glob("*/*.py")}
    assert folders == {*PACKAGES, "tests", "benchmarks"}
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
