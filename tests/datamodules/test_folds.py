"""Folds for cross-validation: how rows are divided, which split a fold becomes, and mistakes in one line."""

import json
import math
from pathlib import Path

import pytest
import torch

import evaluate
import train
from datamodules.classification import ClassificationDataModule, DataSpec
from datamodules.iris import Iris
from datamodules.mnist import MNIST
from datamodules.parts.splits import assign_folds, hold_out
from datamodules.table import Table
from datamodules.text import Text
from engine.config.config import load_config
from engine.config.cross_checks import check_requirements
from engine.contracts import DataError, OptionError, UserError
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

QUICK = ["trainer.max_epochs=2", "trainer.precision=32-true", *WITHOUT_PICTURES]


def data_digest(folder: Path) -> str:
    """The digest of the three splits of a run."""
    return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["data_sha256"]


def random_labels(count: int, num_classes: int = 3) -> torch.Tensor:
    return torch.randint(0, num_classes, (count,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_folds", [2, 3, 5, 10])
def test_classes_and_sizes_differ_by_at_most_one(num_folds):
    labels = random_labels(211, num_classes=7)
    folds = assign_folds(labels, num_folds, seed=0)
    counts = torch.stack([labels[folds == fold].bincount(minlength=7) for fold in range(num_folds)])
    assert int((counts.amax(0) - counts.amin(0)).max()) <= 1
    assert int(counts.sum(1).max() - counts.sum(1).min()) <= 1
    assert counts.sum() == 211


def test_folds_are_random_and_depend_on_the_seed_alone():
    labels = random_labels(200)
    folds = assign_folds(labels, 5, seed=0)
    assert torch.equal(folds, assign_folds(labels, 5, seed=0))
    assert not torch.equal(folds, assign_folds(labels, 5, seed=1))
    rows = torch.nonzero(labels == 0).flatten()
    assert not torch.equal(folds[rows], torch.arange(len(rows)) % 5)


def test_groups_stay_together_and_balance_classes():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 12, (120,), generator=generator)
    groups = torch.arange(120).repeat_interleave(sizes)
    labels = (torch.arange(120) % 3 == 0).long().repeat_interleave(sizes)
    folds = assign_folds(labels, 5, 0, groups)
    assert all(len(folds[groups == group].unique()) == 1 for group in range(120))
    counts = torch.stack([labels[folds == fold].bincount(minlength=2) for fold in range(5)])
    assert int((counts.amax(0) - counts.amin(0)).max()) <= 11  # the size of the largest group
    assert not torch.equal(folds, assign_folds(labels, 5, 1, groups))


def test_rows_without_a_group_are_alone():
    groups = torch.tensor([0] * 6 + [-1] * 24)
    labels = torch.arange(30) % 2
    folds = assign_folds(labels, 3, 0, groups)
    assert len(folds[:6].unique()) == 1
    assert folds.bincount().tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((9, 3, 9), "data.num_folds: class 'b' has 3 samples for 5 folds; choose at most 3 folds"),
        ((9, 9, 1), "data.num_folds: class 'c' has 1 sample for 5 folds; add samples of this class or remove it"),
    ],
)
def test_a_class_with_fewer_samples_than_folds_is_named(counts, expected):
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    with pytest.raises(DataError) as error:
        assign_folds(labels, 5, 0, class_names=("a", "b", "c"))
    assert str(error.value) == expected


def test_a_class_without_samples_is_no_error():
    labels = torch.arange(3).repeat_interleave(torch.tensor([5, 0, 5]))
    assert assign_folds(labels, 5, 0).bincount().tolist() == [2] * 5


