"""Reading text files: every row is read, or one line names the row that is wrong."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.parts.text_files import Columns, copy_rows, map_rows, read_file
from engine.contracts import DataError

COLUMNS = Columns("text", None, "label")
PAIRS = Columns("text", "second", "label")


def read(tmp_path, name: str, content: str | bytes, columns: Columns = COLUMNS):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_file("data.train", path, columns))


def refused(tmp_path, name: str, content: str | bytes, columns: Columns = COLUMNS) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content, columns)
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in message
    return message


def test_csv_quotes_commas_and_line_breaks(tmp_path):
    rows = read(tmp_path, "a.csv", 'id,text,label\r\n1,"one, ""two""\nthree",x\r\n\r\n2,four\u2028five, y \r\n')
    assert rows == [(2, 'one, "two"\nthree', None, "x"), (5, "four\u2028five", None, " y ")]


def test_quotation_marks_are_ordinary_characters_in_tsv(tmp_path):
    rows = read(tmp_path, "a.tsv", 'text\tlabel\n"open\t0\nit\'s "so"\t1\n')
    assert rows == [(2, '"open', None, "0"), (3, 'it\'s "so"', None, "1")]


def test_json_lines_with_numbers_as_labels(tmp_path):
    lines = [{"text": "一\n二", "label": 3, "more": [1]}, {"text": "b", "label": "c"}]
    rows = read(tmp_path, "a.jsonl", "\n\n".join(json.dumps(one) for one in lines))
    assert rows == [(1, "一\n二", None, "3"), (3, "b", None, "c")]


def test_pairs_and_a_byte_order_mark(tmp_path):
    rows = read(tmp_path, "a.CSV", b"\xef\xbb\xbftext,second,label\na,b,c\n", PAIRS)
    assert rows == [(2, "a", "b", "c")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "data.train: a.csv is empty"),
        ("a.csv", " \n\n", "data.train: a.csv is empty"),
        ("a.csv", "text,label\n", "data.train: a.csv has a header and no rows"),
        ("a.txt", "text,label\n", "data.train: the format of a.txt is unknown; give a .csv, .tsv, .jsonl or .parquet file"),
        ("a.csv", "txt,label\na,b\n", "data.text_column: a.csv:2 has no column 'text'; did you mean txt?"),
        ("a.csv", "sentence,label\na,b\n", "data.text_column: a.csv:2 has no column 'text'; it has sentence, label"),
        ("a.tsv", "text,label\na,b\n", "data.text_column: a.tsv:2 has no column 'text'; its header has one column, 'text,l"),
        ("a.tsv", "text\nb\n", "data.target: a.tsv:2 has no column 'label'; it has text"),
        ("a.csv", "text,text\na,b\n", "a.csv:1: the header has 'text' twice"),
        ("a.csv", "text,label\na,b\nc\n", "a.csv:3: 1 columns; the header has 2"),
        ("a.csv", "text,label\na,b,c\n", "a.csv:2: 3 columns; the header has 2"),
        ("a.csv", "text,label\n,\n", "a.csv:2: no text in column 'text'"),
        ("a.jsonl", '{"text": 1917, "label": 1}', "a.jsonl:1: 1917 in column 'text' is not a text; put it in quotes"),
        ("a.jsonl", '{"text": "hi \\ud83d", "label": 1}', "a.jsonl:1: has an unpaired surrogate; write the whole"),
        ("a.csv", "text,label\n  ,b\n", "a.csv:2: no text in column 'text'"),
        ("a.csv", "text,label\na,b\nc,\n", "a.csv:3: no label in column 'label'"),
        ("a.jsonl", '{"text": null, "label": 1}', "a.jsonl:1: no text in column 'text'"),
        ("a.jsonl", '{"text": "a", "label": 0.5}', "a.jsonl:1: 0.5 in column 'label' is not a label; write a word or a "),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text"', "a.jsonl:2: is not JSON (Expecting ':' delimiter"),
        ("a.jsonl", "[1]", "a.jsonl:1: is not an object"),
        ("a.csv", 'text,label\na,b\n"c,d\n', "a.csv:3: cannot be read (unexpected end of data); a quotation mark that"),
        ("a.csv", b"text,label\na,b\n\xe9t\xe9,c\n", "a.csv:3: is not UTF-8 text (byte 15); save the file as UTF-8"),
        ("a.tsv", "a\tb\n".encode("utf-16"), "a.tsv:1: is not UTF-8 text (byte 0)"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_file_and_row(tmp_path, name, content, message):
    assert refused(tmp_path, name, content).startswith(message)


def test_a_pair_without_its_second_text(tmp_path):
    assert refused(tmp_path, "a.csv", "text,second,label\na,,c\n", PAIRS) == "a.csv:2: no text in column 'second'"


def test_missing_files(tmp_path):
    with pytest.raises(
        DataError, match=r"data\.test: .*/no\.csv does not exist; give a \.csv, \.tsv, \.jsonl, \.parquet file"
    ):
        list(read_file("data.test", tmp_path / "no.csv", COLUMNS))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"data\.test: .*/folder\.csv cannot be read \(Is a directory\)"):
        list(read_file("data.test", tmp_path / "folder.csv", COLUMNS))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_file_that_never_ends_is_not_read(tmp_path, make):
    make(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"data\.test: .*/a\.csv is not a regular file"):
        list(read_file("data.test", tmp_path / "a.csv", COLUMNS))


def test_a_field_longer_than_the_limit_of_the_csv_module(tmp_path):
    assert len(read(tmp_path, "a.csv", f"text,label\n{'a' * 200_000},b\n")[0].text) == 200_000


def parquet(tmp_path, **columns):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    return read_file("data.train", tmp_path / "a.parquet", COLUMNS)


def test_parquet(tmp_path):
    rows = list(parquet(tmp_path, text=["a\nb", "c"], label=[1, 0], more=[[1], [2]]))
    assert rows == [(1, "a\nb", None, "1"), (2, "c", None, "0")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", None], "label": [1, 0]}, "a.parquet row 2: no text in column 'text'"),
        ({"text": ["a", "b"], "label": [1, None]}, "a.parquet row 2: no label in column 'label'"),
        ({"text": ["a", "b"], "label": [0.5, 1.5]}, "a.parquet row 1: 0.5 in column 'label' is not a label"),
        ({"text": [1, 2], "label": [0, 1]}, "a.parquet row 1: 1 in column 'text' is not a text"),
        ({"words": ["a"], "label": [0]}, "data.text_column: a.parquet row 1 has no column 'text'; it has words, label"),
        ({"text": [], "label": []}, "data.train: a.parquet has a header and no rows"),
    ],
)
def test_an_error_in_parquet(columns, message, tmp_path):
    with pytest.raises(DataError) as caught:
        list(parquet(tmp_path, **columns))
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(message)


def test_a_damaged_parquet_file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read"):
        list(read_file("data.train", tmp_path / "a.parquet", COLUMNS))


def test_rows_of_a_mapped_file(tmp_path):
    read(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"t{i}\t{i % 3}\n" for i in range(25)))
    copy_rows(read_file("data.train", tmp_path / "a.tsv", COLUMNS), tmp_path / "rows.arrow")
    rows = map_rows(str(tmp_path / "a.tsv"), tmp_path / "rows.arrow", "digest")
    assert len(rows) == 25
    assert rows.place(7) == f"{tmp_path}/a.tsv:9"
    assert [pair for chunk in rows.chunks() for pair in chunk] == [(f"t{i}", None) for i in range(25)]
    chosen = np.arange(25) % 2 == 1
    assert [text for chunk in rows.chunks(chosen) for text, _ in chunk] == [f"t{i}" for i in range(1, 25, 2)]
