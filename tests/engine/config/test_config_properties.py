"""Any input gives either a config or an error of one line."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.config.config import load_config
from engine.config.yaml_reader import parse, plain, read_override, write_yaml
from engine.contracts import ConfigError
from tests.engine.config.test_config_errors import GOOD

KEYS = st.sampled_from(
    """seed data data.name data.batch_size model model.hidden_sizes model.dropout optimizer.lr run.name trainer.devices
    trainer.precision trainer.val_check_interval callbacks callbacks.early_stopping x.y""".split()
)
SURPRISES = st.sampled_from(["yes", "010", "1:30", "null", "${seed}"])
SCALARS = st.one_of(st.integers().map(str), st.floats().map(str), st.text(max_size=8), SURPRISES)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(st.sampled_from(["name", "monitor", "a"]), inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"
        ),
    ),
    max_leaves=4,
)


STRANGE = st.sampled_from(
    """0bad 0:30 00:00:30:00 0__9 0b2f 0o17 0x1F 010 1_000 +1 -0 1e3 1e-05 .5 5. . .. - -- -a ? : , # & * ! | > % @ ` = <<
    ~ null Null yes No on off true TRUE y n inf .inf -.Inf nan .NaN 2001-01-01 2001-01-01T00:00:00Z 12:30:45.5 1.2.3 {} []
    {a [a a: a:b "a 'a a# \\${seed} $seed ${ } ~/x /x a.b --- ... [a,b] !!int &a *a 1e400""".split()
)
SPACES = st.sampled_from(
    "|| a|a |a b|a: b|a #b|\t|a\tb|\n|a\nb|a\n|\r|\x85|\u2028|\ufeff|\x1b|\x7f|- a|? a|\u00e4|\u2603|\U0001f600".split(
        "|"
    )
)
WORDS = st.one_of(
    STRANGE, SPACES, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
)
NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.none())
DATA = st.recursive(
    st.one_of(WORDS, NUMBERS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=12,
)
TREES = st.dictionaries(WORDS, DATA, min_size=1, max_size=3)
TRICKY = {
    "": [[], {}, [{}], -0.0, 1e-7, 1e22, 5e-324, float("nan"), float("-inf")],
    "x" * 200: "y " * 3000,
    "a": {"b" * 130: None},
}


def round_trip(values: dict[str, Any]) -> None:
    again = plain(parse(write_yaml(values), "file"), "")
    assert repr(again) == repr(values)  # also the types, NaN and -0.0


@settings(max_examples=200, deadline=None)
@example(TRICKY)
@given(TREES)
def test_what_is_written_is_read_back(values):
    round_trip(values)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(TREES)
def test_what_is_written_is_read_back_ten_thousand_times(values):
    round_trip(values)


@pytest.mark.parametrize("digits", [29, 30, 400])
def test_a_huge_integer_is_read_as_a_float_and_stays_it(digits):
    (once,) = plain(parse(f"[{10 ** (digits - 1)}]", "file"), "")
    assert type(once) is (int if digits < 30 else float)
    round_trip({"a": once})


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(WORDS, WORDS)
def test_a_config_with_any_text_is_read_back(name, root):
    answer(GOOD, [f"run.name={json.dumps(name)}", f"run.root={json.dumps(root)}"])


@pytest.mark.parametrize("text", ["\0", "\ud800", "a\udc80b"])
def test_characters_that_no_file_has_are_refused(text):
    for document in (f"a: {text}", f"{text}: 1", write_yaml({"a": text}), write_yaml({text: 1})):
        with pytest.raises(ConfigError) as caught:
            parse(document, "some.yaml")
        assert len(str(caught.value).splitlines()) == 1


def answer(text: str, overrides: list[str]) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        try:
            config = load_config(path, overrides)
        except ConfigError as error:
            return str(error)
        again = Path(folder) / "again.yaml"
        again.write_text(config.to_yaml(), encoding="utf-8")
        assert load_config(again).values == config.values
        return None


@pytest.mark.slow
@pytest.mark.faults("900 configs, overrides and arguments made up by hypothesis", "a config, or one line")
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(KEYS, VALUES).map("=".join), max_size=3))
def test_any_overrides(overrides):
    said = answer(GOOD, overrides)
    assert said is None or len(said.splitlines()) == 1


@pytest.mark.faults("900 configs, overrides and arguments made up by hypothesis", "a config, or one line")
@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_file(text):
    said = answer(text, [])
    assert said is not None
    assert len(said.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.faults("900 configs, overrides and arguments made up by hypothesis", "a config, or one line")
@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD)), st.text(st.characters(codec="utf-8"), min_size=1, max_size=4))
def test_a_good_file_with_something_in_it(place, insertion):
    said = answer(GOOD[:place] + insertion + GOOD[place:], [])
    assert said is None or len(said.splitlines()) == 1


@pytest.mark.faults("900 configs, overrides and arguments made up by hypothesis", "a config, or one line")
@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_any_argument(argument):
    try:
        read_override(argument)
        said = ""
    except ConfigError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1
