"""Makes a project with each model and each dataset that fit, and runs its checks: ``python -m tests.projects [NAME ...]``.

NAME is MODEL,DATA or `examples`, the whole template with the files that README.md and CONTRIBUTING.md show.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from engine.config.signatures import PROJECT

PAIRS = (
    "mlp,iris", "mlp,table", "mlp,mnist", "mlp,cifar", "cnn,mnist", "cnn,cifar", "bert,iris", "bert,mnist", "bert,cifar",
    "bert,text",
)  # fmt: skip
CHECKS = (
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["mypy"],
    ["pytest", "-q", "-p", "no:cacheprovider"],
)


def copy_files(folder: Path) -> Path:
    """Copy all files that git does not ignore to the new `folder`."""
    names = subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, text=True
    ).splitlines()
    for name in names:
        if (PROJECT / name).is_file():  # otherwise it is deleted, but the deletion is not committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((PROJECT / name).read_bytes())
    return folder


def make_project(folder: Path, keep: str) -> Path:
    """Copy the template to `folder`, and let `new.py` keep some models and datasets."""
    command = [sys.executable, "new.py", "--name", "flowers", "--keep", keep, "--yes"]
    subprocess.run(command, cwd=copy_files(folder), check=True, stdout=subprocess.DEVNULL)
    return folder


def add_examples(folder: Path) -> None:
    """Write the files that README.md and CONTRIBUTING.md show."""
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (PROJECT / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```(?:python|yaml)\n(.*?)^```", text, re.S | re.M):
            first, _, rest = block.partition("\n")
            if path := re.fullmatch(r"# (\S+\.\w+)", first):
                (folder / path[1]).write_text(block, encoding="utf-8")
            elif path := re.fullmatch(r"# append to (\S+\.\w+)", first):
                with (folder / path[1]).open("a", encoding="utf-8") as file:
                    file.write(f"\n\n{rest}")


def check(folder: Path, checks: Iterable[list[str]] = CHECKS) -> list[str]:
    """Run the checks of a project. Returns the last line of each, and everything that a failed check prints."""
    said = []
    for command in checks:
        done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)
        output = done.stdout + done.stderr
        said.append(
            output.strip().splitlines()[-1] if done.returncode == 0 else f"FAILED {' '.join(command)}\n{output}"
        )
    return said


def main(names: list[str]) -> int:
    """Check the projects, and return the number of those that failed."""
    num_failed = 0
    for name in names or [*PAIRS, "examples"]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "project"
            if name == "examples":
                add_examples(copy_files(folder))
                subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)  # as in a clone
            else:
                make_project(folder, name)
            said = check(folder)
        num_failed += any(line.startswith("FAILED") for line in said)
        print(f"{name}: {'; '.join(said)}", flush=True)
    return num_failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
