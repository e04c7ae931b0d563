"""new.py: projects of an owner, and first files that train at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import new
from engine.config import components, signatures
from tests import projects

pytestmark = pytest.mark.skipif(not (components.PROJECT / ".git").exists(), reason="copies the files that git knows")
QUICK = [
    "pytest", "-q", "-p", "no:cacheprovider", "tests/test_structure.py", "tests/test_contracts.py", "tests/test_matrix.py",
    "tests/engine/config", "tests/engine/runs", "tests/engine/training/test_resume.py",
]  # fmt: skip


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A copy of the project, in which new.py works."""
    folder = projects.copy_files(tmp_path / "project")
    for module in (new, components, signatures):
        monkeypatch.setattr(module, "PROJECT", folder)
    return folder


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["model"], "model: the name is missing; write new.py model NAME"),
        (["modle", "x"], "invalid choice: 'modle'"),
        (["model", "Res Net"], "Res Net: is not a name; use lower-case letters"),
        (["model", "class"], "class: is not a name"),
        (["model", "../x"], "../x: is not a name"),
        (["model", "1x"], "1x: is not a name"),
        (["model", "mlp"], "mlp: exists already; choose another name"),
        (["model", "classifier"], "classifier: exists already"),
        (["data", "iris"], "iris: exists already"),
        (["callback", "early_stopping"], "early_stopping: exists already"),
        (["--name", "a b"], "--name: 'a b' is not a name"),
        (["--name", ""], ""),
        (["--name", "x", "--keep", "mpl,iris"], "--keep: unknown name 'mpl'; available: bert"),
        (["--name", "x", "--keep", "mlp"], "--keep: no dataset for mlp is kept; add a dataset"),
        (["--name", "x", "--keep", "iris"], "--keep: no model for iris is kept; add a model"),
        (["--name", "x", "--keep", "cnn,iris"], "no dataset for cnn is kept"),
        (["--name", "x", "--keep", "mlp,iris,text"], "no model for text is kept"),
        (["--name", "x", "--keep", "mlp,,iris"], "unknown name ''"),
        (["model", "x", "y"], "unrecognized arguments: y"),
        (["model", "parts"], "parts: exists already"),
        (["--keep", "mlp,iris"], "--keep: the project has no name; add --name NAME"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_changes_nothing(argv, expected, copy, capsys):
    before = sorted(copy.rglob("*"))
    code = new.main(argv)
    printed = capsys.readouterr().err
    assert (code, printed.count("\n")) == ((2, 1) if expected else (0, 0))
    assert expected in printed
    assert sorted(copy.rglob("*")) == before


def test_changes_that_are_not_committed_are_refused(copy, capsys):
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    assert new.main(["--name", "flowers", "--keep", "mlp,iris"]) == 2
    assert "there are uncommitted changes; commit first" in capsys.readouterr().err
    assert (copy / "lit_models/bert.py").exists()
    assert new.main(["--name", "flowers", "--keep", "mlp,iris", "--yes"]) == 0
    assert not (copy / "lit_models/bert.py").exists()
    assert new.main(["--name", "trees", "--keep", "mlp,iris", "--yes"]) == 2
    assert "new.py --name has already changed this project" in capsys.readouterr().err


@pytest.mark.parametrize("git", ["missing", "no repository"])
def test_without_git_nothing_is_removed(git, copy, capsys, monkeypatch):
    if git == "missing":
        monkeypatch.setenv("PATH", "")
    assert new.main(["--name", "flowers", "--keep", "mlp,iris"]) == 2
    assert "the files are not in a git repository; commit first" in capsys.readouterr().err
    assert (copy / "lit_models/bert.py").exists()


def test_configs_without_names_are_kept(copy):
    (copy / "configs/seeds.yaml").write_text("seed: 1\n", encoding="utf-8")
    (copy / "configs/aaa.yaml").write_text("- [\n", encoding="utf-8")
    assert new.main(["model", "resnet"]) == 0
    assert new.main(["--name", "flowers", "--keep", "mlp,iris", "--yes"]) == 0
    assert sorted(path.stem for path in copy.glob("configs/*")) == ["aaa", "iris_mlp", "seeds"]


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["mlp,iris", "cnn,cifar", "bert,text"])
def test_pages_of_a_project_name_only_what_is_left(keep, copy):
    assert new.main(["--name", "flowers", "--keep", keep, "--yes"]) == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_structure.py"]
    done = subprocess.run([*command, "-k", "links or commands"], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{2 * (2 + len(list(copy.glob('docs/*.md'))))} passed" in done.stdout


def test_a_project_has_what_was_kept_and_its_name(copy):
    assert new.main(["--name", "flowers", "--keep", "mlp, iris", "--owner", "Ada Lovelace", "--yes"]) == 0
    found = {str(path.relative_to(copy)) for path in copy.rglob("*.*") if path.is_file()}
    assert {name for name in found if name.startswith("configs/")} == {"configs/iris_mlp.yaml"}
    assert {
        "lit_models/mlp.py",
        "datamodules/iris.py",
        "datamodules/iris.csv",
        "tests/components/lit_models/cnn.py",
    } <= found
    assert not [name for name in found if "bert" in name or "text" in name or name.startswith("benchmarks/")]
    assert "datamodules/parts/tokens.py" not in found  # only texts use it
    assert "Ada Lovelace" in (copy / "LICENSE").read_text(encoding="utf-8")
    assert (copy / "README.md").read_text(encoding="utf-8").startswith("# flowers\n")
    pyproject = (copy / "pyproject.toml").read_text(encoding="utf-8")
    assert 'name = "flowers"' in pyproject
    assert "transformers" not in pyproject
    assert '"pyarrow>=' in pyproject
    assert '"pillow>=' in pyproject


def test_without_keep_all_components_stay(copy):
    assert new.main(["--name", "flowers", "--yes"]) == 0
    assert (copy / "lit_models/bert.py").exists()
    assert (copy / "configs/sst2_bert.yaml").exists()
    assert not (copy / "tests/components").exists()
    assert not (copy / "benchmarks").exists()


@pytest.mark.slow
def test_first_files_train_at_once(tmp_path):
    copy = projects.copy_files(tmp_path / "project")
    for kind in new.KINDS:
        done = subprocess.run([sys.executable, "new.py", kind, "res_net"], cwd=copy, capture_output=True, text=True)
        wrote, train_with = done.stdout.splitlines()
        assert wrote.endswith("/res_net.py")
        command = train_with.removeprefix("train with: python ").replace("'", "").split()
        options = ["trainer.max_epochs=5", f"run.root=runs/{kind}"]
        done = subprocess.run([sys.executable, *command, *options], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (figures,) = copy.glob(f"runs/{kind}/*/*/metrics.json")
        assert json.loads(figures.read_text(encoding="utf-8"))["test/accuracy"] > 0.5
    assert [line for line in projects.check(copy, projects.CHECKS[:3]) if line.startswith("FAILED")] == []


@pytest.mark.slow
def test_a_project_passes_its_checks(tmp_path):
    """`python -m tests.projects` runs all checks of projects with each model and dataset."""
    folder = projects.make_project(tmp_path / "project", "cnn,cifar")
    said = projects.check(folder, [*projects.CHECKS[:3], QUICK])
    assert [line for line in said if line.startswith("FAILED")] == []
    assert "skipped" not in said[-1]


@pytest.mark.slow
def test_the_template_with_the_shown_files_passes_its_checks(tmp_path):
    folder = projects.copy_files(tmp_path / "project")
    projects.add_examples(folder)
    said = projects.check(folder, [*projects.CHECKS[:3], [*QUICK, "tests/test_docs.py", "tests/test_train.py"]])
    assert [line for line in said if line.startswith("FAILED")] == []
