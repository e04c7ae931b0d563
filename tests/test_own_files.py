"""Files that a user adds to lit_models, datamodules and callbacks: how a config names them, watches their metrics, and how
their bugs are reported."""

import importlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from textwrap import dedent

import pytest

import train
from engine import build
from engine.config import components, monitors, signatures
from engine.config.config import Config, load_config
from engine.config.signatures import PROJECT
from engine.contracts import ConfigError
from engine.training import exits
from tests.runs import IRIS, figures

Add = Callable[[str, str], None]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Adds a file to a copy of the project, which this test uses as the project: ``add("lit_models/mine.py", source)``."""
    project = tmp_path / "project"
    rooms = ("lit_models", "datamodules", "callbacks")
    for room in rooms:
        shutil.copytree(PROJECT / room, project / room, ignore=shutil.ignore_patterns("__pycache__"))
        package = importlib.import_module(room)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(project / room)])
    for module in (build, components, monitors, signatures, exits):
        monkeypatch.setattr(module, "PROJECT", project)
    monkeypatch.setattr(exits, "OWNERS_FOLDERS", tuple(project / room for room in rooms))
    added: list[str] = []

    def add_file(path: str, source: str) -> None:
        (project / path).write_text(dedent(source), encoding="utf-8")
        added.append(path)
        importlib.invalidate_caches()

    yield add_file
    for path in added:
        room, name = path.removesuffix(".py").split("/")
        sys.modules.pop(f"{room}.{name}", None)
        vars(sys.modules[room]).pop(name, None)


def load(*overrides: str, data: str = "mnist_cnn") -> Config:
    return load_config(PROJECT / f"configs/{data}.yaml", overrides)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, data="iris_mlp")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def trained(tmp_path: Path, *overrides: str) -> int:
    """Train one epoch without pictures and return the exit code."""
    short = [f"run.root={tmp_path / 'runs'}", "trainer.max_epochs=1", "trainer.logger=false"]
    return train.main(["--config", IRIS, *short, *overrides])


def metrics(tmp_path: Path) -> dict:
    (folder,) = (tmp_path / "runs").glob("*/*")
    return figures(folder)


# How a config names a file


@pytest.mark.parametrize(
    ("imports", "base"),
    [
        ("from lit_models.cnn import LitCNN", "LitCNN"),
        ("from lit_models.cnn import LitCNN as Base", "Base"),
        ("from lit_models import cnn", "cnn.LitCNN"),
        ("import lit_models.cnn", "lit_models.cnn.LitCNN"),
        ("import lit_models.cnn as networks", "networks.LitCNN"),
    ],
)
def test_a_subclass_of_a_model_is_found_with_the_keys_of_its_base_class(add, imports, base):
    add("lit_models/mine.py", f"{imports}\n\n\nclass LitMine({base}):\n    pass\n")
    config = load("model.name=mine", "model.dropout=0.25")
    assert config.components["model"].name == "LitMine"
    assert set(config["model"]) == set(load()["model"])
    assert config["model.dropout"] == 0.25


def test_a_subclass_may_have_the_name_of_its_base_class(add):
    add("lit_models/mine.py", "from lit_models.cnn import LitCNN\n\n\nclass LitCNN(LitCNN):\n    pass\n")
    assert set(load("model.name=mine")["model"]) == set(load()["model"])


def test_keys_are_inherited_at_any_depth_and_a_subclass_can_replace_a_default(add):
    add(
        "lit_models/mine.py",
        '''
        from lit_models.cnn import LitCNN


        class Mixin:
            """Has no constructor."""


        class LitMine(Mixin, LitCNN):
            """Mine.

            Args:
                gain: Factor of the logits.
                dropout: As in `LitCNN`.
                options: Those of `LitCNN`.
            """

            def __init__(self, gain: float = 2.0, dropout: float = 0.5, **options):
                super().__init__(dropout=dropout, **options)
        ''',
    )
    add(
        "lit_models/other.py",
        "from lit_models import mine\n\n\nclass LitOther(mine.LitMine):\n    accepts = ('image',)\n",
    )
    for name in ("mine", "other"):
        config = load(f"model.name={name}")
        assert set(config["model"]) == {*load()["model"], "gain"}
        assert (config["model.gain"], config["model.dropout"]) == (2.0, 0.5)
        assert config.parameters["model.gain"].meaning == "Factor of the logits."


def test_an_own_model_trains(add, tmp_path):
    add("lit_models/mine.py", "from lit_models.mlp import LitMLP\n\n\nclass LitMine(LitMLP):\n    pass\n")
    assert trained(tmp_path, "model={name: mine, hidden_sizes: [5]}") == 0
    assert "test/accuracy" in metrics(tmp_path)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class LitMine(LitMLP):\n    choosable = False\n", "LitMine cannot be chosen in a config (choosable = False)"),
        ("class Mine:\n    pass\n", "mine.py has no class that derives from LitClassifier; available: "),
        ("def mine():\n    pass\n", "lit_models/mine.py has no class that derives from LitClassifier"),
        ("class A(LitMLP):\n    pass\nclass B(LitMLP):\n    pass\n", "mine.py has 2 classes that derive from LitClassifier"),
    ],
)  # fmt: skip
def test_a_file_without_a_class_to_choose_says_why(add, source, expected):
    add("lit_models/mine.py", f"from lit_models.mlp import LitMLP\n{source}")
    assert expected in refusal("model.name=mine")
    assert "mine" not in components.component_names("model")


def test_a_subclass_of_a_class_that_cannot_be_chosen_can_be_chosen(add):
    add(
        "lit_models/mine.py",
        """
        from lit_models.mlp import LitMLP


        class Base(LitMLP):
            choosable = False


        class LitMine(Base):
            pass
        """,
    )
    assert load("model.name=mine", data="iris_mlp").components["model"].name == "LitMine"


@pytest.mark.parametrize("name", ["shared_buffers", "checkpoints", "run_record", "preflight", "evaluation"])
def test_an_internal_callback_is_refused(name):
    expected = "cannot be chosen in a config" if name == "evaluation" else f"unknown name '{name}'; available: "
    assert f"callbacks.{name}: " in refusal(f"callbacks.{name}={{}}")
    assert expected in refusal(f"callbacks.{name}={{}}")


@pytest.mark.parametrize(
    ("imports", "base"),
    [
        ("from lightning.pytorch.callbacks import LearningRateMonitor", "LearningRateMonitor"),
        ("import lightning.pytorch as pl", "pl.callbacks.LearningRateMonitor"),
        ("import lightning.pytorch as pl", "pl.Callback"),
        ("from callbacks.evaluation import EvaluationCallback", "EvaluationCallback"),
    ],
)
def test_an_own_callback_may_derive_from_one_of_lightning(add, imports, base):
    add("callbacks/mine.py", f"{imports}\n\n\nclass Mine({base}):\n    pass\n")
    assert load("callbacks.mine={}").components["callbacks.mine"].name == "Mine"


# Which metrics can be watched

CALLBACK = """
from lightning.pytorch import Callback


