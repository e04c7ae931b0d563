"""Tables of the user: how files are read, kinds of columns, missing values, splits, and mistakes in one line."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import train
from datamodules.parts.splits import group_split
from datamodules.parts.table_files import find_separator, is_header
from datamodules.table import Table
from engine.contracts import DataError, UserError
from tests.files import write_table
from tests.runs import WITHOUT_PICTURES, figures, run

COLOURS = ("red", "green", "blue")


@pytest.fixture
def make(tmp_path):
    """Make a datamodule from the text of a file."""

    def make_table(text: str | bytes, name: str = "train.csv", **options) -> Table:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        datamodule = Table(**({"train": str(path), "target": "y", "val_fraction": 0.2} | options))
        datamodule.setup()
        return datamodule

    return make_table


def rows(count: int = 40, separator: str = ",", header: str = "a,b,y") -> str:
    """A table with a number, a category and a label."""
    lines = [header, *(f"{i / 4},{COLOURS[i % 3]},{'yes' if i % 2 else 'no'}" for i in range(count))]
    return "\n".join(lines).replace(",", separator) + "\n"


def values(datamodule: Table) -> dict[float, tuple[float, int]]:
    """The code of the category and the label of each row, by its number."""
    found = {}
    for inputs, labels in datamodule.splits().values():
        for (number, code), label in zip(inputs.tolist(), labels.tolist(), strict=True):
            found[number] = (code, label)
    return found


EXPECTED = {i / 4: (1.0 + sorted(COLOURS).index(COLOURS[i % 3]), i % 2) for i in range(40)}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_separator_and_encoding_are_found(separator, encoding, ending, make):
    text = rows(separator=separator).replace("\n", ending)
    datamodule = make(text.encode(encoding))
    assert [column.categories for column in datamodule.columns] == [(), ("blue", "green", "red")]
    assert datamodule.class_names == ("no", "yes")
    assert values(datamodule) == EXPECTED


def test_a_file_without_a_header(make):
    datamodule = make(rows().partition("\n")[2], target="column_3")
    assert [column.name for column in datamodule.columns] == ["column_1", "column_2"]
    assert values(datamodule) == EXPECTED


def test_decimal_commas(make):
    datamodule = make("a;b;y\n" + "".join(f"{i},5;x,{i};{i % 2}\n" for i in range(40)))
    assert sorted(value for inputs, _ in datamodule.splits().values() for value in inputs[:, 0].tolist())[:2] == [
        0.5,
        1.5,
    ]
    assert datamodule.columns[1].categories


def test_parquet_is_read_as_csv_is(make, tmp_path):
    table = {"a": [i / 4 for i in range(40)], "b": [COLOURS[i % 3] for i in range(40)], "y": [i % 2 for i in range(40)]}
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    datamodule = Table(str(tmp_path / "train.parquet"), "y")
    datamodule.setup()
    assert datamodule.class_names == ("0", "1")
    assert values(datamodule) == EXPECTED


def test_quotes_and_line_breaks_in_fields(make):
    text = "a,b,y\n" + "".join(f'{i},"x, ""{i % 2}""\nz",{i % 2}\n' for i in range(40))
    assert make(text).columns[1].categories == ('x, "0"\nz', 'x, "1"\nz')


@pytest.mark.parametrize("missing", ["", "NA", "?", "nan", "NaN", "null", " "])
def test_missing_values(missing, make):
    lines = rows(200).splitlines()
    lines[1::10] = [f"{missing},{missing},no"] * len(lines[1::10])
    datamodule = make("\n".join(lines))
    inputs = torch.cat([inputs for inputs, _ in datamodule.splits().values()])
    assert [column.categories for column in datamodule.columns] == [(), ("blue", "green", "red")]
    assert int(inputs[:, 0].isnan().sum()) == int((inputs[:, 1] == 0).sum()) == 20
    assert sum(column.num_missing for column in datamodule.columns) == 2 * int(
        datamodule.splits()["train"][0][:, 0].isnan().sum()
    )


def test_none_is_a_word(make):
    datamodule = make("a,b,y\n" + "".join(f"{i},{('none', '-')[i % 2]},{('none', 'some')[i % 2]}\n" for i in range(40)))
    assert datamodule.class_names == ("none", "some")
    assert datamodule.columns[1].categories == ("-", "none")


def test_categories_that_training_never_saw_are_missing(make, tmp_path):
    (tmp_path / "test.csv").write_text("a,b,y\n1,violet,yes\n2,red,no\n")
    datamodule = make(rows(), test=str(tmp_path / "test.csv"))
    assert datamodule.splits()["test"][0][:, 1].tolist() == [0.0, 3.0]


def test_other_columns_and_another_order_of_columns_do_not_matter_in_the_test(make, tmp_path):
    (tmp_path / "test.csv").write_text("more,y,b,a\n9,yes,red,1\n9,no,blue,2\n")
    datamodule = make(rows(), test=str(tmp_path / "test.csv"))
    assert datamodule.splits()["test"][0].tolist() == [[1.0, 3.0], [2.0, 1.0]]


def test_kinds_of_columns_can_be_set(make):
    text = "zip,size,y\n" + "".join(f"{i % 5},{'unknown' if i % 7 == 0 else i},{i % 2}\n" for i in range(70))
    datamodule = make(text, categorical=["zip"], numeric=["size"])
    assert [column.categories for column in datamodule.columns] == [("0", "1", "2", "3", "4"), ()]
    sizes = torch.cat([inputs[:, 1] for inputs, _ in datamodule.splits().values()])
    assert int(sizes.isnan().sum()) == 10
    assert [column.name for column in make(text, drop=["zip"]).columns] == ["size"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a"], ("a", "b")),
        (["10", "9"], ("9", "10")),
        (["1.5", "-2"], ("-2", "1.5")),
        (["True", "False"], ("False", "True")),
    ],
)
def test_classes_are_in_the_order_of_numbers_or_of_the_alphabet(labels, expected, make):
    text = "a,y\n" + "".join(f"{i},{labels[i % 2]}\n" for i in range(40))
    assert make(text).class_names == expected


def test_the_kinds_of_columns_come_from_the_training_part_alone(make, tmp_path):
    (tmp_path / "test.csv").write_text("a,b,y\nbroken,red,no\n")
    datamodule = make(rows(), test=str(tmp_path / "test.csv"))
    assert math.isnan(datamodule.splits()["test"][0][0, 0])


def test_groups_stay_on_one_side(make):
    text = "person,a,y\n" + "".join(f"p{i // 5},{i},{i % 2}\n" for i in range(500))
    datamodule = make(text, group_column="person")
    assert [column.name for column in datamodule.columns] == ["a"]
    people = {split: {int(a) // 5 for a in inputs[:, 0].tolist()} for split, (inputs, _) in datamodule.splits().items()}
    assert not people["train"] & people["val"]
    assert not people["train"] & people["test"]
    assert not people["val"] & people["test"]
    assert len(people["test"]) == pytest.approx(20, abs=2)
    first, _ = group_split(torch.tensor([0, -1, 0, -1]), 0.5, 0, "data.val_fraction")
    assert {0, 2} <= {*first.tolist()} or not {0, 2} & {*first.tolist()}


def test_the_start_names_kinds_missing_values_and_identifiers(make, capsys):
    text = "id,name,age,member,y\n" + "".join(
        f"{i},n{i},{'' if i % 9 == 0 else 30 + i % 7 + 0.5},{'yes' if i % 2 else 'no'},{i % 3}\n" for i in range(90)
    )
    make(text)
    printed = capsys.readouterr().out
    assert "numbers      2: id, age\n" in printed
    assert "categories   1: name\n" in printed
    assert "yes/no       1: member\n" in printed
    assert "values of the training part: age (" in printed
    assert "warning: id has a different value in every row; if it is an identifier, set 'data.drop=[id]'\n" in printed
    assert "warning: name has a different value in every row" in printed
    assert "unknown in" not in printed  # follows from the warning above


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a,b", "1,2"], ","), (["a;b", "1,5;2"], ";"), (["a\tb c", "1\t2"], "\t"), (["a|b|c", "1|2|3"], "|"),
        (['"x;y",b', '"1;2",2'], ","), (["a", "1"], ","), (["a,b;c,d", "1,2;3,4"], ","),
    ],
)  # fmt: skip
def test_separators(lines, expected):
    assert find_separator(lines) == expected


@pytest.mark.parametrize(
    ("first", "rows", "expected"),
    [
        (["a", "b"], [["1", "2"]], True),
        (["a", "2"], [["1", "2"]], False),
        (["", "b"], [["1", "2"]], True),
        (["", "red"], [["1", "red"], ["2", "blue"]], False),
        (["", ""], [["1", "2"]], False),
        (["a", "a"], [["1", "2"]], True),
        (["a", "b", ""], [["1", "b", ""]], True),
        (["a", "NA"], [["1", "2"]], False),
        (["red", "red"], [["red", "blue"]], False),
        (["a", "b"], [], True),
    ],
)
def test_headers(first, rows, expected):
    assert is_header(first, rows) is expected


def test_the_index_of_pandas_gets_a_name(make, capsys):
    lines = rows().splitlines()
    make("\n".join(["," + lines[0], *(f"{i},{line}" for i, line in enumerate(lines[1:]))]))
    printed = capsys.readouterr().out
    assert "numbers      2: column_1, a\n" in printed
    assert (
        "warning: column_1 has a different value in every row; if it is an identifier, set 'data.drop=[column_1]'"
        in printed
    )


def test_infinite_numbers_are_missing(make, capsys):
    datamodule = make(rows().replace("1.25,", "inf,").replace("2.5,", "-inf,"))
    assert [bool(column.categories) for column in datamodule.columns] == [False, True]
    assert sum(int(inputs[:, 0].isnan().sum()) for inputs, _ in datamodule.splits().values()) == 2
    assert not any(inputs.isinf().any() for inputs, _ in datamodule.splits().values())


def test_a_column_of_many_categories_is_a_warning(make, capsys):
    make("a,b,y\n" + "".join(f"{i % 7},2020-01-{i % 60},{i % 2}\n" for i in range(120)))
    assert "warning: b has 49 categories; if it is a text or a date, set 'data.drop=[b]'" in capsys.readouterr().out


GOOD = rows()
MISTAKES = [
    (GOOD, {"target": "Y"}, "data.target: TRAIN has no column 'Y'; it has a, b, y"),
    (GOOD, {"target": "colour"}, "has no column 'colour'; it has a, b, y"),
    (GOOD.replace("a,b,y", "a,a,y"), {}, "data.train: TRAIN has two columns with the name 'a'; rename one of them"),
    (GOOD, {"drop": ["bb"]}, "data.drop: TRAIN has no column 'bb'"),
    (GOOD, {"categorical": ["c"]}, "data.categorical: TRAIN has no column 'c'"),
    (GOOD, {"numeric": ["c"]}, "data.numeric: TRAIN has no column 'c'"),
    (GOOD, {"group_column": "c"}, "data.group_column: TRAIN has no column 'c'"),
    (GOOD, {"drop": ["y"]}, "data.drop: y is the target; remove it from the list"),
    (GOOD, {"numeric": ["a"], "categorical": ["a"]}, "data.numeric: a is in data.categorical, too"),
    (GOOD, {"drop": ["a", "b"]}, "has no column besides the target 'y'"),
    (GOOD, {"test": "TRAIN"}, "data.train: another split uses the same file"),
    (GOOD, {"test": "nowhere.csv"}, "data.test: nowhere.csv does not exist"),
    (GOOD, {"test": "."}, "data.test: . is a folder; give a .csv, .tsv, .parquet file"),
    ("", {}, "TRAIN is empty"),
    ("\n\n", {}, "TRAIN is empty"),
    ("a,b,y\n", {}, "TRAIN has no rows"),
    ("a,a,y\n1,2,no\nx,x,yes\n", {}, "TRAIN has two columns with the name 'a'; rename one of them"),
    (GOOD + "1,red\n", {}, "cannot be read: a row has 2 columns, and the first row has 3: 1,red"),
    (GOOD + "1,red,yes,4\n", {}, "a row has 4 columns, and the first row has 3"),
    (GOOD.replace("red", "r\xe9d").encode("latin-1"), {}, "it is not UTF-8 text; save it as UTF-8"),
    (b"\x89PNG\r\n\0\0\0", {}, "is not a text file; give a CSV or TSV file in UTF-8"),
    (GOOD.replace(",yes", ",no"), {}, "data.target: every row has the label 'no'"),
    (GOOD.replace(",yes", ","), {}, "row 2: no label in column 'y', and 19 more rows; every row needs a label"),
    (GOOD + "1,red,Yes\n", {}, "the labels 'Yes' and 'yes' differ only in case; write them alike"),
    ("a,y\n" + "".join(f"{i},{i / 3}\n" for i in range(500)), {}, "500 different numbers; regression is not supported"),
    (
        "a,y\n" + "".join(f"{i},n{i}\n" for i in range(50)),
        {},
        "50 different labels in 50 rows; is it the right column?",
    ),
    ('a,y\n"1,no\n2,yes\n', {}, "cannot be read"),
    (GOOD, {"val_fraction": 0.001}, "data.val_fraction: 0.001 of"),
    ("g,a,y\n" + "".join(f"1,{i},{i % 2}\n" for i in range(40)), {"group_column": "g"}, "has 1 group; choose another"),
]


@pytest.mark.parametrize(("text", "options", "expected"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line(text, options, expected, make, tmp_path):
    file = str(tmp_path / "train.csv")
    options = {key: file if value == "TRAIN" else value for key, value in options.items()}
    with pytest.raises(UserError) as raised:
        make(text, **options)
    assert expected.replace("TRAIN", file) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,y\n1,no\n", "data.test: TEST has no column 'b', which the training set has; it has a, y"),
        ("a,b\n1,red\n", "data.target: TEST has no column 'y'"),
        ("a,b,y\n1,red,maybe\n", "data.test: TEST, row 1: the label 'maybe' does not occur in the training set"),
        ("a,b,y\n1,red,\n", "data.test: TEST, row 1: no label in column 'y'; every row needs a label"),
    ],
)
def test_a_test_file_that_does_not_fit(text, expected, make, tmp_path):
    file = tmp_path / "test.csv"
    file.write_text(text)
    with pytest.raises(DataError) as raised:
        make(GOOD, test=str(file))
    assert expected.replace("TEST", str(file)) in str(raised.value)


def test_parquet_with_a_column_that_is_no_value(tmp_path):
    pq.write_table(pa.table({"a": [[1], [2]], "y": ["x", "z"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'a' has the type list"):
        Table(str(tmp_path / "t.parquet"), "y").prepare_data()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(DataError, match="cannot be read"):
        Table(str(tmp_path / "broken.parquet"), "y").prepare_data()


def test_only_yaml_and_one_command(tmp_path, capsys):
    """From a file to a figure that is better than chance, without code."""
    write_table(tmp_path / "train.csv", 400)
    options = [f"data.train={tmp_path / 'train.csv'}", "data.target=label", "trainer.max_epochs=8", *WITHOUT_PICTURES]
    folder = run(tmp_path / "runs", "--config", "configs/table_mlp.yaml", *options)
    assert figures(folder)["test/accuracy"] > 0.8
    assert "mlp: " in capsys.readouterr().out


def test_two_classes_have_a_roc_auc(tmp_path, capsys):
    (tmp_path / "train.csv").write_text(rows(200))
    options = [f"data.train={tmp_path / 'train.csv'}", "data.target=y", "trainer.max_epochs=2", "model.num_members=2"]
    folder = run(tmp_path / "runs", "--config", "configs/table_mlp.yaml", *options, *WITHOUT_PICTURES)
    assert 0 <= figures(folder)["test/roc_auc"] <= 1
    assert 0 <= figures(folder)["val/average_precision"] <= 1
    assert "roc_auc" in capsys.readouterr().out


def test_the_tutorials_classifier_is_yaml_alone(tmp_path, monkeypatch, capsys):
    """10 numbers, hidden layers of 128 and 64, two classes."""
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(300, 10))
    lines = [",".join([*(f"x{i}" for i in range(10)), "y"])]
    lines += [",".join([*map(str, row), str(int(row[:3].sum() > 0))]) for row in numbers]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    argv = ["--config", "configs/table_mlp.yaml", f"data.train={tmp_path / 'train.csv'}", "data.target=y"]
    network = ["model.hidden_sizes=[128, 64]", "model.num_members=1", "trainer.max_epochs=10"]
    folder = run(tmp_path / "runs", *argv, *network, *WITHOUT_PICTURES)
    assert figures(folder)["test/accuracy"] > 0.8
    assert train.main([*argv, "data.target=z", f"run.root={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_is_not_regular(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is not a regular file"):
        Table(str(tmp_path / "pipe.csv"), "y").prepare_data()


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path(tmp_path / "t.csv").write_text(rows())
    Table("~/t.csv", "y").prepare_data()


@pytest.mark.parametrize(
    "text",
    ["\n" + rows(), "\n \n" + rows(), "\ufeff\r\n" + rows(), rows(header='"the\na",b,y'), rows(header='a,"b\r\n",y')],
    ids=["empty line", "two lines", "mark and line", "line break in a name", "line break at the end of a name"],
)
def test_the_header_is_the_first_row_with_text(text, make):
    datamodule = make(text)
    assert datamodule.class_names == ("no", "yes")
    assert datamodule.columns[0].name in ("a", "the a")
    assert values(datamodule) == EXPECTED


@pytest.mark.parametrize("number", ["1e39", "-1e300", "3e38", "1e400"])
@pytest.mark.parametrize("embedding", ["none", "piecewise_linear", "periodic"])
@pytest.mark.filterwarnings("error")
def test_numbers_beyond_32_bits_give_finite_losses(number, embedding, make):
    from lit_models.mlp import LitMLP

    datamodule = make("a,b,y\n" + "".join(f"{number if i % 9 == 0 else i},{i % 5},{i % 2}\n" for i in range(60)))
    inputs = datamodule.training_inputs()
    model = LitMLP(**datamodule.spec.model_arguments(), numeric_embedding=embedding)
    model.initialize_from_data(inputs, datamodule.mean, datamodule.std)
    assert model(inputs).isfinite().all()


def test_a_set_with_more_unreadable_values_is_reported(make, tmp_path, capsys):
    (tmp_path / "test.csv").write_text(rows().replace(",red", ",Red").replace("\n1", "\n1 km"))
    make(rows(), test=str(tmp_path / "test.csv"))
    printed = capsys.readouterr().out
    assert (
        "warning: 35% of the values of b are missing or unknown in the test set, compared with 0% in the training set"
        in printed
    )
    make(rows())
    assert "unknown" not in capsys.readouterr().out


def test_words_in_a_column_of_numbers_are_counted_as_missing(make):
    datamodule = make(rows().replace("\n1.25,", "\nmany,"), numeric=["a"], val_fraction=0.1, test_fraction=0.1)
    inputs = datamodule.training_inputs()
    assert datamodule.columns[0].num_missing == inputs[:, 0].isnan().sum()


def test_numbers_that_are_equal_in_32_bits_are_reported(make, capsys):
    text = "time,y\n" + "".join(f"{1_700_000_000 + i},{i % 2}\n" for i in range(60))
    make(text)
    assert "warning: different large numbers of time become equal in 32 bits" in capsys.readouterr().out
    make(text.replace("1700", "0"))
    assert "32 bits" not in capsys.readouterr().out


def test_decimal_commas_may_have_spaces_around_them(make):
    text = "a;b;y\n" + "".join(f" {i},5 ;{i % 3};{i % 2}\n" for i in range(40))
    assert [column.categories for column in make(text).columns] == [(), ()]


def test_a_dropped_column_may_have_any_type(tmp_path):
    columns = {"a": [*range(40)], "tags": [[1]] * 40, "y": [0, 1] * 20}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    options = {"train": str(tmp_path / "train.parquet"), "target": "y"}
    with pytest.raises(DataError, match=r"^data.train: .*column 'tags' has the type .*; drop it with data.drop$"):
        Table(**options).setup()
    datamodule = Table(**options, drop=["tags"])
    datamodule.setup()
    assert [column.name for column in datamodule.columns] == ["a"]


def test_a_group_of_the_training_set_is_refused_in_another_file(make, tmp_path):
    text = "g,a,y\n" + "".join(f"p{i % 10},{i},{i % 2}\n" for i in range(60))
    (tmp_path / "test.csv").write_text("g,a,y\nq1,3,0\np7,4,1\n")
    with pytest.raises(DataError, match=r"has 1 group of data.group_column=g that .* has, too; the first is 'p7'"):
        make(text, test=str(tmp_path / "test.csv"), group_column="g")
    (tmp_path / "test.csv").write_text("g,a,y\nq1,3,0\nq2,4,1\n")
    make(text, test=str(tmp_path / "test.csv"), group_column="g")


@pytest.mark.parametrize("seed", range(12))
def test_a_large_group_leaves_room_for_the_others(seed):
    groups = torch.cat([torch.zeros(150, dtype=torch.int64), torch.arange(250) % 20])
    _, second = group_split(groups, 0.2, seed)
    assert len(second) == pytest.approx(80, abs=10)


def test_equal_numbers_as_labels_are_refused(make):
    with pytest.raises(DataError, match=r"data.target: the labels '1' and '1.0' are the same number; write them alike"):
        make("a,y\n" + "".join(f"{i},{('0', '1', '1.0')[i % 3]}\n" for i in range(60)))


def test_columns_of_another_kind_are_encoded_again(make, tmp_path):
    text, cache = "a,y\n" + "".join(f"{i % 4},{i % 2}\n" for i in range(60)), str(tmp_path / "cache")
    numbers = make(text, cache=cache, memory_gigabytes=0)
    options = {"cache": cache, "memory_gigabytes": 0, "categorical": ["a"]}
    categories = Table(str(tmp_path / "train.csv"), "y", val_fraction=0.2, **options)
    categories.setup()
    assert {*numbers.training_inputs()[:].flatten().tolist()} == {0, 1, 2, 3}
    assert {*categories.training_inputs()[:].flatten().tolist()} == {1, 2, 3, 4}


def test_fractions_are_no_identifiers(make):
    assert not make("a,y\n" + "".join(f"{i / 7},{i % 2}\n" for i in range(60))).columns[0].is_identifier


def test_files_share_the_memory_for_data(make, tmp_path):
    text = rows(4000)
    (tmp_path / "test.csv").write_text(text)
    limit = 5 * len(text) / 1e9  # a table takes about three times the size of its file
    datamodule = make(text, test=str(tmp_path / "test.csv"), memory_gigabytes=limit, cache=str(tmp_path / "cache"))
    assert datamodule._in_memory == {"train": True, "test": False}
