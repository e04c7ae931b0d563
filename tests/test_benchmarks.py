"""The benchmarks run, on little data: what they measure is not looked at here."""

import json
import statistics
from argparse import Namespace

import pytest

from benchmarks import (
    __main__,
    accuracy,
    bert,
    busy,
    checkpoint,
    cifar,
    cifar94,
    ddp,
    decode,
    experiment,
    large,
    loader,
    measure,
    mnist,
    pictures,
    serve,
    smaller_models,
    start,
    step,
    table,
    teacher,
)
from benchmarks.measure import BenchmarkError, Comparison
from engine.config.signatures import PROJECT
from tests.files import minilm, shipped_configs

SAME_SPEED = Comparison("work", "them", [1.0, 2.0, 4.0], [2.0, 2.0, 2.0], at_most=1.5)


@pytest.mark.parametrize("benchmark", [loader, *(pytest.param(each, marks=pytest.mark.slow) for each in (step, cifar))])
@pytest.mark.filterwarnings("ignore")
def test_every_side_does_its_work(benchmark, small_data, monkeypatch, capsys):
    monkeypatch.setattr(step, "EPOCHS", 1)
    monkeypatch.setattr(step, "MLP", [*step.MLP[:-1], "trainer.max_epochs=2"])
    monkeypatch.setattr(step, "compare_accuracies", lambda ours, theirs: "")
    monkeypatch.setattr(cifar, "WARM_UP", 1)
    rows = benchmark.run(Namespace(data=str(small_data), pairs=2, gpu=False))
    assert all(len(row.ours) == len(row.theirs) == 2 for row in rows)
    assert all(seconds > 0 for row in rows for seconds in (*row.ours, *row.theirs))
    measure.print_table(rows)
    assert "times" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_are_measured():
    arguments = ("configs/iris_mlp.yaml", ["trainer.max_epochs=2", "trainer.accelerator=cpu"])
    assert ddp.time_ours(*arguments) > 0
    assert ddp.time_bare(*arguments) > 0


@pytest.mark.slow
def test_training_beside_busy_processes_is_measured(monkeypatch):
    monkeypatch.setattr(busy, "CONFIGS", {"iris_mlp": []})
    rows = busy.run(Namespace(data="unused", pairs=1, gpu=False))
    assert [row.work.rpartition(", ")[2] for row in rows] == ["alone", *["beside 1 busy"] * 2, *["beside 2 busy"] * 2]
    assert all(row.ours[0] > 0 and row.theirs[0] > 0 for row in rows)


@pytest.mark.slow
def test_first_step_of_a_process_is_measured(tmp_path):
    assert start.printed_seconds(start.IMPORTS) > 0
    assert start.printed_seconds(start.FIRST_STEP, *start.IRIS, f"run.root={tmp_path}") > 0
    assert not list(tmp_path.glob("*/*/metrics.json"))  # it ended after the first step


@pytest.mark.slow
def test_checkpoints_are_measured(small_data, monkeypatch):
    monkeypatch.setattr(checkpoint, "SIZES", {"small": 1000})
    *saving, training = checkpoint.run(Namespace(data=str(small_data), pairs=2, gpu=False))
    assert [len(comparison.ours) for comparison in saving] == [2]
    assert 0 < training.theirs[0] < training.ours[0]


@pytest.mark.slow
def test_steps_with_a_teacher_are_measured(small_data, monkeypatch):
    monkeypatch.setattr(teacher, "WARM_UP", 1)
    rows = teacher.compare("mnist_mlp", "data.augment_images=true", "mnist_cnn", f"data.root={small_data}", 3, pairs=1)
    assert len(rows) == 2
    assert all(row.ours[0] > 0 < row.theirs[0] for row in rows)


@pytest.mark.slow
def test_smaller_models_are_compared(tmp_path, monkeypatch, capsys):
    ways = [
        smaller_models.Way("teacher", "iris_mlp", 2, ("trainer.max_epochs=5", "data.split_seed=0")),
        smaller_models.Way(
            "student", "iris_mlp", 1, ("model.hidden_sizes=[8]", "model.teacher={0}", "data.split_seed=0")
        ),
    ]
    monkeypatch.setattr(smaller_models, "WAYS", {"iris": ways})
    monkeypatch.setattr("sys.argv", ["benchmarks.smaller_models", "iris", "--root", str(tmp_path)])
    for _ in range(2):  # the second time, the studies are finished
        smaller_models.main()
        first, second = json.loads((tmp_path / "iris/iris.json").read_text(encoding="utf-8"))
        assert first["multiply_adds"] == 4 * 64 + 64 * 64 + 64 * 3
        assert second["multiply_adds"] == 4 * 8 + 8 * 3
        for row, count in ((first, 2), (second, 1)):
            assert {name: len(values) for name, values in row["accuracies"].items()} == {
                "PyTorch": count,
                "int8": count,
            }
        assert (tmp_path / "iris/iris.png").stat().st_size > 1000
        assert "million multiply-adds" in capsys.readouterr().out