class Mine(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        {log}
"""
LITERAL = 'pl_module.log("val/size", 3.0)'
COMPUTED = 'pl_module.log(f"val/size_{trainer.max_epochs}", 3.0)'
VARIABLE = 'name = "size"; pl_module.log(name, 3.0)'


@pytest.mark.parametrize(
    ("key", "log", "monitor"),
    [
        ("run", LITERAL, "val/size"),
        ("early_stopping", COMPUTED, "val/size_1"),
        pytest.param("run", VARIABLE, "size", marks=pytest.mark.slow),
        pytest.param("schedule", COMPUTED, "val/size_1", marks=pytest.mark.slow),
        pytest.param("schedule", LITERAL, "val/size", marks=pytest.mark.slow),
        pytest.param("early_stopping", VARIABLE, "size", marks=pytest.mark.slow),
    ],
)
def test_a_metric_of_an_own_callback_can_be_watched(add, tmp_path, key, log, monitor):
    add("callbacks/mine.py", CALLBACK.format(log=log))
    options = {
        "run": f"run.monitor={monitor}",
        "schedule": f"schedule={{name: plateau, monitor: {monitor}}}",
        "early_stopping": f"callbacks.early_stopping={{monitor: {monitor}, mode: max}}",
    }
    assert trained(tmp_path, "callbacks.mine={}", options[key]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("run.monitor", ["run.monitor=val/sizes"]),
        ("schedule.monitor", ["schedule={name: plateau, monitor: val/sizes}"]),
        ("callbacks.early_stopping.monitor", ["callbacks.early_stopping={monitor: val/sizes}"]),
    ],
)
def test_a_metric_that_is_not_logged_is_reported_with_the_names_that_are(add, tmp_path, capsys, key, options):
    """Before training if all names can be read in the source, otherwise after the first validation."""
    add("callbacks/mine.py", CALLBACK.format(log=LITERAL))
    assert trained(tmp_path, "callbacks.mine={}", *options) == 2
    early = capsys.readouterr()
    assert early.err == f"error: command line: {key}: metric 'val/sizes' is not logged; did you mean val/size?\n"
    assert early.out == ""
    add("callbacks/other.py", CALLBACK.replace("Mine", "Other").format(log=COMPUTED.replace("size", "sizes")))
    assert trained(tmp_path, "callbacks.other={}", *[option.replace("sizes", "sizes_7") for option in options]) == 2
    late = capsys.readouterr()
    assert late.err.startswith(f"error: command line: {key}: ")
    assert late.err.count("\n") == 1
    assert "val/sizes_7" in late.err
    assert re.search(r"logged.*: .*val/accuracy.*val/loss.*val/sizes_1", late.err)


def test_the_line_of_the_config_is_reported(add, tmp_path, capsys):
    add("callbacks/mine.py", CALLBACK.format(log=VARIABLE))
    text = (PROJECT / IRIS).read_text(encoding="utf-8").replace("monitor: val/loss", "monitor: val/lost")
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    (line,) = [number for number, line in enumerate(text.splitlines(), 1) if "val/lost" in line]
    options = ["trainer.max_epochs=1", "callbacks.mine={}", f"run.root={tmp_path / 'runs'}"]
    assert train.main(["--config", str(path), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}:{line}: run.monitor: ")


MODEL = """
from lit_models.mlp import LitMLP
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy


class LitMine(LitMLP):
    def __init__(self, **options):
        super().__init__(**options)
        {init}

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        {log}
"""


@pytest.mark.parametrize(
    ("init", "log", "monitor"),
    [
        ("pass", 'self.log("val/size", 3.0)', "val/size"),
        ("pass", 'self.log_dict({"val/size": 3.0, **{f"val/{k}": 1.0 for k in "ab"}})', "val/a"),
        ("pass", 'self.log_dict(dict(a=1.0))', "a"),
        ('self.val_metrics.add_metrics({"micro": MulticlassAccuracy(3, average="micro")})', "pass", "val/micro"),
    ],
    ids=["text", "comprehension", "variable", "metric collection"],
)  # fmt: skip
def test_a_metric_of_an_own_model_can_be_watched(add, tmp_path, init, log, monitor):
    add("lit_models/mine.py", MODEL.format(init=init, log=log))
    assert trained(tmp_path, "model={name: mine, hidden_sizes: [4]}", f"run.monitor={monitor}") == 0
    assert monitor in metrics(tmp_path) or not monitor.startswith("val/")


def test_a_metric_that_a_new_file_of_parts_logs_can_be_watched(add):
    add("callbacks/tools.py", 'def log_size(module):\n    module.log("val/size", 3.0)\n')
    add("callbacks/mine.py", "from callbacks.tools import log_size\n" + CALLBACK.format(log="log_size(pl_module)"))
    assert load("callbacks.mine={}", "run.monitor=val/size")["run.monitor"] == "val/size"
    assert load("callbacks.mine={}", "run.monitor=val/size_epoch")["run.monitor"] == "val/size_epoch"
    assert "metric 'val/sise' is not logged" in refusal("callbacks.mine={}", "run.monitor=val/sise")


@pytest.mark.parametrize("monitor", ["train/loss", "test/loss"])
def test_only_metrics_of_validation_choose_the_best_checkpoint(monitor):
    assert f"run.monitor: {monitor} is not measured in validation" in refusal(f"run.monitor={monitor}")


# How a bug in a file is reported

BUGS = {
    "ValueError": 'raise ValueError("broken\\nhere")',
    "ImportError": "import a_package_that_does_not_exist",
    "TypeError": "len(3)",
    "RuntimeError": 'raise RuntimeError("broken")',
    "AttributeError": "None.missing",
}
MODEL_WITH_BUG = """
from lit_models.mlp import LitMLP
{top}


class LitMine(LitMLP):
    def __init__(self, **options):
        super().__init__(**options)
        {constructor}

    def forward(self, inputs):
        {forward}
        return super().forward(inputs)

    def training_step(self, batch, batch_idx):
        {step}
        return super().training_step(batch, batch_idx)
"""
DATA_WITH_BUG = """
from datamodules.iris import Iris
{top}


class Mine(Iris):
    def __init__(self, **options):
        super().__init__(**options)
        {constructor}

    def load(self):
        {load}
        return super().load()

    def setup(self, stage=None):
        {setup}
        super().setup(stage)
"""
CALLBACK_WITH_BUG = """
from lightning.pytorch import Callback
{top}


class Mine(Callback):
    def __init__(self):
        {constructor}

    def on_train_batch_end(self, *args):
        {hook}
"""
SOURCES = {"lit_models": MODEL_WITH_BUG, "datamodules": DATA_WITH_BUG, "callbacks": CALLBACK_WITH_BUG}
OPTIONS = {
    "lit_models": ["model={name: mine, hidden_sizes: [4]}"],
    "datamodules": ["data={name: mine}"],
    "callbacks": ["callbacks.mine={}"],
}
PLACES = [
    ("lit_models", "top"),
    ("lit_models", "constructor"),
    ("lit_models", "forward"),
    ("lit_models", "step"),
    ("datamodules", "top"),
    ("datamodules", "constructor"),
    ("datamodules", "load"),
    ("datamodules", "setup"),
    ("callbacks", "top"),
    ("callbacks", "constructor"),
    ("callbacks", "hook"),
]


def with_bug(room: str, place: str, bug: str) -> tuple[str, int]:
    """The source of an own file with `bug` at `place`, and its line."""
    places = dict.fromkeys(re.findall(r"{(\w+)}", SOURCES[room]), "pass")
    source = SOURCES[room].format(**{**places, place: bug})
    (line,) = [number for number, text in enumerate(source.splitlines(), 1) if bug in text]
    return source, line


@pytest.mark.parametrize(
    ("room", "place", "kind"),
    [
        *((*place, kind) for place, kind in zip(PLACES, cycle(BUGS))),
        *(pytest.param("lit_models", "forward", kind, marks=pytest.mark.slow) for kind in BUGS),
    ],
)
def test_a_bug_in_an_own_file_keeps_its_traceback(add, tmp_path, capsys, room, place, kind):
    source, line = with_bug(room, place, BUGS[kind])
    add(f"{room}/mine.py", source)
    assert trained(tmp_path, *OPTIONS[room]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    *_, last = printed.splitlines()
    kind = "ModuleNotFoundError" if kind == "ImportError" else kind
    assert last.startswith(f"error: {room}/mine.py:{line}: {kind}: ")


@pytest.mark.parametrize(
    "bug",
    [
        'self.log("train/mine", "not a number")',
        'self.log("train/mine", 1.0, on_step=False, on_epoch=False, reduce_fx="nothing")',
        'self.log_dict(3)',
        'self.trainer.missing',
    ],
)  # fmt: skip
def test_a_wrong_call_of_lightning_in_an_own_file_is_a_bug(add, tmp_path, capsys, bug):
    source, line = with_bug("lit_models", "step", bug)
    add("lit_models/mine.py", source)
    assert trained(tmp_path, *OPTIONS["lit_models"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    assert printed.splitlines()[-1].startswith(f"error: lit_models/mine.py:{line}: ")


@pytest.mark.parametrize("bug", ['return "loss"', "return {}"])
def test_a_training_step_that_returns_no_loss_is_a_bug(add, tmp_path, capsys, bug):
    source, _ = with_bug("lit_models", "step", bug)
    add("lit_models/mine.py", source)
    assert trained(tmp_path, *OPTIONS["lit_models"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")


ERRORS = {
    "UserError": "error: broken\n",
    "ConfigError": "error: broken: x: y\n",
    "OptionError": "error: configs/iris_mlp.yaml",
    "DataError": "error: configs/iris_mlp.yaml",
    "BrokenCheckpointError": "error: broken\n",
}


@pytest.mark.parametrize(
    ("room", "place", "error"),
    [(*place, error) for place, error in zip(PLACES, cycle(ERRORS)) if place[1] != "top"],
)
def test_an_error_of_the_projects_own_types_is_one_line(add, tmp_path, capsys, room, place, error):
    arguments = '"broken", "x", "y"' if error == "ConfigError" else '"broken"'
    source, _ = with_bug(room, place, f"from engine.contracts import {error}; raise {error}({arguments})")
    add(f"{room}/mine.py", source)
    assert trained(tmp_path, *OPTIONS[room]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(ERRORS[error])
    assert "broken" in printed
    assert printed.count("\n") == 1


MODEL_WITH_BUGS = """\
    from lit_models.mlp import LitMLP

    class Mine(LitMLP):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            {init}

        def configure_optimizers(self):
            {optimizers}

        def training_step(self, batch, batch_idx):
            {step}
            return super().training_step(batch, batch_idx)
    """


@pytest.mark.parametrize(
    ("place", "bug", "last"),
    [
        ("init", "self.network.load_state_dict({})", r"lit_models/mine\.py:6: RuntimeError: Error\(s\) in loading"),
        ("step", "raise PermissionError('no token')", r"lit_models/mine\.py:12: PermissionError: no token"),
        ("optimizers", "return 'sgd'", r".*MisconfigurationException: Unknown configuration"),
        ("init", "self.network = __import__('torch').nn.Linear(4, 7)", r".*Mine returned logits \(32, 7\) for labels"),
    ],
)
def test_a_bug_in_an_own_model_is_not_reported_as_a_mistake(add, tmp_path, capsys, place, bug, last):
    lines = {"init": "pass", "optimizers": "return super().configure_optimizers()", "step": "pass"} | {place: bug}
    add("lit_models/mine.py", MODEL_WITH_BUGS.format(**lines))
    assert trained(tmp_path, "model.name=mine") == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    assert re.match(f"error: {last}", printed.splitlines()[-1])


def test_a_bug_in_an_own_picture_ends_the_run(add, tmp_path, capsys):
    source = """\
    from callbacks.evaluation import EvaluationCallback

    class Mine(EvaluationCallback):
        def show(self, trainer, pl_module, stage, writer, gathered):
            self.missing
    """
    add("callbacks/mine.py", source)
    assert trained(tmp_path, "callbacks.mine={}", "trainer.logger=tensorboard") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: callbacks/mine.py:5: AttributeError: 'Mine' object has no attribute 'missing'")


def test_a_check_reports_a_bug_after_a_problem(add, tmp_path, capsys):
    lines = {"init": "self.idle = self.network.idle = __import__('torch').nn.Linear(1, 1)", "step": "self.missing"}
    add("lit_models/mine.py", MODEL_WITH_BUGS.format(optimizers="return super().configure_optimizers()", **lines))
    assert trained(tmp_path, "model.name=mine", "--check") == 1
    printed = capsys.readouterr()
    assert "WRONG    gradients" in printed.out
    assert printed.err.splitlines()[-1].startswith("error: lit_models/mine.py:12: AttributeError: ")


def test_file_names_with_a_hyphen_and_relative_imports(add):
    add("lit_models/my-cnn.py", "from .cnn import LitCNN\n\n\nclass MyCNN(LitCNN):\n    pass\n")
    assert load("model.name=my-cnn", "model.widths=[4]")["model.widths"] == [4]


@pytest.mark.slow
def test_a_check_uploads_nothing(monkeypatch):
    """`--check` logs to TensorBoard only, in its temporary folder."""
    made = []
    monkeypatch.setattr("engine.training.loggers.make_loggers", lambda names, *_: made.extend(names) or [])
    assert train.main(["--config", IRIS, "--check", "trainer.logger=[csv, tensorboard]"]) == 0
    assert made == ["tensorboard"]
