"""The README, CONTRIBUTING.md and docs/: commands parse, links and names exist, figures agree with the configs.

Nothing is trained here. `tests/test_contributing.py` runs the files that the pages show.
"""

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import runs
from benchmarks.__main__ import NAMES as BENCHMARKS
from engine.command_line import parse
from engine.config.components import FIXED, NAMED, SECTIONS, component_names, find_component, section_schema
from engine.config.signatures import PROJECT
from engine.contracts import ConfigError
from tests.test_structure import PAGES

FOLDERS = ("engine", "lit_models", "datamodules", "callbacks", "configs", "tests", "benchmarks", "docs")
# files that the pages show, such as datamodules/penguins.py, and the names that they add
SHOWN_FILES = {name for text in PAGES.values() for name in re.findall(r"```(?:python|yaml)\n# (\S+\.\w+)\n", text)}
SHOWN_NAMES = {Path(name).stem for name in SHOWN_FILES} | {"adagrad"}
CONFIGS = [PROJECT / "configs" / name for name in re.findall(r"^\| `configs/([\w.]+)` ", PAGES["docs/speed.md"], re.M)]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every command of a page: lines of bash blocks, lines after a prompt, and inline code."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^\$ (.*)$", text, re.M)
    lines += [code for code in inline_code(text) if re.match(r"(for .* do )?(python|pytest|pip|bash|sbatch) ", code)]
    for line in lines:
        line = line.replace("$s", "0").replace("KEY=VALUE", "seed=0").replace("seed=S", "seed=0")
        for command in re.split(r"&&|;|\|", re.sub(r"\s#.*", "", line)) if "'" not in line else [line]:
            words = shlex.split(command.replace("; done", ""), comments=True)
            if words:
                yield words


def calls_of(*programs: str) -> list:
    """The arguments of every call of a program, with the name of the page."""
    found = []
    for page, text in PAGES.items():
        for words in command_lines(text):
            for program in programs:
                if program in words:
                    found.append((page, words[words.index(program) + 1 :]))
    return found


def cases(calls: list) -> list:
    return [pytest.param(page, words, id=f"{page}: {' '.join(words)}") for page, words in calls]


def is_shown(words: list[str]) -> bool:
    """Whether a command needs a file that a page shows. `tests/test_contributing.py` checks these commands."""
    return any(re.search(rf"\b{name}\b", " ".join(words)) for name in SHOWN_NAMES)


TRAIN = calls_of("train.py", "slurm.sbatch")
RUNS = calls_of("runs.py")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_found(page):
    commands = re.sub(r"^```text.*?^```", "", PAGES[page], flags=re.S | re.M)
    prompts = re.findall(r"^\$ .*$", PAGES[page], re.M)
    for calls, pattern in ((TRAIN, r"(?:train.py|slurm.sbatch) --"), (RUNS, r"python runs.py(?! prints)")):
        written = re.findall(pattern, "\n".join([commands, *prompts]))
        assert len(written) == len([words for name, words in calls if name == page])


@pytest.mark.parametrize(("page", "words"), cases([call for call in TRAIN if not is_shown(call[1])]))
def test_a_training_command_parses(page, words, capsys):
    # the runs that the pages name do not exist: --help ignores --resume
    words = ["configs/mnist_cnn.yaml" if word.startswith("runs/") else word for word in words]
    assert parse([*words, "--help" if "--resume" in words else "--print-config"], "") is None
    assert capsys.readouterr().out


@pytest.mark.parametrize(("page", "words"), cases(RUNS))
def test_a_command_about_runs_parses(page, words):
    words = words if words and words[0] in runs.COMMANDS else ["list", *words]
    assert runs.make_parser().parse_args(words)


def test_benchmarks_exist():
    for page, words in calls_of("-m"):
        module, *options = words
        if module.split(".")[0] != "benchmarks":
            continue
        path = (
            PROJECT / "benchmarks/__main__.py" if module == "benchmarks" else PROJECT / f"{module.replace('.', '/')}.py"
        )
        source = path.read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in options if option.startswith("--")), (page, words)
        if module == "benchmarks":
            assert options[0] in (*BENCHMARKS, "all", "NAME"), (page, words)


def test_extras_markers_and_test_files_exist():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    markers = [marker.split(":")[0].split("(")[0] for marker in project["tool"]["pytest"]["ini_options"]["markers"]]
    for page, words in calls_of("pytest"):
        if "-m" in words:
            assert words[words.index("-m") + 1] in markers, (page, words)
    for page, text in PAGES.items():
        for extra in re.findall(r"pip install -e '\.\[(\w+)\]'", text):
            assert extra in project["project"]["optional-dependencies"], (page, extra)


