"""`study.py`: mistakes on the command line, and whole studies."""

import pytest

import study
from engine.contracts import ConfigError
from tests.runs import IRIS

SEARCH = ["--config", IRIS, "--vary", "optimizer.lr=log(1e-4, 1e-1)", "--trials", "3"]
MISTAKES = [
    ([], "--config: is missing"),
    (["--config", IRIS], "nothing to study"),
    (["--config", "configs/none.yaml", "--seeds", "3"], "configs/none.yaml"),
    (["--config", IRIS, "--seeds", "1"], "'1' is not a number of at least 2"),
    (["--config", IRIS, "--seeds", "many"], "'many' is not a number of at least 2"),
    (["--config", IRIS, "--folds", "1"], "'1' is not a number of at least 2"),
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
    (["--config", IRIS, "--vary", "model.activation=range(1, 2)", "--trials", "3"], "is a range of numbers"),
    (["--config", IRIS, "--vary", "optimizer.lr=log(1e-4, 1e-1)"], "add --trials 40 for a search"),
    (["--config", IRIS, "--vary", "optimizer.lr=1,2", "model.dropout=0,0.1"], "add --grid"),
    (["--config", IRIS, "--vary", "seed=1,2"], "seed: cannot be varied; use --seeds"),
    (["--config", IRIS, "--vary", "data.fold=1,2"], "data.fold: cannot be varied; use --seeds or --folds"),
    (["--config", IRIS, "--vary", "optimizer.lr=1,2", "optimizer.lr=3,4"], "optimizer.lr: is varied twice"),
    (["--config", IRIS, "optimizer.lr=1", "--vary", "optimizer.lr=1,2"], "is varied and set to a value"),
    (["--config", IRIS, "--seeds", "3", "--grid"], "--grid: needs something to vary"),
    (["--config", IRIS, "--trials", "3", "--seeds", "3"], "--trials: needs something to search"),
    ([*SEARCH, "--grid"], "--grid: runs all combinations"),
    ([*SEARCH, "--folds", "5"], "--folds: a search uses the validation set"),
    ([*SEARCH, "--metric", "f1"], "--metric: a search optimizes run.monitor"),
    ([*SEARCH, "trainer.enable_checkpointing=false"], "trainer.enable_checkpointing: a search compares"),
    (["--config", IRIS, "--seeds", "3", "--name", "a/b"], "--name: 'a/b' is not the name of a folder"),
    (["--config", IRIS, "--seeds", "200000"], "200,000 runs are too many"),
    (["--resume", "configs"], "configs: is not the folder of a study"),
    (["--seed", "3"], "unrecognized arguments"),
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
