"""Datamodules of the user with ordinary DataLoaders: they train, are checked, and resume exactly in mid-epoch."""

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

import datamodules
import export
import train
from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.contracts import DataError
from engine.training.exits import explain_error
from tests.contracts import DataModuleContract
from tests.exactness import differences, signalled, start
from tests.runs import IRIS, figures

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork"),  # from Python 3.12 on
]

LOADERS = '''
    @property
    def spec(self) -> DataSpec:
        return DataSpec("features", (2,), ("left", "right", "top"))

    def train_dataloader(self) -> DataLoader:
        return self.loader(90, 0, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader(30, 1, shuffle=False)

    def test_dataloader(self) -> DataLoader:
        return self.loader(30, 2, shuffle=False)

    def loader(self, count: int, seed: int, shuffle: bool) -> DataLoader:
        """Points (N, 2) around the corners of a triangle, and the numbers of the corners."""
        labels = torch.arange(count) % 3
        corners = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])[labels]
        inputs = corners + 0.5 * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
        dataset = TensorDataset(inputs, labels)
        num_workers = self.num_workers if shuffle else 0
        return DataLoader(dataset, batch_size=9, shuffle=shuffle, num_workers=num_workers)
'''

PLAIN = f'''
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from engine.contracts import DataSpec


class Plain(LightningDataModule):
    """A LightningDataModule that derives from no class of the project."""

    modality = "features"

    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers
{LOADERS}'''

DERIVED = f'''
import torch
from torch.utils.data import DataLoader, TensorDataset

from datamodules.classification import ClassificationDataModule, DataSpec


class Derived(ClassificationDataModule):
    """A subclass of the project's base class without a `load` method."""

    modality = "features"

    def __init__(self, num_workers: int = 0, **options) -> None:
        super().__init__(**options)
        self.num_workers = num_workers
{LOADERS}'''

LOADED = f"""{DERIVED}
    def load(self):
        return (self.loader(count, seed, shuffle=False).dataset.tensors for count, seed in ((90, 0), (30, 2)))
"""

IMAGES = PLAIN.replace("features", "image").replace("(2,)", "(1, 8, 8)")

