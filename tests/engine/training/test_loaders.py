"""Runs with the DataLoader of torch: stopped in mid-epoch and resumed, they are bitwise identical to runs without a stop."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from engine.config.signatures import PROJECT
from engine.training import checkpoint_file
from engine.training.checkpoints import Checkpoints, VerifiedCheckpoints
from engine.training.clock import Clock
from engine.training.epoch_loop import EpochLoop, install_loop
from engine.training.exits import Stopped
from engine.training.signals import Signals
from engine.training.training_state import rng_state
from lit_models.mlp import LitMLP
from tests.exactness import different, signalled

BATCHES = 6
INPUTS = torch.randn(5 * BATCHES, 4, generator=Generator().manual_seed(0))
LABELS = torch.arange(5 * BATCHES) % 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork"),
    pytest.mark.filterwarnings("ignore:Consider setting `persistent_workers=True`"),
]


class Noisy(Dataset):
    """Augments a sample with torch's global generator, as most people do. Counts the samples that were loaded."""

    num_loaded = 0

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        Noisy.num_loaded += 1
        return INPUTS[index] + 0.1 * torch.randn(4), LABELS[index]


class Stream(IterableDataset):
    """Has no length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(INPUTS, LABELS, strict=True)


class StatefulLoader:
    """Stands for torchdata's StatefulDataLoader: the state is the generator of the order, and the batches of this epoch."""

    def __init__(self) -> None:
        self.num_yielded, self.resume_at = 0, 0
        self.generator = Generator().manual_seed(0)
        self.epoch_start = self.generator.get_state()

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.num_yielded, self.resume_at = self.resume_at, 0
        self.epoch_start = self.generator.get_state()
        return self.batches(torch.randperm(len(INPUTS), generator=self.generator))

    def batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in order.split(5)[self.num_yielded :]:
            self.num_yielded += 1
            yield INPUTS[rows], LABELS[rows]

    def state_dict(self) -> dict[str, Any]:
        return {"num_yielded": self.num_yielded, "epoch_start": self.epoch_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resume_at = state["num_yielded"]
        self.generator.set_state(state["epoch_start"])


def shuffled(**options: Any) -> Callable[[], Any]:
    return lambda: DataLoader(TensorDataset(INPUTS, LABELS), batch_size=5, shuffle=True, **options)


def noisy(**options: Any) -> Callable[[], Any]:
    return lambda: DataLoader(Noisy(), batch_size=5, shuffle=True, **options)


class Data(LightningDataModule):
    """A datamodule that uses no class of this project.

    Args:
        make_loader: Creates the training loader.
    """

    def __init__(self, make_loader: Callable[[], Any]) -> None:
        super().__init__()
        self.make_loader = make_loader

    def train_dataloader(self) -> Any:
        return self.make_loader()

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(INPUTS, LABELS), batch_size=10)


