"""The tests that every model and every datamodule must pass. They cover a new file of the project without further changes.

A datamodule that needs files finds them in the fixture `small_data` (`tests/files.py`).
"""

import importlib
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from datamodules.classification import ClassificationDataModule, DataError, DataSpec
from datamodules.parts.batches import EpochOrder, TensorBatches
from engine.config.components import component_names, find_component
from engine.config.signatures import PROJECT, REQUIRED, read_component
from engine.contracts import TokenTable
from lit_models.classifier import LitClassifier
from tests import files

SPECS = {
    "features": [
        DataSpec("features", (4,), ("a", "b", "c")),
        DataSpec("features", (20,), ("no", "yes")),
        DataSpec(
            "features", (9,), ("a", "b", "c"), feature_names=tuple("abcdefghi"), categories=(("no", "yes"), *[()] * 8)
        ),
    ],
    "image": [
        DataSpec("image", (1, 28, 28), tuple("0123456789")),
        DataSpec("image", (3, 32, 32), tuple(map(str, range(100)))),
    ],
    "tokens": [DataSpec("tokens", (), ("no", "yes"), vocab_size=50, pad_id=0, max_length=16)],
}

# How many rows of a dataset are copies of another row in its source. Rows 102 and 143 of Iris are equal.
REPEATED_ROWS = {"iris": 1}


