"""Every model and every datamodule of the project, against the contracts."""

import pytest

from tests.contracts import DataModuleContract, ModelContract, data_cases, model_cases


@pytest.mark.parametrize(("name", "spec"), model_cases())
class TestModels(ModelContract):
    pass


@pytest.mark.parametrize(("name", "options"), data_cases())
class TestDataModules(DataModuleContract):
    pass