@pytest.mark.parametrize("page", PAGES)
def test_named_files_and_objects_exist(page):
    for code in inline_code(PAGES[page]):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./*-]*", code) and code not in SHOWN_FILES:
            assert list(PROJECT.glob(code)), code
        elif re.fullmatch(rf"({'|'.join(FOLDERS)})(\.\w+)+", code):
            assert PROJECT.joinpath(*code.split(".")).with_suffix(".py").is_file() or find(code), code


@pytest.mark.parametrize("page", PAGES)
def test_named_keys_exist(page):
    """Every inline `section.key` is a parameter of a component that the section can choose, or of its base class."""
    keys = {f"{section}.{name}" for section in FIXED for name in section_schema(section).parameters}
    for section in NAMED:
        for name in component_names(section):
            keys |= {f"{section}.{key}" for key in ("name", *find_component(section, name).parameters)}
    keys |= {f"callbacks.{name}" for name in (*component_names("callbacks"), "NAME")}
    for code in inline_code(PAGES[page]):
        for key in re.findall(rf"^'?((?:{'|'.join(SECTIONS)})\.[a-z_]+)(?:=|$)", code):
            assert key in keys, key


def find(name: str) -> object:
    """The object with a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("page", PAGES)
def test_python_code_compiles_and_its_imports_exist(page):
    for block in blocks(PAGES[page], "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_the_first_block_of_the_readme_is_the_two_commands():
    assert blocks(PAGES["README.md"], "bash")[0].splitlines() == [
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e . -c constraints.txt"
        " && python train.py --config configs/iris_mlp.yaml",
        ". .venv/bin/activate && pip install -e '.[dev]' -c constraints.txt && pytest",
    ]


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accuracies_are_those_of_the_headers(path):
    """Every table row about a config has the accuracy of the YAML file's header, and docs/speed.md has all configs."""
    accuracy = re.search(r"test accuracy (0\.\d+)", path.read_text(encoding="utf-8"))
    assert accuracy is not None
    rows = {page: re.findall(rf"^\| `configs/{path.name}` .*$", text, re.M) for page, text in PAGES.items()}
    assert len(rows["docs/speed.md"]) == 1
    for row in (row for found in rows.values() for row in found):
        assert re.search(r"\d+\.\d+ %", row).group() == f"{float(accuracy.group(1)) * 100:.2f} %"


def test_the_names_of_every_section_are_listed():
    for section in NAMED:
        row = re.search(rf"^\| `{section}` .*$", PAGES["docs/configuration.md"], re.M).group()
        assert set(re.findall(r"`(\w+)`", row.split("|")[3])) <= set(component_names(section)), section


def test_the_callbacks_of_the_table_exist():
    named = re.findall(r"^\| `(\w+)` \|.*%", PAGES["docs/tensorboard.md"], re.M)
    assert len(named) >= 8
    assert set(named) <= set(component_names("callbacks"))


def test_the_number_of_faults_is_that_of_the_table():
    table = PAGES["docs/reliability.md"].partition("| fault |")[2].splitlines()
    faults = [line for line in table[2:] if line.startswith("| ")]
    assert f"lists {len(faults)} faults" in PAGES["README.md"]


@pytest.mark.parametrize(
    "words",
    [
        ["configs/mnist_mlp.yaml", "model.hidden_size=3"],
        ["configs/mnist_mlp.yaml", "optimizer.lr=-1.0"],
        ["configs/iris_mlp.yaml", "model.name=cnn"],
        ["configs/text_bert.yaml"],
        ["configs/cifar10_cnn.yaml", "optimizer.rounds=3"],
    ],
)
def test_mistakes_are_reported_as_the_page_says(words):
    with pytest.raises(ConfigError) as refused:
        parse(["--config", *words], "")
    message = str(refused.value).partition("; models that fit")[0]  # an owner may have more models
    assert f"error: {message}" in PAGES["docs/configuration.md"]


def test_results_of_a_check_have_the_titles_of_the_code():
    code = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "engine/checks").glob("*.py"))
    titles = re.findall(r"^(?:ok|note|warning|WRONG) +(\S.*?)  ", PAGES["docs/configuration.md"], re.M)
    assert len(titles) >= 10
    assert all(f'"{title}"' in code for title in titles)