def test_fewer_groups_than_folds_are_an_error():
    with pytest.raises(DataError, match=r"^data\.num_folds: data\.group_column has 4 groups for 5 folds; choose fewer"):
        assign_folds(torch.arange(40) % 2, 5, 0, torch.arange(40) // 10)


def test_without_a_test_set_the_rest_is_split_as_before():
    labels = random_labels(300)
    rows = hold_out({"train": labels}, {"test": 0.2, "val": 0.25}, 0, num_folds=3, fold=1)
    sizes = {split: len(chosen) for split, (_, chosen) in rows.items()}
    assert sizes == {"train": 150, "test": 100, "val": 50}
    rows = hold_out({"train": labels, "val": labels}, {"test": 0.2, "val": 0.25}, 0, num_folds=3, fold=1)
    assert {split: (source, len(chosen)) for split, (source, chosen) in rows.items()} == {
        "train": ("train", 200),
        "test": ("train", 100),
        "val": ("val", 300),
    }


def test_with_a_test_set_the_fold_is_the_validation_set(small_data, capsys):
    plain, folded = MNIST(root=str(small_data)), MNIST(root=str(small_data), num_folds=4, fold=3, val_fraction=0.01)
    plain.setup()
    folded.setup()
    assert torch.equal(plain.splits()["test"][0], folded.splits()["test"][0])
    count = plain.num_samples("train") + plain.num_samples("val")
    assert folded.num_samples("val") == pytest.approx(count / 4, abs=1)
    assert folded.num_samples("val") + folded.num_samples("train") == count
    size = f"{folded.num_samples('val'):,} of {count:,} samples"
    expected = f"fold 3 of 0 to 3: {size} are the validation set; there is no test\n"
    assert capsys.readouterr().out.count(expected) == 1


def test_with_validation_and_test_set_folds_are_an_error(tmp_path):
    labels = random_labels(30)
    expected = "data.val: with data.test and data.num_folds, the validation set is a fold of data.train; "
    with pytest.raises(DataError, match=expected):
        hold_out({"train": labels, "val": labels, "test": labels}, {"test": 0.2, "val": 0.2}, 0, num_folds=3)
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.csv").write_text("a,y\n")
    files = [f"data.{name}={tmp_path / name}.csv" for name in ("train", "val", "test")]
    config = load_config("configs/table_mlp.yaml", [*files, "data.target=y", "data.num_folds=3"])
    with pytest.raises(UserError, match=f"command line: {expected}set data.val=null or data.num_folds=null"):
        check_requirements(config)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.num_folds=1"], "data.num_folds: 1 is out of range; accepts int | null, >= 2"),
        (["data.fold=-1"], "data.fold: -1 is out of range; accepts int, >= 0"),
        (["data.fold=5", "data.num_folds=5"], "data.fold: 5 is out of range for data.num_folds=5; folds are numbered"),
        (["data.fold=1"], "data.fold: 1 is given without data.num_folds; set data.num_folds=5, for example"),
    ],
)
def test_a_fold_that_does_not_exist_is_refused_without_torch(overrides, expected):
    with pytest.raises(UserError) as error:
        load_config(IRIS, overrides)
    assert str(error.value).startswith(f"command line: {expected}")


def test_a_fold_that_does_not_exist_is_refused_by_the_constructor():
    for options in ({"fold": 3, "num_folds": 3}, {"fold": -1, "num_folds": 3}, {"fold": 1}):
        with pytest.raises(OptionError, match=r"^data\.fold: "):
            Iris(**options)


@pytest.mark.parametrize("member", ["splits", "train_dataloader"])
def test_a_datamodule_that_divides_its_data_itself_has_no_folds(member):
    class Own(ClassificationDataModule):
        modality = "features"
        spec = DataSpec("features", (1,), ("a", "b"))

    labelled = torch.zeros(2, 1), torch.arange(2)
    setattr(Own, member, lambda self: dict.fromkeys(("train", "val", "test"), labelled))
    Own().setup()
    with pytest.raises(OptionError, match=r"^data\.num_folds: Own divides its data without folds; "):
        Own(num_folds=2).setup()


def test_the_mistake_of_a_class_is_one_line(tmp_path, capsys):
    assert train.main(["--config", IRIS, "data.num_folds=60", f"run.root={tmp_path}"]) == 2
    expected = (
        "error: command line: data.num_folds: class 'setosa' has 50 samples for 60 folds; choose at most 50 folds\n"
    )
    assert capsys.readouterr().err == expected


# Tables and texts


