"""The message of a trial that is pruned."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from engine.studies.reporter import ReportValidations


@pytest.mark.parametrize(
    ("value", "reason"),
    [(0.5, "other trials have better values"), (math.nan, "val/loss is nan"), (math.inf, "val/loss is inf")],
)
def test_a_pruned_trial_prints_the_reason(value, reason, capsys):
    trainer: Any = SimpleNamespace(
        sanity_checking=False, callback_metrics={"val/loss": value}, current_epoch=2, is_global_zero=True,
        strategy=SimpleNamespace(broadcast=lambda answer: answer), should_stop=False,
    )  # fmt: skip
    ReportValidations("val/loss", lambda *_: True).on_validation_end(trainer, None)
    assert capsys.readouterr().out == f"pruned after epoch 3: {reason}\n"
    assert trainer.should_stop
