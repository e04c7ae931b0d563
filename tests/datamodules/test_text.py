"""Texts from a file to a batch: split, tokenizer, cache, order, padding."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datamodules import text as text_module
from datamodules.parts.batches import AugmentContext
from datamodules.parts.tokenizer import encode, train_tokenizer
from datamodules.parts.tokens import LengthOrder, TokenRows
from datamodules.text import Text
from engine.checks.data_checks import check_data
from engine.config.signatures import PROJECT
from engine.contracts import DataError, OptionError, plain_training_batches
from tests.files import minilm, texts, write_texts

# --- rows and batches


def rows_of(lengths: list[int], **options) -> TokenRows:
    """Row i holds the numbers 100 * i + 1, 100 * i + 2, ..."""
    ids = torch.tensor(
        [100 * i + j for i, length in enumerate(lengths) for j in range(1, length + 1)], dtype=torch.int32
    )
    sizes = torch.tensor(lengths)
    return TokenRows(ids, sizes.cumsum(0) - sizes, sizes, **options)


def test_a_batch_is_padded_to_its_longest_row_and_a_multiple():
    batch = rows_of([2, 5, 1], pad_id=9, multiple=4)[torch.tensor([2, 0])]
    assert batch["input_ids"].tolist() == [[201, 9, 9, 9], [1, 2, 9, 9]]
    assert batch["attention_mask"].tolist() == [[True, False, False, False], [True, True, False, False]]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_rows_of_one_length_need_no_mask():
    assert set(rows_of([3, 3])[torch.tensor([1, 0])]) == {"input_ids"}


def test_the_second_text_of_a_pair_has_type_1_and_padding_type_0():
    batch = rows_of([4, 3], second_starts=torch.tensor([2, 1]))[torch.tensor([0, 1])]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]


@settings(max_examples=200, deadline=None)
@example(lengths=[1] * 8 + [2], batch_size=2, max_tokens=2, shuffle=False, world_size=2, epoch=0)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=4, max_size=120),
    batch_size=st.integers(1, 20),
    max_tokens=st.integers(1, 200),
    shuffle=st.booleans(),
    world_size=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_every_row_is_used_once_within_both_limits_on_any_number_of_processes(
    lengths, batch_size, max_tokens, shuffle, world_size, epoch
):
    sizes, seen = torch.tensor(lengths), []
    orders = [LengthOrder(sizes, batch_size, max_tokens, shuffle, 0, rank, world_size) for rank in range(world_size)]
    batches = []
    for order in orders:
        order.set_epoch(epoch)
        batches.append(list(order))
        assert len(batches[-1]) == len(order)
    assert len({len(one) for one in batches}) == 1  # otherwise a process would wait for ever
    for one in batches:
        for indices in one:
            assert len(indices) > 0
            longest = int(sizes[indices].max())
            alone = 1 if shuffle else 2  # in evaluation the last rows are divided, too
            assert len(indices) <= max(alone, min(batch_size, max_tokens // longest))
            seen += indices.tolist()
    assert len(seen) == len(set(seen))
    left_out = len(lengths) - len(seen)
    assert left_out == (len(lengths) % world_size if shuffle else 0)
    if shuffle:  # a step has the same number of rows on all processes
        assert all(len({len(indices) for indices in step}) == 1 for step in zip(*batches, strict=True))


def test_rows_and_batches_are_shuffled_by_seed_and_epoch():
    lengths = torch.tensor([3] * 40 + [7] * 40)

    def epoch(number: int, seed: int = 0) -> list[list[int]]:
        order = LengthOrder(lengths, 8, 1000, True, seed)
        order.set_epoch(number)
        return [indices.tolist() for indices in order]

    assert epoch(1) == epoch(1)
    assert epoch(1) != epoch(2)
    assert epoch(1) != epoch(1, seed=1)
    assert {tuple(sorted(one)) for one in epoch(1)} != {tuple(sorted(one)) for one in epoch(2)}  # other rows together
    longs = [lengths[indices[0]].item() for indices in map(torch.tensor, epoch(1))]
    assert longs != sorted(longs)


def test_the_first_batches_of_an_evaluation_are_a_fair_sample():
    lengths = torch.arange(1, 101)
    batches = [lengths[rows].float().mean().item() for rows in LengthOrder(lengths, 2, 1000, False)]
    assert 30 < sum(batches[:10]) / 10 < 70
    assert batches == [lengths[rows].float().mean().item() for rows in LengthOrder(lengths, 2, 1000, False, seed=5)]


def test_other_rows_are_left_out_in_every_epoch():
    order, left_out = LengthOrder(torch.tensor([5] * 9), 2, 100, True, world_size=2), set()
    other = LengthOrder(torch.tensor([5] * 9), 2, 100, True, rank=1, world_size=2)
    for epoch in range(20):
        order.set_epoch(epoch)
        other.set_epoch(epoch)
        seen = {i for indices in [*order, *other] for i in indices.tolist()}
        left_out |= set(range(9)) - seen
        assert len(seen) == 8
    assert len(left_out) > 4


# --- the datamodule


@pytest.fixture
def folder(tmp_path):
    write_texts(tmp_path / "train.tsv", 300)
    write_texts(tmp_path / "test.tsv", 30, seed=1)
    return tmp_path


def make(folder, **options) -> Text:
    datamodule = Text(
        **{"train": str(folder / "train.tsv"), "cache": str(folder / "cache"), "vocab_size": 200, **options}
    )
    datamodule.setup()
    return datamodule


def test_spec(folder):
    spec = make(folder, max_length=30, pad_to_multiple_of=8).spec
    assert (spec.modality, spec.input_shape, spec.class_names) == ("tokens", (), ("bad", "good", "none"))
    assert (spec.pad_id, spec.max_length) == (0, 32)
    assert 50 < spec.vocab_size <= 200


def test_numbers_are_classes_in_numerical_order(tmp_path):
    lines = [f"text {i} of many\t{i % 12}" for i in range(240)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    assert make(tmp_path).spec.class_names == tuple(map(str, range(12)))


def test_splits_have_their_own_files_or_are_split_off_the_training_file(folder):
    alone = make(folder, val_fraction=0.1, test_fraction=0.2)
    assert [alone.num_samples(part) for part in ("train", "val", "test")] == [216, 24, 60]
    with_test = make(folder, test=str(folder / "test.tsv"))
    assert [with_test.num_samples(part) for part in ("train", "val", "test")] == [270, 30, 30]
    write_texts(folder / "val.tsv", 15, seed=2)
    with_both = make(folder, val=str(folder / "val.tsv"), test=str(folder / "test.tsv"))
    assert [with_both.num_samples(part) for part in ("train", "val", "test")] == [300, 15, 30]


def ids_of(batches) -> list[list[int]]:
    return [ids.tolist() for inputs, *_ in batches for ids in inputs["input_ids"]]


def test_masked_tokens(folder):
    """Each epoch masks other tokens, but never special ones. Validation sets and repeated epochs are the same."""
    plain, masked = make(folder), make(folder, mask_fraction=0.3)
    assert (plain.is_augmented, masked.is_augmented) == (False, True)
    assert masked.teacher_logits(lambda inputs: pytest.fail("it was called")) is None
    assert ids_of(masked.val_dataloader()) == ids_of(plain.val_dataloader())
    assert ids_of(plain_training_batches(masked)) == ids_of(plain_training_batches(plain))
    for epoch in (0, 1):
        batches, expected = masked.train_dataloader(), plain.train_dataloader()
        batches.batch_sampler.set_epoch(epoch)
        expected.batch_sampler.set_epoch(epoch)
        before, after = (torch.tensor(sum(ids_of(loader), [])) for loader in (expected, batches))
        is_special = torch.isin(before, torch.tensor(masked.tokenizer.all_special_ids))
        changed = before != after
        assert not (changed & is_special).any()
        assert (after[changed] == masked.tokenizer.mask_token_id).all()
        assert 0.25 < changed.sum() / (~is_special).sum() < 0.35
        assert ids_of(batches) == ids_of(batches)
    inputs, _ = next(iter(plain.train_dataloader()))
    contexts = (AugmentContext(torch.Generator().manual_seed(seed), 0, 0, torch.arange(0)) for seed in (0, 1))
    first, second = (masked.augment(inputs, context)["input_ids"] for context in contexts)
    assert not torch.equal(first, second)


def test_a_tokenizer_without_a_mask_token(folder):
    tokenizer = train_tokenizer(["some words"], 100, lowercase=True)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(OptionError, match=r"data.mask_fraction: the tokenizer has no mask token"):
        make(folder, tokenizer=str(folder / "tokenizer"), mask_fraction=0.1)


def test_the_training_file_cannot_be_the_test_file(folder):
    with pytest.raises(ValueError, match="use different files for training and evaluation"):
        make(folder, test=str(folder / "train.tsv"))
    with pytest.raises(ValueError, match="use different files for training and evaluation"):
        make(folder, test=str(folder / "cache/../train.tsv"))


@pytest.mark.parametrize("key", ["max_tokens", "eval_max_tokens"])
def test_a_row_must_fit_into_a_batch(folder, key):
    with pytest.raises(ValueError, match=rf"data\.{key}: 100 is too small for a row: data\.max_length=100 needs 104"):
        make(folder, **{"max_length": 100, key: 100})


def test_the_label_cannot_be_a_text(folder):
    with pytest.raises(ValueError, match=r"data\.target: label is also a column of text"):
        make(folder, text_pair_column="label")


def test_truncated_texts_and_unknown_tokens_are_reported(folder, capsys):
    make(folder)
    assert capsys.readouterr().out == ""
    make(folder, max_length=6)
    assert "216 of 243 training texts reach data.max_length=6 tokens and may be truncated" in capsys.readouterr().out
    (folder / "zh.tsv").write_text("text\tlabel\n" + "很好的电影\tgood\n很坏的电影\tbad\n" * 20, encoding="utf-8")
    make(folder, train=str(folder / "zh.tsv"), tokenizer=str(minilm()))
    assert "% of all tokens are unknown to the tokenizer; is it for another language?" in capsys.readouterr().out


def test_a_label_that_does_not_occur_in_training(folder):
    (folder / "val.tsv").write_text("text\tlabel\na\tgood\nb\tmediocre\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"val\.tsv:3: the label 'mediocre' does not occur in the training set, which has bad,"
    ):
        make(folder, val=str(folder / "val.tsv"))


def test_one_class_is_not_enough(tmp_path):
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tx\nb\tx\n", encoding="utf-8")
    with pytest.raises(DataError, match="every row has the label 'x'; at least two classes are needed"):
        make(tmp_path)


def test_a_column_of_numbers_is_not_a_column_of_labels(tmp_path):
    lines = [f"text {i}\t{i / 7:.3f}" for i in range(40)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.target: 40 different labels in 40 rows; is it the right column\?"):
        make(tmp_path)


def test_too_few_rows_to_split(tmp_path):
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tx\nb\ty\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"data\.test_fraction: 0\.1 of 2 samples leaves sets of 2 and 0; choose another fraction"
    ):
        make(tmp_path)


def test_the_vocabulary_comes_only_from_the_training_split(tmp_path):
    """A character that occurs only in the validation file is unknown."""
    write_texts(tmp_path / "train.tsv", 100)
    (tmp_path / "val.tsv").write_text("text\tlabel\nç\tgood\na\tbad\n", encoding="utf-8")
    datamodule = make(tmp_path, val=str(tmp_path / "val.tsv"))
    rows, _ = datamodule.splits()["val"]
    unknown = datamodule.tokenizer.unk_token_id
    assert (rows[torch.tensor([0])]["input_ids"] == unknown).sum() == 1
    assert (rows[torch.tensor([1])]["input_ids"] == unknown).sum() == 0


@pytest.mark.slow
def test_the_same_texts_always_give_the_same_vocabulary():
    """The trainer of the library breaks ties by the order of a hash table."""
    script = (
        "from tests.files import texts; from datamodules.parts.tokenizer import train_tokenizer;"
        "print(train_tokenizer([one for one, _ in texts(300)], 150, True).backend_tokenizer.to_str())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    again = train_tokenizer([one for one, _ in texts(300)], 150, True).backend_tokenizer.to_str()
    assert runs[0] == runs[1] == again + "\n"


def test_chinese_characters_are_words_and_accents_are_kept():
    tokenizer = train_tokenizer(["很好的电影", "很坏的电影", "Déjà vu"], 200, True)
    assert tokenizer.tokenize("电影很好") == ["电", "影", "很", "好"]
    assert "".join(tokenizer.tokenize("DÉJÀ")).replace("##", "") == "déjà"
    assert tokenizer.decode(tokenizer("vu")["input_ids"], skip_special_tokens=True) == "vu"


@pytest.mark.parametrize("tokenizer", [None, str(minilm())])
@pytest.mark.parametrize("character", ["\u200b", "\0", "\u2060", "\ufffd", "\ue000", "\x7f"])
def test_texts_without_a_visible_character(character, tokenizer, tmp_path):
    lines = [f"{character * (i + 1)}\t{i % 2}" for i in range(40)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    expected = r"data\.train: no text has a word of 1 to 100 visible characters; check data\.text_column"
    with pytest.raises(DataError, match=expected):
        make(tmp_path, tokenizer=tokenizer)


@pytest.mark.parametrize("text", ["a", "ab", "e\u0301", "ab\x1c", "日本a" * 9 + "ab", "🙂", "'" * 300 + "ab"])
def test_a_text_without_a_space_is_tokenized_in_seconds(text, tmp_path):
    """The training time of the library grows with the square of a word's length: 100,000 letters take 5 s."""
    long, words = text * (200_000 // len(text)), [one for one, _ in texts(100)]
    tokenizer = train_tokenizer([*words, long], 200, True)
    encode(tokenizer, [[(long, None)]], 1, 128, tmp_path)
    assert len(np.load(tmp_path / "ids.npy")) <= 128


@pytest.mark.parametrize(
    "word", ["x" * 101, "x" * 5000, "(" + "é" * 300 + ")", "🙂" * 101, "x" * 60 + "\x1c" + "x" * 60]
)
def test_words_that_are_always_unknown_do_not_change_the_vocabulary(word):
    words = [one for one, _ in texts(100)]
    expected = train_tokenizer([*words, "( )"], 200, True).get_vocab()
    assert train_tokenizer([*words, f"( {word} )"], 200, True).get_vocab() == expected
    kept = train_tokenizer([*words, "( " + "z" * 100 + " )"], 200, True).get_vocab()
    assert "z" in kept


def test_texts_are_tokenized_once(folder, monkeypatch):
    calls = []
    real = text_module.encode
    monkeypatch.setattr(text_module, "encode", lambda *arguments: calls.append(1) or real(*arguments))
    first = make(folder, test=str(folder / "test.tsv"))
    assert len(calls) == 2
    again = make(folder, test=str(folder / "test.tsv"))
    assert len(calls) == 2
    assert again.fingerprint == first.fingerprint
    make(folder, test=str(folder / "test.tsv"), max_length=5)
    assert len(calls) == 4
    with (folder / "test.tsv").open("a", encoding="utf-8") as file:
        file.write("one more\tgood\n")
    make(folder, test=str(folder / "test.tsv"))
    assert len(calls) == 5


def replace_array(change):
    def alter(path):
        np.save(path, change(np.load(path)), allow_pickle=True)

    return alter


def replace_text(old: str, new: str):
    def alter(path):
        content = path.read_text(encoding="utf-8")
        path.write_text(content.replace(old, new) if old in content else content + " ", encoding="utf-8")

    return alter


def flip(place: float):
    def alter(path):
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return alter


def replace_file(make):
    def alter(path):
        path.unlink()
        make(path)

    return alter


ANY_FILE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "first bit": flip(0.0),
    "middle bit": flip(0.5),
    "last bit": flip(1.0),
    "missing": replace_file(lambda path: None),
    "renamed": lambda path: path.rename(path.with_name("x" + path.name)),
    "a folder": replace_file(lambda path: path.mkdir()),
    "a pipe": replace_file(os.mkfifo),
    "a device": replace_file(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": replace_file(lambda path: path.symlink_to("nothing")),
    "a link to itself": replace_file(lambda path: path.symlink_to(path)),
    "one more array": lambda path: np.save(path.with_name("second_starts.npy"), np.zeros(300, np.int64)),
    "one more folder": lambda path: (path.parent / "more").mkdir(),
    "an empty file more": lambda path: (path.parent / ".swp").touch(),
    "another entry's content": lambda path: path.write_bytes(b"{}"),
    "no folder": lambda path: shutil.rmtree(path.parent),
    "a file for the folder": lambda path: (shutil.rmtree(path.parent), path.parent.touch()),
    "a link for the folder": lambda path: (
        path.parent.rename(path.parent.parent / "moved"),
        path.parent.symlink_to("moved"),
    ),
    "another name of the folder": lambda path: path.parent.rename(f"{path.parent}0"),
}
ARRAY = {
    "all 7": replace_array(lambda values: np.full_like(values, 7)),
    "negative": replace_array(lambda values: -values),
    "reversed": replace_array(lambda values: values[::-1]),
    "one row less": replace_array(lambda values: values[:-1]),
    "floats": replace_array(lambda values: values.astype(float)),
    "texts": replace_array(lambda values: values.astype(str)),
    "objects": replace_array(lambda values: values.astype(object)),
    "two axes": replace_array(lambda values: values[None]),
    "huge": replace_array(lambda values: values + 2**30),
}
JSON = {
    "swapped words": replace_text('"good"', '"bad"'),
    "other ids": replace_text(": 7", ": 8"),
    "a word": replace_text("{", "nonsense{"),
}
ALTERATIONS = [
    (name, change)
    for files, changes in (
        (("ids.npy", "lengths.npy", "tokenizer.json", "tokenizer_config.json"), ANY_FILE),
        (("ids.npy", "lengths.npy"), ARRAY),
        (("tokenizer.json",), JSON),
    )
    for name in files
    for change in changes
]


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A folder with texts and a cache, and the fingerprint of the data."""
    folder = tmp_path_factory.mktemp("cached")
    write_texts(folder / "train.tsv", 300)
    return folder, make(folder).fingerprint


@pytest.mark.parametrize(("name", "change"), ALTERATIONS)
def test_a_changed_cache_is_created_again(cached, name, change, capsys, tmp_path):
    folder, fingerprint = cached
    shutil.copytree(folder / "cache", tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob(f"*/{name}")
    before = {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "cache").glob("*/*")}
    (ANY_FILE | ARRAY | JSON)[change](path)
    capsys.readouterr()
    assert make(folder, cache=str(tmp_path / "cache")).fingerprint == fingerprint
    shown = capsys.readouterr().out
    if change == "no folder":
        assert shown == ""
    else:
        assert re.fullmatch(
            r"data\.cache: .*/cache/token\S+ was changed after it was written; it is created again\n", shown
        )
    for moved in (tmp_path / "cache").glob("moved"):
        shutil.rmtree(moved)
    assert {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "cache").glob("*/*")} == before
    make(folder, cache=str(tmp_path / "cache"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
@pytest.mark.parametrize("separate", [True, False])
def test_rows_that_are_in_two_splits_are_named_by_file_and_line(suffix, separate, tmp_path):
    def write(name, rows):
        if suffix == "tsv":
            lines = ["", "text\tlabel", "", *(f"{text}\t{label}" for text, label in rows)]
        else:
            lines = ["", "", "", *(json.dumps({"text": text, "label": label}) for text, label in rows)]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return str(tmp_path / name)

    rows = texts(60)
    rows[20:] = [*rows[20:50], *rows[20:30]] if not separate else rows[20:]
    train = write(f"train.{suffix}", rows)
    test = write(f"test.{suffix}", [("a film", "good"), rows[7]]) if separate else None
    datamodule = make(tmp_path, train=train, test=test, test_fraction=0.4)
    found = [result.text for result in check_data(datamodule) if result.title == "duplicate rows"]
    places = [re.findall(r"\((\S+):(\d+) equals (\S+):(\d+)\)", text) for text in found]
    if separate:
        assert places[1] == [(str(tmp_path / f"test.{suffix}"), "5", train, "11")]
    else:
        ((file, line, first_file, first_line),) = [place[0] for place in places if place][:1]
        lines = (tmp_path / f"train.{suffix}").read_text(encoding="utf-8").split("\n")
        assert file == first_file == train
        assert line != first_line
        assert lines[int(line) - 1] == lines[int(first_line) - 1]


def test_pairs_and_single_texts_have_different_cache_entries(tmp_path):
    pairs, singles = ["text,second,label"], ["text,label"]
    pairs += [f"a {i},b {i},{i % 2}" for i in range(40)]
    singles += [f"a {i},{i % 2}" for i in range(40)] + [f"b {i},{i % 2}" for i in range(40)]
    for name, lines in (("pairs", pairs), ("singles", singles)):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
        column = "second" if name == "pairs" else None
        same = {"tokenizer": str(minilm()), "text_pair_column": column}
        rows, _ = make(tmp_path, train=str(tmp_path / f"{name}.csv"), **same).splits()["train"]
        assert (rows.second_starts is not None) == (name == "pairs")


def test_long_rows_are_truncated_and_in_pairs_the_longer_text(tmp_path):
    lines = [json.dumps({"text": "a " * 50, "second": f"b {i}", "label": i % 2}) for i in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    datamodule = make(tmp_path, train=str(tmp_path / "train.jsonl"), text_pair_column="second", max_length=16)
    rows, _ = datamodule.splits()["train"]
    batch = rows[torch.arange(len(rows))]
    assert batch["input_ids"].shape[1] == 16
    assert set(batch) == {"input_ids", "token_type_ids"} | ({"attention_mask"} if "attention_mask" in batch else set())
    ids = datamodule.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert ids[0] == "[CLS]"
    assert ids.count("[SEP]") == 2
    first_of_second = ids.index("[SEP]") + 1
    assert batch["token_type_ids"][0].tolist() == [0] * first_of_second + [1] * (16 - first_of_second)


def test_the_saved_tokenizer_encodes_text_as_in_training(folder):
    from transformers import AutoTokenizer

    datamodule = make(folder, max_length=12)
    datamodule.save(folder / "run")
    tokenizer = AutoTokenizer.from_pretrained(folder / "run/tokenizer")
    rows, labels = datamodule.splits()["test"]
    everything = dict(texts(300))
    for i in range(5):
        ids = [one for one in rows[torch.tensor([i])]["input_ids"][0].tolist() if one != tokenizer.pad_token_id]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        again = tokenizer(text, truncation=True)["input_ids"]
        assert again == ids
    assert {datamodule.class_names[label] for label in labels} == set(everything.values())


def write(path, header: str, labels) -> None:
    lines = [f"{text}\t{label}" for (text, _), label in zip(texts(len(labels)), labels, strict=True)]
    path.write_text("\n".join([header, *lines, ""]))


def test_the_old_name_of_the_target_is_read_with_a_hint(tmp_path, capsys):
    write(tmp_path / "train.tsv", "text\tmood", ["up", "down"] * 30)
    options = {"train": str(tmp_path / "train.tsv"), "vocab_size": 200, "cache": str(tmp_path / "cache")}
    new = Text(**options, target="mood")
    assert "data.label_column" not in capsys.readouterr().out
    old = Text(**options, label_column="mood")
    assert "data.label_column is deprecated; use data.target" in capsys.readouterr().out
    for datamodule in (new, old):
        datamodule.setup()
    assert new.class_names == old.class_names == ("down", "up")
    assert new.fingerprint == old.fingerprint


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["up", "NA", "down"] * 20,
            "train.tsv:3: no label in column 'label', and 19 more rows; every row needs a label",
        ),
        (["up", "Up", "down"] * 20, "data.target: the labels 'Up' and 'up' differ only in case; write them alike"),
        ([*range(120)] * 4, "data.target: 120 different numbers; regression is not supported"),
        (["up"] * 60, "data.target: every row has the label 'up'; at least two classes are needed"),
    ],
)
def test_labels_are_checked_as_in_tables(labels, message, tmp_path):
    write(tmp_path / "train.tsv", "text\tlabel", labels)
    with pytest.raises(DataError) as caught:
        Text(train=str(tmp_path / "train.tsv"), cache=str(tmp_path / "cache")).setup()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_does_not_know_held_out_texts(tmp_path):
    words = ["".join(chr(97 + (i // 26**k) % 26) for k in range(3)) * 2 for i in range(200)]
    rows = [f"{word} {word} {word}\t{i % 2}" for i, word in enumerate(words)]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    datamodule = Text(train=str(tmp_path / "train.tsv"), cache=str(tmp_path / "cache"), vocab_size=5000)
    datamodule.setup()
    vocabulary = datamodule.tokenizer.get_vocab()
    for split, (inputs, _) in datamodule.splits().items():
        lines = [int(datamodule.place(split, row).rpartition(":")[2]) for row in range(len(inputs))]
        assert all((words[line - 2] in vocabulary) == (split == "train") for line in lines)


def test_parquet_gives_the_tokens_of_tsv(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = texts(60)
    write_texts(tmp_path / "train.tsv", 60)
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    found = []
    for name in ("train.tsv", "train.parquet"):
        datamodule = Text(train=str(tmp_path / name), vocab_size=200, cache=str(tmp_path / f"cache-{name}"))
        datamodule.setup()
        found.append(datamodule.fingerprint)
    assert found[0] == found[1]
    assert datamodule.place("test", 0).startswith(f"{tmp_path}/train.parquet row ")
