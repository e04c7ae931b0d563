"""Every model and every datamodule of the project, against the contracts."""

import importlib
from functools import partial

import pytest

from engine.config.signatures import read_component
from tests import contracts
from tests.contracts import DataModuleContract, ModelContract, data_cases, model_cases


@pytest.mark.parametrize(("name", "spec"), model_cases())
class TestModels(ModelContract):
    pass


@pytest.mark.parametrize(("name", "options"), data_cases())
class TestDataModules(DataModuleContract):
    pass


OWN = '''"""Own."""
from lightning.pytorch import LightningDataModule


class Own(LightningDataModule):
    """Own.

    Args:
        rows: Rows.
        more: More.
    """

    modality = "features"

    def __init__(self, rows: int, more: int = 3) -> None:
        super().__init__()
        self.rows, self.more = rows, more
'''


@pytest.mark.parametrize("config", ["data: {name: own_rows, rows: 7, more: '${seed}'}", ""])
def test_a_required_value_comes_from_a_config_or_the_test_fails(config, tmp_path, monkeypatch):
    (tmp_path / "own_rows.py").write_text(OWN)
    (tmp_path / "a.yaml").write_text("data: {name: other, rows: 1}")
    (tmp_path / "b.yaml").write_text(config)
    monkeypatch.syspath_prepend(tmp_path)
    component = read_component(tmp_path / "own_rows.py", "Own")
    own = importlib.import_module("own_rows")
    monkeypatch.setattr(contracts, "find_component", lambda *_: component)
    monkeypatch.setattr(contracts, "data_class", lambda _: own.Own)
    monkeypatch.setattr(contracts, "configured", partial(contracts.configured, folder=tmp_path))
    if not config:
        with pytest.raises(pytest.fail.Exception, match="write a config in configs/ that names it"):
            DataModuleContract().make("own_rows", tmp_path)
        return
    monkeypatch.setattr(own.Own, "setup", lambda self, stage: None)
    made = DataModuleContract().make("own_rows", tmp_path)
    assert (made.rows, made.more) == (7, 3)
