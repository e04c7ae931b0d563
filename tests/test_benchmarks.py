"""The benchmarks run, on little data: what they measure is not looked at here."""

import json
import statistics
from argparse import Namespace

import pytest

from benchmarks import cifar, loader, measure, mnist, sides, step
from benchmarks.measure import BenchmarkError, Row

ROW = Row("work", "them", [1.0, 2.0, 4.0], [2.0, 2.0, 2.0], at_most=1.5)


@pytest.mark.parametrize("benchmark", [loader, step, pytest.param(cifar, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_every_side_does_its_work(benchmark, small_data, monkeypatch, capsys):
    monkeypatch.setattr(step, "EPOCHS", 1)
    monkeypatch.setattr(step, "MLP", [*step.MLP[:-1], "trainer.max_epochs=2"])
    monkeypatch.setattr(sides, "learns_as_much", lambda ours, theirs: "")
    monkeypatch.setattr(step, "learns_as_much", lambda ours, theirs: "")
    monkeypatch.setattr(cifar, "WARM_UP", 1)
    rows = benchmark.run(Namespace(data=str(small_data), pairs=2, gpu=False))
    assert all(len(row.ours) == len(row.theirs) == 2 for row in rows)
    assert all(one > 0 for row in rows for one in (*row.ours, *row.theirs))
    measure.show(rows)
    assert "times" in capsys.readouterr().out


def test_a_target_that_is_not_reached_is_no_figure(small_data):
    with pytest.raises(BenchmarkError, match="no more than 0"):
        mnist.run(Namespace(data=str(small_data), pairs=1, gpu=False))


def test_learning_less_is_no_figure():
    with pytest.raises(BenchmarkError, match="ours learns less"):
        sides.learns_as_much(0.95, 0.97)


def test_a_row_says_whether_its_bar_is_reached(capsys):
    assert statistics.median(ROW.ratios) == 1.0
    assert ROW.reached
    faster = Row("work", "them", [1.0], [4.0], at_least=5.0)
    assert faster.ratios == [4.0]
    assert not faster.reached
    measure.show([ROW, faster])
    out = capsys.readouterr().out
    assert "1.00 times its time (0.50 to 2.00)" in out
    assert ">= 5 MISSED" in out


def test_results_of_one_benchmark_do_not_displace_those_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.save("one", [ROW])
    content = json.loads(measure.save("other", [ROW]).read_text(encoding="utf-8"))
    assert set(content) == {"one", "other"}
    assert content["one"]["rows"][0]["ratio"] == 1.0
    assert content["one"]["rows"][0]["reached"]


def test_sides_take_turns_and_neither_always_follows():
    order = []
    measure.in_turn({"a": lambda: order.append("a") or 1.0, "b": lambda: order.append("b") or 1.0}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