CONFIG = """\
data:
  name: own
model:
  name: mlp
  hidden_sizes: [8]
  dropout: 0.2
optimizer:
  name: adam
  lr: 0.05
schedule:
  name: cosine
trainer:
  accelerator: cpu
  max_epochs: 3
"""

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes datamodules/own.py into another project folder, and returns the path of a config for it."""
    project = tmp_path / "project"
    (project / "datamodules").mkdir(parents=True)
    for path in (
        *PROJECT.glob("datamodules/*.py"),
        *(PROJECT / room for room in ("callbacks", "engine", "lit_models")),
    ):
        (project / path.relative_to(PROJECT)).symlink_to(path)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("engine", "train") and getattr(module, "PROJECT", None) == PROJECT:
            monkeypatch.setattr(module, "PROJECT", project)
    monkeypatch.setattr(datamodules, "__path__", [*datamodules.__path__, str(project / "datamodules")])

    def write_files(source: str) -> str:
        (project / "datamodules/own.py").write_text(source, encoding="utf-8")
        (project / "own.yaml").write_text(CONFIG, encoding="utf-8")
        importlib.invalidate_caches()
        return str(project / "own.yaml")

    yield write_files
    sys.modules.pop("datamodules.own", None)


@pytest.fixture(params=[PLAIN, DERIVED], ids=["plain", "derived"])
def config(request: pytest.FixtureRequest, write: Write) -> str:
    return write(request.param)


def test_it_trains_validates_and_tests(config, tmp_path, capsys):
    code, folder = start(tmp_path / "run", "--config", config)
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    assert "own: 2 features, 3 classes, 10 training batches of its own DataLoaders, not normalized\n" in printed.out
    assert "3 epochs, 10 steps per epoch, 9 samples per step\n" in printed.out
    found = figures(folder)
    assert found["steps"] == 30
    assert found["test/accuracy"] > 0.8
    assert found["val/accuracy"] > 0.8


@pytest.mark.parametrize(
    ("source", "options", "done"),
    [
        pytest.param(PLAIN, [], 5, id="plain"),
        pytest.param(DERIVED, [], 5, id="derived"),
        pytest.param(PLAIN, ["data.num_workers=2"], 5, id="2-workers", marks=pytest.mark.slow),
        pytest.param(PLAIN, ["trainer.accumulate_grad_batches=2"], 6, id="accumulation", marks=pytest.mark.slow),
    ],
)
def test_it_resumes_in_mid_epoch(source, options, done, write, tmp_path, monkeypatch, capsys):
    argv = ["--config", write(source), "trainer.max_epochs=2", "trainer.log_every_n_steps=1", *options]
    _, whole = start(tmp_path / "whole", *argv)
    with signalled(monkeypatch, lambda trainer: trainer.current_epoch == 1 and trainer.fit_loop.batch_idx == 4):
        code, stopped = start(tmp_path / "stopped", *argv)
    assert code == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM in epoch 2, after {done} of 10 batches" in capsys.readouterr().err
    assert train.main(["--resume", str(stopped)]) == 0
    assert f"skipping the first {done} batches of this epoch" in capsys.readouterr().out
    assert differences(stopped, whole) == []


def test_check(config, tmp_path, capsys):
    assert train.main(["--config", config, f"run.root={tmp_path / 'runs'}", "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [(line[:8].strip(), line[9:30].strip()) for line in lines] == [
        ("note", "data"), ("note", "device"), ("ok", "input scale"), ("ok", "initial loss"), ("ok", "gradients"),
        ("ok", "overfits one batch"), ("ok", "learning rate"), ("note", "expected time"),
    ]  # fmt: skip
    assert lines[0].endswith(" loads its data itself, so rows and labels are not checked")
    assert not (tmp_path / "runs").exists()


def test_contract(config):
    contract = DataModuleContract()
    contract.test_batches_match_the_spec("own", {}, Path("data"))
    with pytest.raises(pytest.skip.Exception, match="own has its own DataLoaders"):
        contract.test_splits_are_disjoint_and_complete("own", {}, Path("data"))


def test_data_that_is_also_loaded_is_normalized(write, tmp_path, capsys):
    """A subclass may load the data, for its mean and standard deviation, and still have its own DataLoaders."""
    code, folder = start(tmp_path / "run", "--config", write(LOADED))
    assert code == 0
    assert "own: 2 features, 3 classes, 81 for training, 9 for validation, 30 for the test\n" in capsys.readouterr().out
    assert figures(folder)["steps"] == 30  # by its own DataLoaders


def test_an_option_that_needs_the_data_in_memory_is_refused_in_one_line(write, tmp_path, capsys):
    argv = ["model={name: cnn, whitening: true, widths: [8]}", f"run.root={tmp_path}"]
    assert train.main(["--config", write(IMAGES), *argv]) == 2
    expected = "command line: model.whitening: needs all training images in memory; the datamodule has only DataLoaders"
    assert capsys.readouterr().err == f"error: {expected}\n"


@pytest.mark.parametrize(("source", "seed"), [(PLAIN, None), (DERIVED, 7)], ids=["plain", "derived"])
def test_the_seed_of_the_experiment_reaches_a_datamodule_that_takes_it(source, seed, write):
    for path, expected in ((write(source), seed), (IRIS, 7)):
        config = load_config(path, ["seed=7"])
        datamodule = train.make(config, "data", seed=config["seed"])
        assert getattr(datamodule, "seed", None) == expected


def test_out_of_memory_without_the_option_batch_size():
    expected = "error: out of memory; lower the batch size (trainer.accumulate_grad_batches compensates)"
    assert str(explain_error(MemoryError(), None, 1)).startswith(expected)


def test_a_missing_dataloader_is_reported_before_training(write, tmp_path, capsys):
    config = write(PLAIN.replace("def test_dataloader", "def other_dataloader"))
    assert train.main(["--config", config, f"run.root={tmp_path}"]) == 2
    assert "Plain has no method test_dataloader" in capsys.readouterr().err
    assert list(tmp_path.glob("*/*/checkpoints")) == []


BROKEN = """

class Broken(Dataset):
    def __len__(self):
        return 90

    def __getitem__(self, i):
        return (1,)[i + 1]
"""


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bug_in_a_dataset_names_its_line(num_workers, write, tmp_path, capsys):
    source = PLAIN.replace("import torch\n", "import torch\nfrom torch.utils.data import Dataset\n", 1)
    source = source.replace("dataset = TensorDataset(inputs, labels)", "dataset = Broken()")
    source += BROKEN
    line = source.splitlines().index("        return (1,)[i + 1]") + 1
    assert train.main(["--config", write(source), f"data.num_workers={num_workers}", f"run.root={tmp_path}"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: datamodules/own.py:{line}: IndexError: tuple index out of range"


class Broken(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> None:
        raise DataError(f"row {row} is\n\x1b[31mbroken")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_mistake_in_the_data_that_a_worker_finds_is_one_line(num_workers):
    """torch raises it again, with the traceback of the worker in its message."""
    with pytest.raises(DataError) as raised:
        next(iter(DataLoader(Broken(), num_workers=num_workers)))
    assert str(raised.value) == "row 0 is\\n\\x1b[31mbroken"


@pytest.mark.parametrize("source", [PLAIN, DERIVED], ids=["plain", "derived"])
def test_their_model_is_exported(source, write, tmp_path):
    assert train.main(["--config", write(source), f"run.root={tmp_path}/runs"]) == 0
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert export.main([str(folder), "--to", "torch_export"]) == 0
