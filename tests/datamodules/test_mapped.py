"""Data in mapped files: the same rows, batches, figures and resumption as in memory."""

import importlib
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from datamodules.classification import ClassificationDataModule
from datamodules.parts.batches import EpochOrder, TensorBatches
from datamodules.parts.cache import create_array, load_or_create
from datamodules.parts.mapped import GrowingArray, MappedRows
from datamodules.parts.statistics import fingerprint, mean_and_std, num_bytes
from engine.config.signatures import PROJECT
from engine.contracts import Rows
from engine.memory import available_memory
from tests import files
from tests.exactness import differences, signalled, start
from tests.runs import WITHOUT_PICTURES, figures, run


@pytest.fixture
def mapped(tmp_path) -> MappedRows:
    """Rows 3, 0, 4, 1 of a mapped array."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), np.uint8))
    return MappedRows(np.load(tmp_path / "a.npy", mmap_mode="r"), torch.tensor([3, 0, 4, 1]))


def test_mapped_rows_are_read_like_a_tensor(mapped):
    whole = torch.from_numpy(np.array(mapped.array))[mapped.rows]
    assert isinstance(mapped, Rows)
    assert isinstance(whole, Rows)
    assert (len(mapped), mapped.shape, mapped.ndim, mapped.num_bytes) == (4, (4, 3, 4, 4), 4, 4 * 48)
    assert torch.equal(mapped[torch.tensor([2, 0])], whole[[2, 0]])
    assert torch.equal(mapped[1:3], whole[1:3])
    assert torch.equal(mapped[::2], whole[::2])
    assert [len(part) for part in mapped.split(3)] == [3, 1]
    assert torch.equal(torch.cat(list(mapped.split(3))), whole)
    assert torch.equal(mapped.to(torch.device("cpu")), whole)
    assert torch.equal(mapped.select(torch.tensor([1, 2]))[:], whole[1:3])


def test_statistics_of_mapped_rows_are_those_of_a_tensor(mapped):
    whole = mapped.to(torch.device("cpu"))
    assert fingerprint([mapped]) == fingerprint([whole])
    assert num_bytes(mapped) == num_bytes(whole)
    for ours, theirs in zip(mean_and_std(mapped), mean_and_std(whole), strict=True):
        assert torch.equal(ours, theirs)


def test_statistics_of_bytes_are_exact():
    images = torch.randint(0, 256, (50, 3, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = mean_and_std(images)
    doubles = images.double()
    torch.testing.assert_close(mean.double(), doubles.mean((0, 2, 3)).view(3, 1, 1), rtol=1e-7, atol=0)
    torch.testing.assert_close(std.double(), doubles.std((0, 2, 3), correction=0).view(3, 1, 1), rtol=1e-7, atol=0)
    assert (mean_and_std(torch.full((4, 1, 2, 2), 9, dtype=torch.uint8))[1] == 1).all()


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_gathered_ahead_in_their_order(mapped, shuffle):
    inputs, labels = mapped.select(torch.arange(4).repeat(25)), torch.arange(100)
    in_memory = TensorBatches(inputs.to(torch.device("cpu")), labels, EpochOrder(100, 7, shuffle, seed=3))
    in_file = TensorBatches(inputs, labels, EpochOrder(100, 7, shuffle, seed=3))
    assert len(list(in_file)) == len(in_memory)
    for ours, theirs in zip(in_file, in_memory, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_the_state_counts_the_batches_that_were_used_and_not_those_gathered_ahead(mapped):
    inputs = mapped.select(torch.arange(4).repeat(25))
    batches = TensorBatches(inputs, torch.arange(100), EpochOrder(100, 7, True, seed=3))
    expected = [labels.tolist() for _, labels in batches]
    iterator = iter(batches)
    for _ in range(4):
        next(iterator)
    assert batches.state_dict() == {"num_batches": 4}
    resumed = TensorBatches(inputs, torch.arange(100), EpochOrder(100, 7, True, seed=3))
    resumed.load_state_dict(batches.state_dict())
    assert [labels.tolist() for _, labels in resumed] == expected[4:]


def test_an_error_of_the_thread_reaches_the_loop(mapped):
    batches = TensorBatches(mapped, torch.arange(4), EpochOrder(4, 2, False))
    mapped.rows[3] = 99
    with pytest.raises(IndexError, match="99"):
        list(batches)


@pytest.mark.parametrize("lengths", [[], [0], [3], [5, 1, 0, 200]])
def test_an_array_that_grows_is_one_that_numpy_reads(lengths, tmp_path):
    parts = [np.arange(length, dtype=np.int32) for length in lengths]
    with GrowingArray(tmp_path / "a.npy", np.dtype(np.int32)) as growing:
        for part in parts:
            growing.append(part)
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == np.int32
    assert found.tolist() == [value for part in parts for value in part.tolist()]


def write_memory(root: Path, limit: str, usage: int, stat: str) -> None:
    folder = root / "sys/fs/cgroup/job"
    for path in (root / "proc/self", folder):
        path.mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable: 1000 kB\n")
    (root / "proc/self/cgroup").write_text("0::/job\n")
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(stat)


@pytest.mark.parametrize(
    ("limit", "usage", "expected"),
    [("max", 0, 1024_000), ("500000", 300_000, 250_000), ("9000000", 0, 1024_000), ("100", 5000, 0)],
)
def test_free_memory_is_limited_by_the_cgroup(limit, usage, expected, tmp_path):
    write_memory(tmp_path, limit, usage, f"anon 1\nfile {min(usage, 50_000) if usage > 5000 else 0}\n")
    assert available_memory(tmp_path) == expected


def test_shared_memory_is_not_free(tmp_path):
    """It is counted among the pages of files, but cannot be dropped."""
    write_memory(tmp_path, "8000", 7000, "anon 1\nfile 6000\nshmem 5500\n")
    assert available_memory(tmp_path) == 1500


def test_free_memory_of_this_machine():
    assert 10_000_000 < available_memory() < 1e14


KINDS = {"table": "Table", "pictures": "Pictures", "text": "Text"}
KINDS = {name: kind for name, kind in KINDS.items() if (PROJECT / f"datamodules/{name}.py").exists()}
needs_tables = pytest.mark.skipif("table" not in KINDS, reason="the project has no tables")


def make(name: str, root: Path, memory_gigabytes: int) -> ClassificationDataModule:
    """A datamodule that reads the files of `small_data`."""
    options = {"memory_gigabytes": memory_gigabytes, "cache": str(root / "cache")}
    options |= {"pictures": {"image_size": 16}, "text": {"vocab_size": 200}}.get(name, {})
    constructor = getattr(importlib.import_module(f"datamodules.{name}"), KINDS[name])
    datamodule = constructor(**(files.options(name, root) | options))
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize("name", KINDS)
def test_batches_from_files_are_those_from_memory(name, small_data):
    in_memory, in_file = make(name, small_data, 1), make(name, small_data, 0)
    assert in_file.fingerprint == in_memory.fingerprint
    assert in_file.spec == in_memory.spec
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for ours, theirs in zip(getattr(in_file, loader)(), getattr(in_memory, loader)(), strict=True):
            assert str(ours) == str(theirs)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "text"])
def test_data_that_does_not_fit_stays_in_its_file(name, small_data):
    for limit, kind in ((0, MappedRows), (1, torch.Tensor)):
        assert isinstance(make(name, small_data, limit).train_dataloader().inputs, kind)


@needs_tables
def test_a_large_table_is_stored_in_the_cache(small_data):
    make("table", small_data, 1)
    assert not (small_data / "cache").exists()
    make("table", small_data, 0)
    assert list((small_data / "cache").glob("inputs-*/inputs.npy"))
    assert list((small_data / "cache").glob("table-*/table.arrow"))


@needs_tables
def test_a_changed_table_is_read_again(small_data):
    first = make("table", small_data, 0)
    path = small_data / "table/train.csv"
    path.write_text(path.read_text() + "9.9,red,0.1,yes,high\n")
    assert make("table", small_data, 0).fingerprint != first.fingerprint


TABLE = ["--config", "configs/table_mlp.yaml", "model.num_members=2", "model.hidden_sizes=[8]", "trainer.max_epochs=2"]


def table_options(root: Path, limit: int) -> list[str]:
    data = [f"data.train={root}/table/train.csv", f"data.cache={root}/cache", f"data.memory_gigabytes={limit}"]
    return [*TABLE, *data, "data.batch_size=16", "trainer.precision=32-true", *WITHOUT_PICTURES]


@needs_tables
def test_a_table_in_a_file_gives_the_figures_of_a_table_in_memory(small_data, tmp_path):
    found = []
    for limit in (0, 1):
        done = figures(run(tmp_path / str(limit), *table_options(small_data, limit)))
        found.append({key: value for key, value in done.items() if key.startswith(("val/", "test/"))})
    assert found[0] == found[1]


@needs_tables
def test_a_run_that_reads_a_file_resumes_exactly(small_data, tmp_path, monkeypatch):
    arguments = table_options(small_data, 0)
    _, whole = start(tmp_path / "whole", *arguments)
    with signalled(monkeypatch, lambda trainer: trainer.current_epoch == 1 and trainer.fit_loop.batch_idx == 4):
        code, stopped = start(tmp_path / "stopped", *arguments)
    assert code == 128 + signal.SIGTERM
    assert train.main(["--resume", str(stopped)]) == 0
    assert differences(stopped, whole) == []


@needs_tables
def test_a_table_is_encoded_in_parts(small_data, monkeypatch):
    whole = make("table", small_data, 1)
    monkeypatch.setattr("datamodules.parts.columns.MANY_ROWS", 7)
    assert make("table", small_data, 0).fingerprint == whole.fingerprint


def test_what_a_killed_process_has_left_is_removed(tmp_path):
    (tmp_path / ".creating-1").mkdir()
    (tmp_path / ".creating-1/images.npy").write_bytes(bytes(10))

    def create(folder: Path) -> None:
        create_array(folder / "a.npy", np.int32, (3, 2))[:] = 7

    found = load_or_create(tmp_path, "kind", ["key"], create, lambda folder: np.load(folder / "a.npy"))
    assert found.tolist() == [[7, 7]] * 3
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir() if path.name != ".lock"] == ["kind"]
