"""`study.py`: mistakes on the command line, and whole studies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import study
import train
from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.contracts import ConfigError
from engine.runs.run_index import find_runs
from engine.studies.folder import change_study, create_study
from tests.exactness import differences
from tests.processes import environment, results_of, run
from tests.runs import IRIS, WITHOUT_PICTURES
from tests.study_kills import trials

SEARCH = ["--config", IRIS, "--vary", "optimizer.lr=log(1e-4, 1e-1)", "--trials", "3"]
MISTAKES = [
    ([], "--config: is missing"),
    (["--config", IRIS], "--seeds, --folds or --vary is missing; see --help"),
    (["--config", "configs/none.yaml", "--seeds", "3"], "configs/none.yaml"),
    (["--config", IRIS, "--seeds", "1"], "'1' is not an integer of at least 2"),
    (["--config", IRIS, "--seeds", "many"], "'many' is not an integer of at least 2"),
    (["--config", IRIS, "--folds", "1"], "'1' is not an integer of at least 2"),
    (["--config", IRIS, "--seeds", "3", "optimizer.lt=1"], "optimizer.lt: unknown key"),
    (["--config", IRIS, "--seeds", "3", "--metric", "kappa"], "invalid choice: 'kappa'"),
    (["--config", IRIS, "--vary", "optimizer.lr"], "'optimizer.lr' has no values"),
    (["--config", IRIS, "--vary", "optimizer.lr="], "'optimizer.lr=' has no values"),
    (["--config", IRIS, "--vary", "optimizer.lt=1,2"], "optimizer.lt: unknown key"),
    (["--config", IRIS, "--vary", "optimizer.lr=0.1"], "optimizer.lr: 0.1 is a single value"),
    (["--config", IRIS, "--vary", "optimizer.lr=0.1,fast"], "optimizer.lr: 'fast' is not accepted"),
    (["--config", IRIS, "--vary", "optimizer.lr=0.1,-1"], "optimizer.lr: -1 is out of range"),
    (["--config", IRIS, "--vary", "optimizer.lr=0.1,0.1"], "optimizer.lr: 0.1 is given twice"),
    (["--config", IRIS, "--vary", "optimizer.name=adam,adamm"], "did you mean adam"),
    (["--config", IRIS, "--vary", "model.hidden_sizes=[64],[x]"], "model.hidden_sizes: ['x'] is not accepted"),
    (["--config", IRIS, "--vary", "model.hidden_sizes=[64],[32"], "model.hidden_sizes: is not valid YAML"),
    (["--config", IRIS, "--vary", "optimizer.lr=log(0.1, 0.01)", "--trials", "3"], "write log(0.01, 0.1)"),
    (["--config", IRIS, "--vary", "optimizer.lr=log(0, 0.1)", "--trials", "3"], "log(0, 0.1) needs numbers above 0"),
    (["--config", IRIS, "--vary", "optimizer.lr=lgo(1, 2)", "--trials", "3"], "did you mean log?"),
    (["--config", IRIS, "--vary", "optimizer.lr=log(1)", "--trials", "3"], "is not a range of two numbers"),
    (["--config", IRIS, "--vary", "optimizer.lr=log(1e-4, inf)", "--trials", "3"], "is not finite"),
    (["--config", IRIS, "--vary", "model.dropout=range(0, 2)", "--trials", "3"], "model.dropout: 2"),
    (["--config", IRIS, "--vary", "data.batch_size=range(0.5, 8)", "--trials", "3"], "the ends must be integers"),
    (
        ["--config", IRIS, "--vary", "model.activation=range(1, 2)", "--trials", "3"],
        "range(...) needs a key with numbers",
    ),
    (["--config", IRIS, "--vary", "optimizer.lr=log(1e-4, 1e-1)"], "a range needs a search; add --trials 40, or list"),
    (["--config", IRIS, "--vary", "optimizer.lr=1,2", "model.dropout=0,0.1"], "add --grid"),
    (["--config", IRIS, "--vary", "seed=1,2"], "seed: cannot be varied; use --seeds"),
    (["--config", IRIS, "--vary", "data.fold=1,2"], "data.fold: cannot be varied; use --seeds or --folds"),
    (["--config", IRIS, "--vary", "optimizer.lr=1,2", "optimizer.lr=3,4"], "optimizer.lr: is varied twice"),
    (["--config", IRIS, "optimizer.lr=1", "--vary", "optimizer.lr=1,2"], "is varied and set to a value"),
    (["--config", IRIS, "--seeds", "3", "--grid"], "--grid: needs --vary KEY=A,B"),
    (["--config", IRIS, "--trials", "3", "--seeds", "3"], "--trials: needs --vary KEY=VALUES"),
    ([*SEARCH, "--grid"], "--grid: cannot be combined with --trials"),
    ([*SEARCH, "--folds", "5"], "--folds: cannot be combined with --trials"),
    ([*SEARCH, "--metric", "f1"], "--metric: a search optimizes run.monitor"),
    ([*SEARCH, "trainer.enable_checkpointing=false"], "trainer.enable_checkpointing: must be true for a search"),
    (["--config", IRIS, "--seeds", "3", "--name", "a/b"], "--name: 'a/b' is not the name of a folder"),
    (["--config", IRIS, "--seeds", "200000"], "200,000 runs are too many"),
    (["--resume", "configs"], "configs: is not the folder of a study"),
    (["--seed", "3"], "unrecognized arguments"),
    (["--config", IRIS, "--trials", "3"], "--trials: needs --vary KEY=VALUES"),
    (["--config", IRIS, "--seeds", "3", "--no-pruning"], "--no-pruning: is for a search"),
    (["--config", IRIS, "--folds", "3", "data.num_folds=3"], "data.num_folds: is set by --folds"),
    (["--resume", "configs", "--repeat", "configs"], "--repeat: cannot be combined with --resume"),
    (["--resume", "configs", "--folds", "3"], "--folds: cannot be used, because configs stores this option"),
    (["--resume", "configs", "--seeds", "3"], "configs: is not the folder of a study"),
]


@pytest.mark.parametrize(
    ("argv", "message"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_line(argv, message, tmp_path, monkeypatch):
    with pytest.raises(ConfigError) as raised:
        study.main([*argv, f"run.root={tmp_path}"] if "--resume" not in argv and argv else argv)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_slurm_needs_sbatch(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="--slurm: there is no command sbatch; run this on a login node"):
        study.main(["--config", IRIS, "--seeds", "3", "--slurm", "--array=1-2"])


@pytest.mark.parametrize(
    ("argv", "option", "message"),
    [
        (["--seeds", "3"], ["--seeds", "3"], "--seeds: the study has 3 seeds; choose a larger number"),
        (["--seeds", "3"], ["--seeds", "2"], "--seeds: the study has 3 seeds; choose a larger number"),
        (["--seeds", "3"], ["--trials", "9"], "--trials: the study is not a search; start a new study with --vary and"),
        (["--seeds", "3"], ["--seeds", "200000"], "200,000 runs are too many; at most 100,000"),
        (SEARCH[2:], ["--trials", "3"], "--trials: the study has 3 trials; choose a larger number"),
        (SEARCH[2:], ["--seeds", "5"], "--seeds: the study has 5 seeds; choose a larger number"),
        (
            SEARCH[2:],
            ["--metric", "f1"],
            "--metric: a search optimizes run.monitor; start a new study with run.monitor=val/loss",
        ),
    ],
)
def test_a_study_can_only_be_extended(argv, option, message, tmp_path):
    folder = create_study(study.plan_of(study.make_parser().parse_args(["--config", IRIS, *argv])), "x", tmp_path)
    options = (folder / "study.yaml").read_text()
    with pytest.raises(ConfigError) as raised:
        study.main(["--resume", str(folder), *option])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (folder / "study.yaml").read_text() == options


@pytest.mark.parametrize(
    "argv", [["--vary", "optimizer.lr=0.01,1e-5"], SEARCH[2:], ["--folds", "3", "--metric", "loss"]]
)
def test_the_file_of_an_extended_study_is_that_of_a_larger_study(argv, tmp_path):
    plans = [
        study.plan_of(study.make_parser().parse_args(["--config", IRIS, *argv, *more]))
        for more in ([], ["--seeds", "9"])
    ]
    small, large = (create_study(plan, str(i), tmp_path) for i, plan in enumerate(plans))
    began = (small / "study.yaml").stat().st_mtime_ns
    change_study(small, seeds=9)
    assert (small / "study.yaml").read_text() == (large / "study.yaml").read_text()
    assert (small / "study.yaml").stat().st_mtime_ns == began  # `runs.py` shows this time


def test_a_varied_run_is_found_by_its_name(tmp_path):
    """Its folder is stored, because the runs of a study have another root."""
    fixed = ["--config", IRIS, "data.split_seed=0", f"run.root={tmp_path}"]
    teacher = tmp_path / "iris_mlp/teacher"
    assert train.main([*fixed[:2], *QUICK, *fixed[2:], "run.name=teacher"]) == 0
    argv = [*fixed, "--vary", "model.teacher=null,iris_mlp/teacher", "--seeds", "2"]
    plan = study.plan_of(study.make_parser().parse_args(argv))
    assert plan.vary["model.teacher"].values == (None, str(teacher))
    with pytest.raises(ConfigError, match=r"model.teacher: nothing: matches no run below"):
        study.plan_of(study.make_parser().parse_args([*argv[:-3], "model.teacher=null,nothing", "--seeds", "2"]))
    for more in (["data.split_seed=0", "--folds", "3"], ["--seeds", "2"]):  # each seed of iris_mlp has its own split
        argv = ["--config", IRIS, f"model.teacher={teacher}", *more]
        with pytest.raises(ConfigError, match=r"model.teacher: names a run that was trained on test samples of other"):
            study.plan_of(study.make_parser().parse_args(argv))


LONG = [*WITHOUT_PICTURES, "trainer.max_epochs=60", "run.checkpoint_every_steps=5"]
QUICK = ["trainer.max_epochs=2", *WITHOUT_PICTURES]


def run_study(root: Path, *argv: str, code: int = 0) -> tuple[Path, str]:
    """Run the command in a process of its own. Returns the folder of the study, and what was printed."""
    options = [] if "--resume" in argv else [f"run.root={root}"]
    done = subprocess.run(
        [sys.executable, "study.py", *options, *argv],
        cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    (folder,) = root.glob("*/study.yaml")
    return folder.parent, done.stdout + done.stderr


def states(folder: Path) -> dict[str, str]:
    """The state of each run of a study."""
    return {run.folder.name: run.status for run in find_runs(folder)}


@pytest.mark.slow
def test_each_seed_is_equal_to_the_run_alone(tmp_path):
    folder, _ = run_study(tmp_path / "study", "--config", IRIS, "--seeds", "3", *QUICK, "model.dropout=0.1")
    assert [run.folder.name for run in find_runs(folder)][::-1] == ["seed-0", "seed-1", "seed-2"]
    assert (folder / "study.md").is_file()
    for i in (0, 2):  # by the config of the run, and by the original config
        together = folder / f"iris_mlp/seed-{i}"
        config = ["--config", IRIS, *QUICK, "model.dropout=0.1", "seed=2"]
        config = ["--config", str(together / "config.yaml")] if i == 0 else config
        alone = run(*config, f"run.root={tmp_path}/alone", f"run.name=seed-{i}")
        assert alone.returncode == 0, alone.stderr
        assert differences(together, tmp_path / f"alone/iris_mlp/seed-{i}") == []


@pytest.mark.slow
def test_folds_test_each_sample_once(tmp_path):
    folder, _ = run_study(tmp_path, "--config", IRIS, "--folds", "3", "--seeds", "2", *QUICK)
    names = [f"seed-{seed}-fold-{fold}" for seed in range(2) for fold in range(3)]
    assert states(folder) == dict.fromkeys(names, "finished")
    seeds = {load_config(folder / f"iris_mlp/{name}/config.yaml")["data.split_seed"] for name in names}
    assert len(seeds) == 1  # all folds are parts of the same division
    logs = [(folder / f"logs/{name}.log").read_text(encoding="utf-8") for name in names]
    assert all("50 of 150 samples are the test set" in log for log in logs)


@pytest.mark.slow
def test_a_failing_setting_does_not_end_the_study(tmp_path):
    argv = ["--vary", "optimizer.lr=0.01,1e30", "--seeds", "2", *QUICK, "trainer.gradient_clip_val=null"]
    folder, printed = run_study(tmp_path, "--config", IRIS, *argv)
    found = states(folder)
    assert sorted(found.values()) == ["failed", "failed", "finished", "finished"]
    assert "diverged" in printed
    _, printed = run_study(tmp_path, "--resume", str(folder))  # nothing is left to do
    assert states(folder) == found


@pytest.mark.slow
def test_a_varied_name_keeps_the_overrides(tmp_path):
    argv = ["--config", IRIS, "--vary", "optimizer.name=adam,adamw", *QUICK]
    folder, printed = run_study(tmp_path / "study", *argv)
    assert "with optimizer.name=adamw, optimizer.lr is 0.001, the default of adamw; optimizer.lr=0.003 keeps" in printed
    folder, printed = run_study(tmp_path / "kept", *argv, "optimizer.lr=0.003")
    assert "note" not in printed
    configs = [load_config(path) for path in folder.glob("*/*/config.yaml")]
    assert [config["optimizer.lr"] for config in configs] == [0.003, 0.003]
    done = subprocess.run(
        [sys.executable, "study.py", "--repeat", str(folder), "--name", "again"],
        cwd=PROJECT,
        env=environment(),
        timeout=300,
    )
    assert done.returncode == 0
    for name in states(folder):
        assert differences(folder / f"iris_mlp/{name}", folder.parent / f"again/iris_mlp/{name}") == []


@pytest.mark.slow
def test_a_study_ends_if_its_first_runs_are_refused(tmp_path):
    folder, printed = run_study(tmp_path, "--config", IRIS, "--folds", "60", *QUICK, code=2)
    assert "error: the first 3 runs failed for the same reason: command line: data.num_folds: class 'setosa'" in printed
    assert not states(folder)


@pytest.mark.slow
def test_a_setting_that_is_refused_does_not_end_the_study(tmp_path):
    argv = ["--vary", "model.class_weights=[1, 1, 1],[1, 1]", *QUICK]
    folder, printed = run_study(tmp_path, "--config", IRIS, *argv)
    assert list(states(folder).values()) == ["finished"]
    assert "2 weights for 3 classes" in printed


@pytest.mark.slow
@pytest.mark.faults(
    "Ctrl-C during a study of two runs at the same time", "saved; the resumed study has the same result"
)
def test_ctrl_c_saves_and_the_study_goes_on(tmp_path):
    argv = ["--config", IRIS, "--seeds", "4", *LONG]
    whole, _ = run_study(tmp_path / "whole", *argv, "--workers", "1")
    command = [sys.executable, "study.py", *argv, f"run.root={tmp_path}/stopped", "--workers", "2"]
    process = subprocess.Popen(
        command, cwd=PROJECT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "stopped").glob("*/*/*/checkpoints/previous.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "continue with: python study.py --resume" in printed
    (folder,) = (tmp_path / "stopped").iterdir()
    assert "finished" not in states(folder).values()
    run_study(tmp_path / "stopped", "--resume", str(folder), "--workers", "2")
    for name in states(whole):
        assert differences(whole / f"iris_mlp/{name}", folder / f"iris_mlp/{name}") == []


@pytest.mark.slow
@pytest.mark.faults("a run of a study is killed, and one of two commands of a study", "no run is lost, none runs twice")
def test_a_killed_run_and_a_killed_command(tmp_path):
    argv = ["--config", IRIS, "--seeds", "6", *LONG]
    whole, _ = run_study(tmp_path / "whole", *argv, "--workers", "1")
    command = [sys.executable, "study.py", *argv, "--workers", "1", f"run.root={tmp_path}/two"]
    first = subprocess.Popen(command, cwd=PROJECT, env=environment(), stdout=subprocess.DEVNULL)
    while not (found := list((tmp_path / "two").glob("*/*/*/checkpoints/previous.ckpt"))):
        assert first.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    folder = found[0].parents[3]
    command = [sys.executable, "study.py", "--resume", str(folder), "--workers", "1"]
    second = subprocess.Popen(command, cwd=PROJECT, env=environment(), stdout=subprocess.PIPE, text=True)
    while "seed-" not in second.stdout.readline():  # it has finished a run
        assert second.poll() is None
    first.kill()
    first.wait()
    second.communicate(timeout=200)
    assert second.returncode == 0
    # the second command may have ended before the first was killed
    run_study(tmp_path / "two", "--resume", str(folder))
    assert states(folder) == dict.fromkeys([f"seed-{i}" for i in range(6)], "finished")
    for name in states(whole):
        assert differences(whole / f"iris_mlp/{name}", folder / f"iris_mlp/{name}") == []


@pytest.mark.slow
@pytest.mark.faults("SIGKILL during a search with pruning", "the resumed search has the same trials and results")
def test_a_killed_search_goes_on(tmp_path, record_property):
    found = results_of("tests.study_kills", "2", "0", str(tmp_path), timeout=500)
    record_property("happened", f"{sum(len(each['killed']) for each in found)} kills")
    assert [each["different"] for each in found] == [[], []]


@pytest.mark.slow
def test_a_metric_that_the_runs_lack_ends_the_study(tmp_path):
    argv = ["--config", IRIS, "--seeds", "4", *LONG, "--metric", "roc_auc", "--workers", "2", "trainer.max_epochs=20"]
    folder, printed = run_study(tmp_path, *argv, code=2)
    error = next(line for line in printed.splitlines() if line.startswith("error: "))
    assert "has no metric roc_auc; its metrics are accuracy, loss, f1, calibration_error; " in error
    assert f"study.py --resume {folder} --metric accuracy continues with another metric" in error
    found = states(folder)
    assert "finished" in found.values()
    assert len(found) <= 3
    _, printed = run_study(tmp_path, "--resume", str(folder), code=2)
    assert "has no metric roc_auc" in printed
    assert states(folder) == found  # no other run was started
    _, printed = run_study(tmp_path, "--resume", str(folder), "--metric", "f1")
    assert "compared by test/f1" in printed
    assert states(folder) == dict.fromkeys([f"seed-{i}" for i in range(4)], "finished")
    kept = [(folder / f"logs/{name}.log").read_text(encoding="utf-8").count("epoch 1/") for name in found]
    assert kept == [1] * len(found)  # the stopped run was resumed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "more"),
    [
        (["--vary", "optimizer.lr=0.01,0.1"], ["--seeds", "3"]),
        (["--folds", "3", "--seeds", "2"], ["--seeds", "3"]),
        (["--vary", "optimizer.lr=log(1e-4, 1e-1)", "--trials", "3", "--seeds", "2"], ["--trials", "8"]),
    ],
    ids=["seeds", "folds", "trials"],
)
def test_an_extended_study_equals_a_study_of_that_size(argv, more, tmp_path):
    argv = ["--config", IRIS, *argv, *QUICK, "trainer.max_epochs=4", "--workers", "1"]
    start = argv.index(more[0]) if more[0] in argv else len(argv)
    options = [*argv[:start], *argv[start + 2 :], *more]
    whole, _ = run_study(tmp_path / "whole", *options)
    folder, _ = run_study(tmp_path / "small", *argv)
    extended, _ = run_study(tmp_path / "small", "--resume", str(folder), *more, "--workers", "1")
    assert states(whole).items() <= states(extended).items()  # the best trial may be another one than before
    for name in states(whole):
        assert differences(whole / f"iris_mlp/{name}", extended / f"iris_mlp/{name}") == []
    if more[0] == "--trials":
        assert trials(whole) == trials(extended)
    reports = [(folder / "study.md").read_text(encoding="utf-8").partition("\n")[2] for folder in (whole, extended)]
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_a_running_command_trains_the_seeds_that_another_command_adds(tmp_path):
    command = [sys.executable, "study.py", "--config", IRIS, "--seeds", "2", *LONG, "--workers", "1", "--name", "x"]
    first = subprocess.Popen([*command, f"run.root={tmp_path}"], cwd=PROJECT, env=environment())
    folder = tmp_path / "x"
    while not list(folder.glob("*/seed-1/checkpoints/previous.ckpt")):
        assert first.poll() is None
        time.sleep(0.05)
    change_study(folder, seeds=4)
    assert first.wait(200) == 0
    assert states(folder) == dict.fromkeys([f"seed-{i}" for i in range(4)], "finished")
    assert "4 seeds" in (folder / "study.md").read_text(encoding="utf-8")
