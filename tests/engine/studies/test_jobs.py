"""A metric that the runs of a study lack."""

from pathlib import Path
from typing import Any

import pytest

from engine.contracts import UserError
from engine.studies.jobs import check_metric
from engine.studies.plan import Plan
from tests.engine.studies.made_up import make_run

CONFIG: Any = {}


def test_a_missing_metric_is_one_line_with_the_metrics_that_exist():
    run = make_run("seed-0", test__accuracy=0.9, test__loss=0.1, val__f1=0.9)
    with pytest.raises(UserError) as raised:
        check_metric(Plan(CONFIG, compared="roc_auc"), Path("runs/a study"), run)
    assert str(raised.value) == (
        "seed-0 has no metric roc_auc; its metrics are accuracy, loss, f1; "
        "python study.py --resume 'runs/a study' --metric accuracy continues with another metric"
    )


@pytest.mark.parametrize(
    "run",
    [
        make_run("seed-0", val__roc_auc=float("nan")),  # the report leaves the run out
        make_run("seed-0", train_seconds=1.0),  # neither validation nor test
        make_run("seed-0", state="failed", val__loss=1.0),
    ],
)
def test_other_runs_do_not_end_the_study(run):
    check_metric(Plan(CONFIG, compared="roc_auc"), Path("runs"), run)


def test_a_search_compares_the_monitor():
    check_metric(Plan(CONFIG, compared="roc_auc", num_trials=3), Path("runs"), make_run("best", val__loss=1.0))
