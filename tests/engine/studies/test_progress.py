"""The table of the best runs, and the direction of the metric of a plan."""

from typing import Any

import pytest

from engine.studies.plan import Plan
from engine.studies.progress import Progress
from tests.engine.studies.made_up import make_run


def make_plan(monitor: str, mode: str | None) -> Plan:
    config: Any = {"run.monitor": monitor, "run.mode": mode}
    return Plan(config, num_trials=3)


@pytest.mark.parametrize(
    ("monitor", "mode", "expected"),
    [("val/own", "min", "min"), ("val/own", None, "max"), ("val/loss", None, "min"), ("val/own_loss", "max", "max")],
)
def test_run_mode_is_the_direction_of_the_monitor(monitor, mode, expected):
    plan = make_plan(monitor, mode)
    assert plan.mode_of(plan.metric) == expected
    assert plan.mode_of("test/accuracy") == "max"
    assert plan.mode_of("test/loss") == "min"


@pytest.mark.parametrize(("mode", "order"), [("min", "0213"), ("max", "3120")])
def test_the_table_shows_the_best_runs_first(mode, order, capsys):
    progress = Progress(make_plan("val/own", mode), num_workers=1)
    for i, value in enumerate([0.1, 0.3, 0.2, 0.4]):
        progress.show([], make_run(f"trial-{i}", val__own=value), 1.0)
    assert [line.split()[0] for line in progress._table([])[1:]] == [f"trial-{i}" for i in order]