@pytest.mark.needs("table")
def test_groups_of_a_table_stay_together_and_each_row_is_tested_once(tmp_path):
    text = "person,a,y\n" + "".join(f"{f'p{i // 5}' if i < 480 else ''},{i},{i % 2}\n" for i in range(500))
    (tmp_path / "train.csv").write_text(text)
    tested = []
    for fold in range(4):
        options = {"group_column": "person", "num_folds": 4, "fold": fold}
        parts = Table(str(tmp_path / "train.csv"), "y", **options).splits()
        people = [{int(a) // 5 for a in inputs[:, 0].tolist() if a < 480} for inputs, _ in parts.values()]
        assert sum(map(len, people)) == len(set.union(*people)) == 96
        tested += parts["test"][0][:, 0].tolist()
    assert sorted(tested) == [*range(500)]


@pytest.mark.needs("table")
def test_columns_of_a_table_come_from_the_training_part_of_the_fold(tmp_path):
    """A category that only held-out rows have is unknown. The file of the cache is another for each fold."""
    (tmp_path / "train.csv").write_text("a,c,y\n" + "".join(f"{i},c{i},{i % 2}\n" for i in range(60)))
    options = {"num_folds": 3, "memory_gigabytes": 0, "cache": str(tmp_path / "cache")}
    for fold in (0, 1, 0):
        datamodule = Table(str(tmp_path / "train.csv"), "y", fold=fold, **options)
        parts = datamodule.splits()
        trained = {f"c{int(a)}" for a in parts["train"][0][:][:, 0].tolist()}
        assert set(datamodule.columns[1].categories) == trained
        assert parts["test"][0][:][:, 1].tolist() == [0.0] * 20
        assert 0.0 not in parts["train"][0][:][:, 1].tolist()


@pytest.mark.needs("text")
def test_the_vocabulary_comes_from_the_training_part_of_the_fold(tmp_path):
    lines = [f"common unique{chr(97 + i // 26)}{chr(97 + i % 26)}\t{i % 2}" for i in range(60)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *lines, ""]))
    vocabularies, tested = [], []
    for fold in (0, 1, 2, 0):
        options = {"num_folds": 3, "fold": fold, "cache": str(tmp_path / "cache"), "vocab_size": 100}
        datamodule = Text(str(tmp_path / "train.tsv"), **options)
        datamodule.setup()
        vocabularies.append(datamodule.tokenizer.backend_tokenizer.to_str())
        tested.append({datamodule.place("test", row) for row in range(datamodule.num_samples("test"))})
    assert len(list((tmp_path / "cache").glob("tokenizer-*"))) == 3
    assert vocabularies[3] == vocabularies[0]
    assert len(set.union(*tested[:3])) == sum(map(len, tested[:3])) == 60


# Runs


def test_evaluation_and_resumption_use_the_fold_of_the_run(tmp_path):
    options = ["data.num_folds=5", "data.fold=2"]
    folder = run(tmp_path / "runs", "--config", IRIS, *options, *QUICK)
    assert evaluate.main([str(folder)]) == 0
    found = json.loads((folder / "evaluations/test.json").read_text(encoding="utf-8"))
    expected = figures(folder)
    tests = {name for name in expected if name.startswith("test/")}
    assert len(tests) > 3
    assert all(found[name] == expected[name] or math.isnan(found[name]) for name in tests)
    assert found["num_samples"] == 30
    before = data_digest(folder)
    (folder / "metrics.json").unlink()  # as if the run had been killed in its test
    assert train.main(["--resume", str(folder)]) == 0
    assert {name: figures(folder)[name] for name in tests} == {name: expected[name] for name in tests}
    assert data_digest(folder) == before
    other = run(tmp_path / "other", "--config", IRIS, *options, *QUICK, "seed=1", "data.split_seed=0")
    assert data_digest(other) == before
    other = run(tmp_path / "third", "--config", IRIS, *options, *QUICK, "data.fold=3")
    assert data_digest(other) != before


@pytest.mark.parametrize("key", ["data.fold=3", "data.num_folds=4"])
def test_the_fold_of_a_run_cannot_be_changed_in_an_evaluation(key, tmp_path):
    folder = run(tmp_path / "runs", "--config", IRIS, "data.num_folds=5", "data.fold=2", *QUICK)
    expected = f"{key.partition('=')[0]}: cannot be changed: the test set would contain training samples"
    with pytest.raises(UserError, match=expected):
        evaluate.main([str(folder), key])