class NoisyTransfer(Data):
    """Augments batches on the device."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]


def fit(folder: Path, data: LightningDataModule, resume: bool = False, **options: Any) -> dict[str, Any]:
    """Train for three epochs. Returns the last checkpoint."""
    callbacks = options.pop("callbacks", [])
    last = folder / "checkpoints/last.ckpt"
    folder.mkdir(exist_ok=True)
    with Signals() as signals:
        seed_everything(0, verbose=False)
        checkpoints = Checkpoints(folder, signals, Clock(), monitor="val/loss", mode="min")
        trainer = Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder, callbacks=[checkpoints, *callbacks],
            plugins=VerifiedCheckpoints(), **options,
        )  # fmt: skip
        install_loop(trainer, 1.0)
        model = LitMLP((4,), 3, hidden_sizes=[8], dropout=0.2)
        trainer.fit(model, datamodule=data, ckpt_path=last if resume else None, weights_only=True)
    return checkpoint_file.read(last)


def at(epoch: int, batch: int, validating: bool = False) -> Callable[[Trainer], bool]:
    """Whether training is about to load this batch of this epoch, or validates after this number of batches."""

    def when(trainer: Trainer) -> bool:
        here = trainer.current_epoch == epoch and trainer.fit_loop.batch_idx + 1 == batch
        return here and trainer.validating == validating

    return when


def stop_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, stops: list, **options: Any
) -> list[str]:
    """The differences between a run that was stopped and resumed, and a run that was not."""
    whole = fit(tmp_path / "whole", make(), **options)
    for i, stop in enumerate(stops):
        with signalled(monkeypatch, at(*stop)), pytest.raises(Stopped):
            fit(tmp_path / "stopped", make(), resume=i > 0, **options)
    return list(different(whole, fit(tmp_path / "stopped", make(), resume=True, **options), "last"))


@pytest.mark.parametrize("stops", [[(0, 0)], [(0, 2)], [(1, 0)], [(1, 3), (1, 5)], [(2, 5)]], ids=str)
@pytest.mark.parametrize("make_loader", [shuffled(), noisy()], ids=["shuffled", "random augmentation"])
def test_stopped_at_any_batch(make_loader, stops, tmp_path, monkeypatch):
    assert stop_and_resume(tmp_path, monkeypatch, lambda: Data(make_loader), stops) == []


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[(0, 0)], [(1, 3)]], ids=str)
def test_worker_processes(stops, tmp_path, monkeypatch):
    assert stop_and_resume(tmp_path, monkeypatch, lambda: Data(noisy(num_workers=2)), stops) == []


@pytest.mark.parametrize("stop", [(1, 4), (1, 3, True)], ids=str)
@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"val_check_interval": 3}], ids=str)
def test_accumulation_and_validation_within_an_epoch(options, stop, tmp_path, monkeypatch):
    if stop == (1, 3, True) and "accumulate_grad_batches" in options:
        stop = (1, BATCHES, True)
    assert stop_and_resume(tmp_path, monkeypatch, lambda: Data(noisy()), [stop], **options) == []


@pytest.mark.parametrize("options", [{"limit_train_batches": 4}, {"reload_dataloaders_every_n_epochs": 1}], ids=str)
def test_limited_and_reloaded_loaders(options, tmp_path, monkeypatch):
    assert stop_and_resume(tmp_path, monkeypatch, lambda: Data(noisy()), [(1, 3)], **options) == []


def test_nothing_is_loaded_again_if_only_the_validation_is_left(tmp_path, monkeypatch):
    stop = at(2, BATCHES, validating=True)
    whole = fit(tmp_path / "whole", Data(noisy()))
    with signalled(monkeypatch, stop), pytest.raises(Stopped):
        fit(tmp_path / "stopped", Data(noisy()))
    before = Noisy.num_loaded
    assert list(different(whole, fit(tmp_path / "stopped", Data(noisy()), resume=True), "last")) == []
    assert Noisy.num_loaded == before


def test_augmentation_after_the_transfer(tmp_path, monkeypatch):
    assert stop_and_resume(tmp_path, monkeypatch, lambda: NoisyTransfer(shuffled()), [(1, 3)]) == []


def with_generator() -> DataLoader:
    return DataLoader(Noisy(), batch_size=5, shuffle=True, generator=Generator().manual_seed(0))


def with_sampler() -> DataLoader:
    sampler = WeightedRandomSampler([1.0, 2.0, 3.0] * 10, len(INPUTS), generator=Generator().manual_seed(0))
    return DataLoader(Noisy(), batch_size=5, sampler=sampler)


@pytest.mark.parametrize("stop", [(1, 3), (1, BATCHES, True)], ids=str)
@pytest.mark.parametrize("make_loader", [with_generator, with_sampler])
def test_generators_of_the_users_own(make_loader, stop, tmp_path, monkeypatch):
    assert stop_and_resume(tmp_path, monkeypatch, lambda: Data(make_loader), [stop]) == []


@pytest.mark.parametrize(
    ("make_loader", "reason"),
    [
        (shuffled(num_workers=1, persistent_workers=True), "persistent workers of a DataLoader do not repeat"),
        (lambda: DataLoader(Stream(), batch_size=5), "a DataLoader has no length"),
        (lambda: {"a": shuffled()(), "b": shuffled()()}, "there are several DataLoaders"),
    ],
    ids=["persistent", "no length", "several"],
)
def test_a_resumption_that_may_not_be_exact_says_so(make_loader, reason, tmp_path, monkeypatch, capsys):
    """It is exact here, because these datasets draw no random numbers."""

    class Model(LitMLP):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"] if isinstance(batch, dict) else batch, batch_idx)

    monkeypatch.setattr("tests.engine.training.test_loaders.LitMLP", Model)
    assert stop_and_resume(tmp_path, monkeypatch, lambda: Data(make_loader), [(1, 3)]) == []
    printed = capsys.readouterr().out
    assert f"resuming may not be exact: {reason}" in printed
    assert "loading and skipping the first 3 batches of this epoch" in printed


def test_an_exact_resumption_says_nothing(tmp_path, monkeypatch, capsys):
    stop_and_resume(tmp_path, monkeypatch, lambda: Data(shuffled()), [(1, 3)])
    assert "may not be exact" not in capsys.readouterr().out


@pytest.mark.parametrize("stops", [[(0, 2)], [(1, 0)], [(1, 3), (2, 1)], [(1, BATCHES, True)]], ids=str)
def test_a_loader_with_a_state_restores_its_position(stops, tmp_path, monkeypatch, capsys):
    assert stop_and_resume(tmp_path, monkeypatch, lambda: Data(StatefulLoader), stops) == []
    assert "skipping" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")
def test_torchdatas_loader_restores_its_position(tmp_path, monkeypatch, capsys):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make() -> Data:
        return Data(lambda: stateful(TensorDataset(INPUTS, LABELS), batch_size=5, shuffle=True))

    assert stop_and_resume(tmp_path, monkeypatch, make, [(1, 3)]) == []
    assert "skipping" not in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["epoch_start", "generators", "states"])
def test_every_part_of_the_state_of_loaders_is_needed(lost, tmp_path, monkeypatch):
    """The comparison notices a state that is not restored."""
    make_loader = {"epoch_start": shuffled(), "generators": with_generator, "states": StatefulLoader}[lost]
    load = EpochLoop._resume_loaders

    def load_without(self: EpochLoop, data_fetcher: Any, **state: Any) -> None:
        fresh = self.loader_state() | {"epoch_start": {"rng": rng_state(), "generators": state["generators"]}}
        load(self, data_fetcher, **state | {lost: fresh[lost]})

    monkeypatch.setattr(EpochLoop, "_resume_loaders", load_without)
    stop = (1, BATCHES, True) if lost == "generators" else (1, 3)
    assert stop_and_resume(tmp_path, monkeypatch, lambda: Data(make_loader), [stop]) != []


SCRIPT = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
from pathlib import Path
from lightning.pytorch import Callback
from torch.utils.data import ConcatDataset, DataLoader
from engine.training.exits import Stopped
from tests.engine.training.test_loaders import Data, Noisy, fit

class Stop(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.current_epoch == 1 and trainer.fit_loop.batch_idx == 20:
            os.kill(os.getpid(), signal.SIGTERM)

folder, task = sys.argv[1:]
data = Data(lambda: DataLoader(ConcatDataset([Noisy()] * 20), batch_size=5, shuffle=True))
try:
    fit(Path(folder), data, task == "resume", devices=2, callbacks=[Stop()] if task == "stop" else [])
except Stopped as stopped:
    print(stopped, flush=True)
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Lightning gives each process a DistributedSampler."""
    script = tmp_path / "two.py"
    script.write_text(SCRIPT, encoding="utf-8")
    printed = ""
    for folder, task in (("whole", "train"), ("stopped", "stop"), ("stopped", "resume")):
        command = [sys.executable, str(script), str(tmp_path / folder), task]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert re.search(r"stopped by SIGTERM in epoch 2, after \d+ of 60 batches", printed)
    assert re.search(r"loading and skipping the first \d+ batches of this epoch", printed)
    whole, resumed = (
        checkpoint_file.read(tmp_path / folder / "checkpoints/last.ckpt") for folder in ("whole", "stopped")
    )
    assert list(different(whole, resumed, "last")) == []
