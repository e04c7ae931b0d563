"""Any input gives either a config or an error of one line."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.config import load_config
from engine.config.yaml_reader import read_override
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