def smaller(name: str, spec: DataSpec) -> dict[str, int]:
    """Options that make a model smaller if a test of its default size would take seconds."""
    if name != "bert":
        return {}
    patches = {"patch_size": spec.input_shape[-1] // 2} if spec.modality == "image" else {}
    return {"hidden_size": 64, "num_layers": 2, "num_heads": 2, **patches}


def model_class(name: str) -> type[LitClassifier]:
    return getattr(importlib.import_module(f"lit_models.{name}"), find_component("model", name).name)


def data_class(name: str) -> type[LightningDataModule]:
    return getattr(importlib.import_module(f"datamodules.{name}"), find_component("data", name).name)


def trainer(folder: Path, **options) -> Trainer:
    """A quiet Trainer on the CPU."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{"accelerator": "cpu", "default_root_dir": folder, "num_sanity_val_steps": 0, **quiet, **options})


class ModelContract:
    """For a model `name` and data of a `spec`."""

    def make(self, name: str, spec: DataSpec, **options) -> LitClassifier:
        torch.manual_seed(0)
        return model_class(name)(**spec.model_arguments(), **{**smaller(name, spec), **options})

    def samples(self, spec: DataSpec, size: int = 64) -> tuple[Any, Tensor]:
        """Random inputs and labels."""
        generator = torch.Generator().manual_seed(1)
        labels = torch.arange(size) % spec.num_classes
        if spec.modality != "tokens":
            return torch.randn(size, *spec.input_shape, generator=generator), labels
        lengths = torch.arange(size) % (spec.max_length - 3) + 4
        ids = torch.randint(1, spec.vocab_size, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
        from datamodules.parts.tokens import TokenRows

        return TokenRows(ids, lengths.cumsum(0) - lengths, lengths, pad_id=spec.pad_id), labels

    def batch(self, spec: DataSpec, size: int = 64) -> tuple[Any, Tensor]:
        inputs, labels = self.samples(spec, size)
        return inputs[torch.arange(size)], labels

    def test_gives_one_logit_per_class(self, name, spec):
        inputs, labels = self.batch(spec)
        assert self.make(name, spec).eval()(inputs).shape == (len(labels), spec.num_classes)

    def test_loss_before_training_is_near_ln_k(self, name, spec):
        model = self.make(name, spec).eval()
        inputs, labels = self.batch(spec, 256)
        loss = torch.nn.functional.cross_entropy(model(inputs), labels).item()
        assert loss == pytest.approx(math.log(spec.num_classes), rel=0.35)

    def test_every_parameter_gets_a_gradient(self, name, spec):
        model = self.make(name, spec)
        inputs, labels = self.batch(spec)
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        silent = [key for key, one in model.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0]
        assert silent == []

    def test_overfits_one_batch(self, name, spec):
        model = self.make(name, spec)
        inputs, labels = self.batch(spec, 32)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(1000):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            if loss.item() < 0.05:
                return
        pytest.fail(f"loss {loss.item():.3f} after 1,000 steps")

    def test_reloads_with_equal_logits(self, name, spec, tmp_path):
        """The path is enough, and no pickled code is loaded."""
        (samples, labels), (inputs, _) = self.samples(spec), self.batch(spec)
        model = self.make(name, spec, optimizer={"name": "sgd", "lr": 0.01})
        fit = trainer(tmp_path, max_steps=2)
        model.set_normalization(torch.full_like(model.input_mean, 2.0), torch.full_like(model.input_std, 3.0))
        batches = TensorBatches(samples, labels, EpochOrder(len(labels), 32, shuffle=True))
        fit.fit(model, batches, batches)
        fit.save_checkpoint(tmp_path / "model.ckpt")
        torch.load(tmp_path / "model.ckpt", weights_only=True)
        again = model_class(name).load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu").eval()
        assert torch.equal(again(inputs), model.eval()(inputs))
        assert torch.equal(again(inputs), model.network((inputs - 2.0) / 3.0 if spec.input_shape else inputs))
        assert again.hparams["class_names"] == list(spec.class_names)


class DataModuleContract:
    """For a datamodule `name` with `options`; `root` holds its files."""

    def make(self, name: str, root: Path, **options) -> LightningDataModule:
        """The datamodule, set up. Options that it does not have are left out."""
        component, written = find_component("data", name), files.options(name, root)
        known = read_component(component.path, component.name).parameters
        missing = {key for key, parameter in known.items() if parameter.default is REQUIRED} - written.keys()
        given = {key: value for key, value in configured("data", name).items() if key in missing} | written | options
        try:
            datamodule = data_class(name)(**{key: value for key, value in given.items() if key in known})
            datamodule.prepare_data()
            for stage in ("fit", "test"):
                datamodule.setup(stage)
            getattr(datamodule, "spec", None)  # it may need the files
        except DataError as error:
            if written:
                raise
            pytest.skip(f"data.name={name}: {error}")  # a user's own datamodule, whose files are elsewhere
        except TypeError as error:
            if "required" in str(error):
                pytest.fail(f"data.name={name}: {error}; write a config in configs/ that names it and has the values")
            raise
        return datamodule

    def make_loaded(self, name: str, root: Path, **options) -> ClassificationDataModule:
        datamodule = self.make(name, root, **options)
        if not getattr(datamodule, "is_loaded", False):
            pytest.skip(f"data.name={name} has its own DataLoaders")
        return datamodule

    def everything(self, batches) -> list[bytes]:
        return [row for inputs, labels in batches for row in _rows(inputs, labels)]

    def test_batches_match_the_spec(self, name, options, small_data):
        datamodule = self.make(name, small_data, batch_size=16, **options)
        spec = datamodule.spec
        assert spec.modality == datamodule.modality == find_component("data", name).constants["modality"]
        for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()):
            inputs, labels = next(iter(loader))
            if spec.modality == "tokens":
                assert 0 <= inputs["input_ids"].min() <= inputs["input_ids"].max() < spec.vocab_size
                assert inputs["input_ids"].shape[1] <= spec.max_length
            else:
                assert inputs.shape[1:] == spec.input_shape
            assert labels.dtype == torch.int64
            assert 0 <= labels.min() <= labels.max() < spec.num_classes
            assert len(list(loader)) == len(loader)

    def test_splits_are_disjoint_and_complete(self, name, options, small_data):
        datamodule = self.make_loaded(name, small_data, **options)
        train, val, test = (_rows(*datamodule.splits()[part]) for part in ("train", "val", "test"))
        if type(datamodule).load is not ClassificationDataModule.load:
            loaded, official = datamodule.load()
            assert sorted(train + val + ([] if official else test)) == sorted(_rows(*loaded))
            assert official is None or test == _rows(*official)
        rows = [*train, *val, *test]
        repeated = len(rows) - len(set(rows))
        hint = "rows are in two splits, or the source has copies of rows: then write their number into REPEATED_ROWS"
        assert repeated == REPEATED_ROWS.get(name, 0), hint

    def test_validation_depends_on_split_seed_alone(self, name, options, small_data):
        def held_out(**more):
            return _rows(*self.make_loaded(name, small_data, **{**options, **more})._splits["val"])

        assert held_out() == held_out(seed=7, batch_size=3)
        assert held_out() != held_out(split_seed=1)

    def test_validation_has_the_same_fraction_of_every_class(self, name, options, small_data):
        datamodule = self.make_loaded(name, small_data, val_fraction=0.25, **options)
        train, val = (torch.bincount(datamodule._splits[part][1]) for part in ("train", "val"))
        assert ((val - 0.25 * (train + val)).abs() <= 0.5).all()

    def test_each_row_is_held_out_in_one_fold(self, name, options, small_data):
        if not {"num_folds", "fold"} <= find_component("data", name).parameters.keys():
            pytest.skip(f"data.name={name} has no folds")

        def divided(**more):
            datamodule = self.make_loaded(name, small_data, **options, **more)
            labels = {split: labels for split, (_, labels) in datamodule.splits().items()}
            return {
                split: [datamodule.place(split, row) for row in range(len(labels[split]))] for split in labels
            }, labels

        before, _ = divided()
        (first, labels), (second, others) = (divided(num_folds=2, fold=fold) for fold in range(2))
        has_test = first["test"] == second["test"]
        held_out = "val" if has_test else "test"
        assert not has_test or first["test"] == before["test"]
        for found in (first, second):
            assert sorted(sum(found.values(), [])) == sorted(sum(before.values(), []))
        divisible = [place for split in before for place in before[split] if not has_test or split != "test"]
        assert sorted(first[held_out] + second[held_out]) == sorted(divisible)
        counts = [found[held_out].bincount(minlength=int(labels["train"].max()) + 1) for found in (labels, others)]
        assert (counts[0] - counts[1]).abs().max() <= 1
        assert divided(num_folds=2, seed=7)[0] == first
        assert divided(num_folds=2, split_seed=1)[0][held_out] != first[held_out]

    def test_evaluation_uses_every_sample_once_without_augmentation(self, name, options, small_data):
        datamodule = self.make_loaded(name, small_data, eval_batch_size=7, **options)
        for part, loader in (("val", datamodule.val_dataloader()), ("test", datamodule.test_dataloader())):
            seen, there = self.everything(loader), _rows(*datamodule._splits[part])
            assert sorted(seen) == sorted(there)
            assert seen == there or datamodule.modality == "tokens"  # texts are sorted by length
        assert len(self.everything(datamodule.train_dataloader())) == datamodule.num_samples("train")

    def test_mean_and_standard_deviation_come_only_from_the_training_split(self, name, options, small_data):
        datamodule = self.make_loaded(name, small_data, **options)
        component = find_component("data", name)
        if "normalize" not in read_component(component.path, component.name).parameters:  # the model scales inputs
            assert (datamodule.mean, datamodule.std) == (0, 1)
            return
        raw = datamodule._splits["train"][0][:].double()
        axes = [0, *range(2, raw.ndim)]
        mean, std = raw.mean(axes, keepdim=True), raw.std(axes, correction=0, keepdim=True)
        torch.testing.assert_close(datamodule.mean.double(), mean[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(datamodule.std.double(), std[0], rtol=1e-4, atol=1e-4)
        plain = self.make_loaded(name, small_data, normalize=False, **options)
        assert (plain.mean == 0).all()
        assert (plain.std == 1).all()

    def test_order_and_augmentation_depend_only_on_seed_and_epoch(self, name, options, small_data):
        def epoch(number, **more):
            loader = self.make_loaded(name, small_data, **{**options, **more}).train_dataloader()
            loader.batch_sampler.set_epoch(number)
            return self.everything(loader)

        assert epoch(3) == epoch(3)
        assert epoch(3) != epoch(4)
        assert epoch(3) != epoch(3, seed=1)


def _rows(inputs: Any, labels: Tensor) -> list[bytes]:
    """Each sample with its label; tokens without their padding."""
    if isinstance(inputs, TokenTable):
        inputs = inputs[torch.arange(len(inputs))]
    if isinstance(inputs, dict):
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        inputs = [row[there] for row, there in zip(ids, mask, strict=True)]
    return [one.numpy().tobytes() + int(label).to_bytes(4, "big") for one, label in zip(inputs, labels, strict=True)]


def configured(section: str, name: str, folder: Path = PROJECT / "configs") -> dict[str, Any]:
    """The values of `section` in the first config of `folder` that names the component; {} if there is none."""
    for path in sorted(folder.glob("*.yaml")):
        values = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get(section)
        if isinstance(values, dict) and values.get("name") == name:
            return {key: value for key, value in values.items() if key != "name"}
    return {}


def model_cases() -> list:
    """Every model with every spec that it accepts."""
    return [
        pytest.param(name, spec, id=f"{name}-{spec.modality}-{spec.num_classes}")
        for name in component_names("model")
        for kind in find_component("model", name).constants["accepts"]
        for spec in SPECS.get(kind, [])
        if kind != "tokens" or find_spec("datamodules.parts.tokens")  # a project may have no text
    ]


def data_cases() -> list:
    """Every datamodule in every variant."""
    cases = []
    for name in component_names("data"):
        variant = find_component("data", name).parameters.get("variant")
        for choice in variant.type.__args__ if variant else [None]:
            cases.append(pytest.param(name, {"variant": choice} if choice else {}, id=f"{name}-{choice or 'only'}"))
    return cases
