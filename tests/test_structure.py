"""The layout of the project: which folder imports which, what lies at the top of each folder, pinned dependencies."""

import ast
import re
import shutil
import site
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

from engine.config import schema
from engine.config.components import FOLDERS, component_names
from engine.config.signatures import PROJECT

ROOMS = ("lit_models", "datamodules", "callbacks", "engine")
COMMANDS = ("train", "evaluate", "export", "predict", "serve", "study", "runs", "new")
SOURCES = [path for room in ROOMS for path in sorted((PROJECT / room).rglob("*.py"))]
SLOW_TO_IMPORT = {"torch", "lightning", "torchmetrics", "tensorboard", "numpy", "PIL", "transformers"}
FILES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
PAGES = {str(path.relative_to(PROJECT)): path.read_text(encoding="utf-8") for path in FILES}
BASES = {
    "data": {"classification"},
    "model": {"classifier", "optimizers", "schedules"},
    "callbacks": {"evaluation"},
}  # files at the top of a folder that hold a base class or functions


def imported_packages(path: Path) -> set[str]:
    """The packages that a file imports anywhere, except for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_imports_go_one_way(path):
    """`engine` imports no other folder. The others import `engine`, but not each other. None of them imports a command."""
    room = path.relative_to(PROJECT).parts[0]
    forbidden = {*ROOMS, *COMMANDS, "tests", "benchmarks"} - {room} - ({"engine"} if room != "engine" else set())
    if path.is_relative_to(PROJECT / "engine/config") or path.name in (
        "contracts.py",
        "terminal.py",
        "command_line.py",
    ):
        forbidden |= SLOW_TO_IMPORT
    assert imported_packages(path) & forbidden == set()


@pytest.mark.parametrize(
    "path", [*SOURCES, *(PROJECT / f"{name}.py" for name in COMMANDS)], ids=lambda path: str(path.relative_to(PROJECT))
)
def test_a_file_starts_with_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_the_entries_of_a_docstring_are_indented(path):
    """Otherwise `--help` shows only the first line of the meaning of a key."""
    documented = (ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, documented)]
    for docstring in filter(None, map(ast.get_docstring, nodes)):
        for block in re.findall(r"^(?:Args|Attributes|Raises):\n((?: .*\n|\n)+)", docstring + "\n", re.M):
            entries = re.findall(r"^    \S.*", block, re.M)
            assert [entry for entry in entries if not re.match(r"    [\w*, .`]+( \(.*\))?:", entry)] == []


@pytest.mark.parametrize("section", FOLDERS)
def test_a_file_at_the_top_of_a_folder_is_a_choice_or_a_base(section):
    folder, _ = FOLDERS[section]
    files = {path.stem for path in (PROJECT / folder).glob("*.py")} - {"__init__"}
    assert files - BASES[section] == {*component_names(section)} - {*schema.LIGHTNING_CALLBACKS}
    assert files >= BASES[section]


def test_the_folder_of_configs_has_only_yaml():
    assert {path.suffix for path in (PROJECT / "configs").iterdir() if path.name != "__pycache__"} == {".yaml"}


def test_the_top_level():
    """An owner may add scripts and folders."""
    assert {path.parent.name for path in PROJECT.glob("*/*.py")} >= {*ROOMS, "tests"}
    assert {path.stem for path in PROJECT.glob("*.py")} >= {*COMMANDS}


def test_git_ignores_no_source_file():
    """A pattern such as ``runs/`` matches engine/runs, too."""
    ignored = (PROJECT / ".gitignore").read_text(encoding="utf-8").splitlines()
    folders = {path.parent.name for room in (*ROOMS, "tests") for path in (PROJECT / room).rglob("*.py")}
    assert not {f"{folder}/" for folder in folders} & {*ignored}


def test_constraints_pin_every_dependency_and_name_no_index():
    pins = (PROJECT / "constraints.txt").read_text(encoding="utf-8")
    assert "torch==2.13.0\n" in pins
    assert "//" not in pins
    pinned = {line.split("==")[0].lower() for line in pins.splitlines() if "==" in line}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split(r"[<>=]", requirement)[0].lower() for requirement in wanted} <= pinned


def test_pyproject_installs_every_room_and_nothing_else_that_is_python():
    found = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert found["py-modules"] == []
    assert sorted(found["packages"]["find"]["include"]) == sorted(f"{room}*" for room in ROOMS)


@pytest.mark.slow
def test_an_editable_install_makes_the_rooms_importable_from_another_folder(tmp_path):
    clone, environment, elsewhere = tmp_path / "clone", tmp_path / "environment", tmp_path / "elsewhere"
    for room in ROOMS:
        shutil.copytree(PROJECT / room, clone / room)
    for name in ("pyproject.toml", "README.md", "LICENSE", "train.py"):
        shutil.copy(PROJECT / name, clone)
    (clone / "lit_models/mine").mkdir()
    (clone / "lit_models/mine/layers.py").write_text("")  # a subfolder of the owner, without __init__.py
    elsewhere.mkdir()
    venv.create(environment)
    python = environment / "bin/python"
    packages = subprocess.check_output(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], text=True
    ).strip()
    Path(packages, "installed.pth").write_text("\n".join(site.getsitepackages()))
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-e", clone]
    subprocess.run(install, check=True, timeout=300)
    code = f"import importlib; [print(importlib.import_module(n).__path__[0]) for n in {[*ROOMS, 'lit_models.mine']}]"
    out = subprocess.check_output([python, "-c", code], text=True, cwd=elsewhere, timeout=300)
    assert out.split() == [str(clone / room) for room in (*ROOMS, "lit_models/mine")]
    refused = subprocess.run([python, "-c", "import train"], cwd=elsewhere, capture_output=True, text=True, timeout=300)
    assert "No module named 'train'" in refused.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"(?:\]\(|src=\")([\w./-]*)(?:#([\w-]+))?[)\"]", PAGES[page]):
        path = (PROJECT / page).parent / target if target else PROJECT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_configs_that_exist(page):
    shown = re.findall(r"^# (configs/\w+\.yaml)$", PAGES[page], re.M)  # written by the reader of the page
    named = re.findall(r"--config (configs/\w+\.yaml)", PAGES[page])
    assert [name for name in named if name not in shown and not (PROJECT / name).exists()] == []
