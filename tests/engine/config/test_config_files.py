"""A mistake in a YAML file is reported in one line with the file and the line."""

from pathlib import Path

import pytest

from tests.engine.config.test_config_errors import GOOD, MODELS, message

FILES = [
    ("", ": is empty; start from a copy of a file in configs/"),
    ("# only a comment\n", ": is empty"),
    ("- 1\n- 2\n", ":1: is not a mapping; a config has lines of the form `key: value`"),
    ("just words\n", ":1: is not a mapping"),
    (GOOD + "seed: 4\n", ":14: seed: is written twice; first on line 1"),
    (GOOD.replace("  name: iris\n", "  name: iris\n  name: iris\n"), ":4: data.name: is written twice; first on line 3"),
    (GOOD.replace("  batch", "\tbatch"), ":4: is not valid YAML"),
    (GOOD.replace("[8, 8]", "[8, 8"), "is not valid YAML"),
    (GOOD + "---\nseed: 1\n", "is not valid YAML: but found another document"),
    (GOOD.replace("hidden_sizes", "hiden_sizes"), ":7: model.hiden_sizes: unknown key; did you mean hidden_sizes?"),
    (GOOD.replace("batch_size: 16", "batch_size: many"), ":4: data.batch_size: 'many' is not accepted; accepts int, >= 1"),
    (GOOD.replace("batch_size: 16", "batch_size: 0b1"), ":4: data.batch_size: 0b1 is read differently"),
    (GOOD.replace("data:\n  name: iris\n  batch_size: 16", "data: iris"), ":2: data: is a section, not 'iris'"),
    (GOOD.replace("  name: mlp\n", ""), f":5: model.name: is missing; available: {', '.join(MODELS)}"),
    (GOOD.replace("seed: 3", "seed: &x 3").replace("16", "*x"), ":4: data.batch_size: uses a YAML alias"),
    (GOOD.replace("seed: 3", "seed: !!python/object/apply:os.system [ls]"), ":1: seed: has the YAML tag"),
    (GOOD.replace("seed: 3", "? [1, 2]\n: 3"), "has a key that is not a name"),
    ("a: " * 3 + "1\n", "is not valid YAML: mapping values are not allowed here"),
    ("[" * 5000, "is nested too deeply"),
    ("x: " + "y" * 200_000, "has 200,003 bytes; a config has at most 100,000"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FILES)
def test_file(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    assert expected in message(path)
    assert message(path).startswith(str(path))


def test_missing_file(tmp_path):
    (tmp_path / "other.yaml").touch()
    assert f"file not found; files in {tmp_path}: other.yaml" in message(tmp_path / "absent.yaml")
    assert "iris_mlp.yaml" in message(Path("absent.yaml"))
    assert message(Path("mist_cnn.yml")) == "mist_cnn.yml: file not found; did you mean configs/mnist_cnn.yaml?"
    assert "is a folder; give a YAML file in it" in message(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("seed: é".encode("latin-1"))
    assert "is not UTF-8 text (byte 6); save it as UTF-8" in message(tmp_path / "latin.yaml")


def test_missing_section(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("data: {name: iris}\n", encoding="utf-8")
    assert message(path) == f"{path}: model.name: is missing; available: {', '.join(MODELS)}"