@pytest.mark.slow
def test_pictures_are_measured(small_data):
    comparisons = pictures.run(Namespace(data=str(small_data), pairs=1, gpu=False))
    names = {comparison.work.strip() for comparison in comparisons}
    assert names >= {"all of mnist_cnn", "ConfusionMatrix", "Gallery", "ModelGraph", "Projector", pictures.CURVES}
    assert all(comparison.theirs[0] < comparison.ours[0] for comparison in comparisons)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rows_of_text_are_measured(tmp_path, monkeypatch):
    (tmp_path / "sst2").mkdir()
    for split, count in (("train", 192), ("dev", 20)):
        rows = [f"film {i} is {'bad good'.split()[i % 2]}\t{i % 2}" for i in range(count)]
        (tmp_path / f"sst2/{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]), encoding="utf-8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # restores the variable, which the benchmark sets
    monkeypatch.setattr(bert, "STEPS", {"ours": 1, "padded": 1, "dynamic": 1})
    comparisons = bert.run(Namespace(data=str(tmp_path), model=str(minilm()), pairs=1, gpu=False))
    assert all(comparison.ours[0] > 0 and comparison.theirs[0] > 0 for comparison in comparisons)


@pytest.mark.slow
def test_a_target_that_is_not_reached_is_no_figure(small_data):
    with pytest.raises(BenchmarkError, match=r"ours: accuracy 0.* after 4 epochs; the target is 0.99"):
        mnist.run(Namespace(data=str(small_data), pairs=1, gpu=False))


@pytest.mark.slow
def test_the_time_to_an_accuracy_is_measured(small_data, monkeypatch):
    monkeypatch.setattr(cifar94, "EPOCHS", 1)
    row = cifar94.run(Namespace(data=str(small_data), pairs=1, target=0.0, gpu=False))[0]
    assert (len(row.ours), len(row.theirs)) == (1, 1)
    assert row.note.count("after 1 epochs") == 2


def test_every_config_has_an_accuracy_to_repeat():
    rows = accuracy.ROW.findall((PROJECT / "docs/speed.md").read_text(encoding="utf-8"))
    assert {name for name, *_ in rows} == {path.stem for path in shipped_configs()}
    assert accuracy.data_options("iris_bert", PROJECT, None) == []
    assert accuracy.data_options("sst2_bert", PROJECT / "nothing", "bert") is None


def test_a_benchmark_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    for module in (start, loader):
        monkeypatch.setattr(module, "run", lambda _: [SAME_SPEED])
    monkeypatch.setattr(step, "run", lambda _: measure.run_python("-c", "1 / 0"))
    monkeypatch.setattr("benchmarks.measure.save_results", lambda name, _: name)
    monkeypatch.setattr("sys.argv", ["benchmarks", "start", "step", "loader"])
    with pytest.raises(SystemExit, match="1"):
        __main__.main()
    printed = capsys.readouterr()
    assert "results saved in start" in printed.out
    assert "results saved in loader" in printed.out
    assert "error: step: " in printed.err


def test_learning_less_is_no_figure():
    with pytest.raises(BenchmarkError, match="ours learns less"):
        experiment.compare_accuracies(0.95, 0.97)


def test_a_row_says_whether_its_bar_is_reached(capsys):
    assert statistics.median(SAME_SPEED.ratios) == 1.0
    assert SAME_SPEED.is_reached
    faster = Comparison("work", "them", [1.0], [4.0], at_least=5.0)
    assert faster.ratios == [4.0]
    assert not faster.is_reached
    measure.print_table([SAME_SPEED, faster])
    out = capsys.readouterr().out
    assert "1.00 times its time (0.50 to 2.00)" in out
    assert ">= 5 MISSED" in out


def test_results_of_one_benchmark_do_not_displace_those_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.save_results("one", [SAME_SPEED])
    content = json.loads(measure.save_results("other", [SAME_SPEED]).read_text(encoding="utf-8"))
    assert set(content) == {"one", "other"}
    assert content["one"]["rows"][0]["ratio"] == 1.0
    assert content["one"]["rows"][0]["reached"]
    assert "| work | them | 1.00 (0.50 to 2.00) times its time |" in table.markdown(measure.results_file())


def test_sides_take_turns_and_neither_always_follows():
    order = []
    measure.run_in_turn({"a": lambda: order.append("a") or 1.0, "b": lambda: order.append("b") or 1.0}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]


@pytest.mark.slow
def test_decoding_is_measured(small_data, monkeypatch):
    monkeypatch.setattr(decode, "SAMPLE", 50)
    rows = decode.run(Namespace(data=str(small_data), pairs=1, gpu=False))
    assert [row.work.partition(":")[0] for row in rows] == ["decoding", "first start", "second start"]


@pytest.mark.slow
def test_training_from_files_is_measured(monkeypatch):
    monkeypatch.setattr(large, "PART", 100)
    for name, value in {"NUM_ROWS": 300, "NUM_TEXTS": 300, "NUM_PICTURES": 80, "NUM_DIFFERENT": 40}.items():
        monkeypatch.setattr(large, name, value)
    run = large.Run
    monkeypatch.setattr(large, "Run", lambda root, arguments, limit: run(root, shortened(arguments), limit))
    rows = large.run(Namespace(pairs=1))
    assert [row.work for row in rows] == ["table", "texts", "pictures"]
    assert all("private memory" in row.note for row in rows)


def shortened(arguments: list[str]) -> list[str]:
    """Arguments for two steps."""
    kept = [argument for argument in arguments if not argument.startswith("trainer.max_steps")]
    return [*kept, "trainer.max_steps=2"]


@pytest.mark.slow
@pytest.mark.real_data
def test_requests_are_measured(real_data, monkeypatch):
    monkeypatch.setattr(serve, "REQUESTS", 40)
    (row,) = serve.run(Namespace(data=str(real_data), pairs=1))
    assert row.ours[0] > 0
    assert "99th percentile" in row.note
