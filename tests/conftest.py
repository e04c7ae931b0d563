"""What every test gets: no network but loopback, threads pinned, small files in the real formats."""

import atexit
import importlib
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
COMPONENTS = PROJECT / "tests/components"
if COMPONENTS.is_dir():
    # `new.py` has moved components here that the tests of the engine need. All tests run in a copy of the project with them.
    copied = Path(tempfile.mkdtemp(prefix="project-"))
    atexit.register(shutil.rmtree, copied, ignore_errors=True)
    for path in PROJECT.iterdir():
        is_package = (path / "__init__.py").exists() and path.name != "tests"
        if is_package or path.name in ("configs", "docs"):
            shutil.copytree(path, copied / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, copied)
    shutil.copytree(COMPONENTS, copied, dirs_exist_ok=True)
    (copied / "tests").symlink_to(PROJECT / "tests")
    sys.path.insert(0, str(copied))
    os.chdir(copied)
    for room in ("engine", "lit_models", "datamodules", "callbacks"):
        importlib.import_module(room)  # before pytest puts the folder of the project first

WAS_TORCH_IMPORTED = "torch" in sys.modules  # then the variables have no effect
# One: models so small gain nothing by a second, and two that wait for each other are slow where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and tests need it

from engine.config import signatures
from engine.threads import available_cores
from tests import files

# components that a project may not have, and the ids of the test cases that need them
OPTIONAL = {"lit_models/bert.py": r"(?<![a-z])bert(?![a-z])", "datamodules/text.py": r"(text|sst2)_bert"}
PLAIN = "not slow and not gpu"  # the tests of a plain `pytest`
OUTCOMES: dict[tuple[str, str], list[tuple[bool, str]]] = {}  # fault and promise -> passed, what happened


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from tests of the CPU. Their results would differ from the exact results that the tests expect."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes: all cores for a plain `pytest`, and 0 (this process) for chosen tests."""
    is_plain = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    return available_cores() if is_plain and config.option.markexpr == PLAIN and available_cores() > 1 else 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of components that the project does not have."""
    for file, ids in OPTIONAL.items():
        if not (signatures.PROJECT / file).exists():
            gone = [item for item in items if needs(item, Path(file).stem, ids)]
            config.hook.pytest_deselected(items=gone)
            items[:] = [item for item in items if item not in gone]


def needs(item: pytest.Item, name: str, ids: str) -> bool:
    named = [component for marker in item.iter_markers("needs") for component in marker.args]
    return name in named or bool(re.search(ids, item.callspec.id if hasattr(item, "callspec") else ""))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Note how a fault of the table went."""
    made = yield
    report = made.get_result()
    marker = item.get_closest_marker("faults")
    if marker is not None and len(marker.args) == 2 and report.when == "call" and not report.skipped:
        happened = dict(report.user_properties).get("happened", "")
        OUTCOMES.setdefault(marker.args, []).append((report.passed, happened))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """The table of faults, but after a plain `pytest`."""
    if "not slow" in config.option.markexpr or not OUTCOMES:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line("| fault | promise | what happened |\n|---|---|---|")
    for (fault, promise), outcomes in OUTCOMES.items():
        kept = sum(passed for passed, _ in outcomes)
        details = ", ".join(dict.fromkeys(happened for _, happened in outcomes if happened))
        told = f"kept, {kept} of {len(outcomes)}" + (f": {details}" if details else "")
        terminalreporter.write_line(f"| {fault} | {promise} | {told} |")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave this machine in no test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise OSError(f"no network in tests: {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", _loopback_only(socket.getaddrinfo))


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths such as configs/iris_mlp.yaml are those of a user in the project's folder."""
    monkeypatch.chdir(signatures.PROJECT)


def _loopback_only(resolve):
    def guarded(host, *args, **kwargs):
        if host not in ("127.0.0.1", "localhost", "::1", None):
            raise socket.gaierror(f"no network in tests: {host}")
        return resolve(host, *args, **kwargs)

    return guarded


@pytest.fixture(scope="session")
def written_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `small_data` copies: written once."""
    with pytest.MonkeyPatch.context() as patch:
        return files.write_all(tmp_path_factory.mktemp("written") / "data", patch)


@pytest.fixture
def small_data(written_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `data.root` with every dataset in its real format, at a hundredth of its size; a test may spoil its copy."""
    files.expect_small_files(monkeypatch)
    return shutil.copytree(written_data, tmp_path / "data")


@pytest.fixture
def real_data() -> Path:
    """The folder of the real files; tests that need it are marked `real_data`."""
    if "DATA_ROOT" not in os.environ:
        pytest.skip("DATA_ROOT names no folder with the real files")
    return Path(os.environ["DATA_ROOT"])
