"""The plan of a study: its settings and runs. The file ``study.yaml`` stores the options for resuming."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from engine.config.config import Config, load_config
from engine.config.cross_checks import check_requirements
from engine.config.yaml_reader import plain, read_yaml, write_yaml
from engine.contracts import COMMAND_LINE, ConfigError, UserError, is_lower_better
from engine.inference.trained_run import RUN_KEYS
from engine.runs.run_index import STUDY_FILE
from engine.studies.results import Choices, Mode, Space
from engine.studies.space import read_spaces, setting, to_text
from engine.terminal import count_of

MAX_RUNS = 100_000
MAX_NAME = 40  # characters of the values in the name of a run
METRICS = ("accuracy", "loss", "f1", "roc_auc", "average_precision", "calibration_error")
CONFIRMING_SEEDS = 5  # new seeds for the best setting of a search, if --seeds is not given


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study.

    Attributes:
        name: Name of its folder.
        overrides: Overrides of the config of the study.
        seed: Its seed.
        fold: Its fold; None without folds.
    """

    name: str
    overrides: list[str]
    seed: int
    fold: int | None


@dataclass(frozen=True)
class Plan:
    """The options and the runs of a study.

    Attributes:
        config: The config of the study, with all overrides.
        num_seeds: Number of seeds of each setting; in a search, of the best setting.
        num_folds: Number of folds; None without folds.
        vary: The varied keys with their values.
        num_trials: Number of trials of a search; None to run all combinations of the values.
        prune: Whether a search stops trials early if other trials are better (pruning).
        threads: Number of threads of each run; None for the choice of the run.
        seed_keys: Keys that the config sets to ``${seed}``.
        written: The overrides of the command line, except for the section ``run``. A varied name drops the keys of its
            section in the config, but not these.
        compared: Metric that the report compares, without the stage, such as accuracy.
    """

    config: Config
    num_seeds: int | None = None
    num_folds: int | None = None
    vary: dict[str, Space] = field(default_factory=dict)
    num_trials: int | None = None
    prune: bool = True
    threads: int | None = None
    seed_keys: tuple[str, ...] = ()
    compared: str = METRICS[0]
    written: tuple[str, ...] = ()

    @property
    def is_search(self) -> bool:
        return self.num_trials is not None

    @property
    def metric(self) -> str:
        """The metric that a search optimizes: the monitor of the best checkpoint."""
        return str(self.config["run.monitor"])

    def mode_of(self, metric: str) -> Mode:
        """Return "min" if lower values of a metric are better, otherwise "max". `run.mode` is for `run.monitor` alone."""
        mode: Mode | None = self.config["run.mode"] if metric == self.metric else None
        return mode or ("min" if is_lower_better(metric) else "max")

    def settings(self) -> list[dict[str, Any]]:
        """Return all combinations of the varied values; an empty list for a search."""
        if self.is_search:
            return []
        values = [space.values for space in self.vary.values() if isinstance(space, Choices)]
        return [dict(zip(self.vary, combination, strict=True)) for combination in product(*values)]

    def name_of(self, number: int, values: dict[str, Any]) -> str:
        """Return the beginning of the names of the runs of a setting, such as ``01-adam-lr-0.1``.

        Args:
            number: The number of the setting; in a search, of the trial.
            values: For each varied key, its value.
        """
        if self.is_search:  # another trial may be the best if the search is extended
            return f"best-{number:03d}"
        titles = {key: "" if key.endswith(".name") else f"{key.rpartition('.')[2]}-" for key in values}
        words = re.sub(r"[^\w.]+", "-", "-".join(f"{titles[key]}{value}" for key, value in values.items())).strip("-")
        return f"{number:02d}-{words[:MAX_NAME].strip('-.')}" if values else ""

    def runs(self, values: dict[str, Any], name: str = "") -> Iterator[PlannedRun]:
        """Yield the runs of a setting: all pairs of seeds and folds.

        Args:
            values: For each varied key, its value.
            name: Beginning of the names of the runs.
        """
        first, folds = self.config["seed"], range(self.num_folds) if self.num_folds else [None]
        seeds = range(
            first + self.is_search, first + self.is_search + self._num_seeds()
        )  # a search has used the first seed
        for seed, fold in product(seeds, folds):
            parts = [*([name] if name else []), f"seed-{seed}"]  # also of a single seed, because more seeds may follow
            parts += [f"fold-{fold}"] if fold is not None else []
            # all folds are parts of the same division of the data, and a search must not test on rows of its trials
            is_fixed = self.is_search or fold is not None
            keys = [key for key in self.seed_keys if key not in values and not (is_fixed and key == "data.split_seed")]
            overrides = [*self.overrides(values), *(f"{key}={seed}" for key in ("seed", *keys))]
            overrides += [f"data.num_folds={self.num_folds}", f"data.fold={fold}"] if fold is not None else []
            yield PlannedRun("-".join(parts), overrides, seed, fold)

    def overrides(self, values: dict[str, Any]) -> list[str]:
        """Return the overrides of all runs of a setting."""
        threads = [f"run.threads={self.threads}"] if self.threads else []
        return [*self.written, *threads, *(setting(key, value) for key, value in values.items())]

    def num_runs(self) -> int:
        """Return the number of all runs, those that confirm the best setting of a search included."""
        combinations = 1
        for space in self.vary.values():
            combinations *= len(space.values) if isinstance(space, Choices) and not self.is_search else 1
        return (self.num_trials or 0) + combinations * self._num_seeds() * (self.num_folds or 1)

    def _num_seeds(self) -> int:
        return self.num_seeds or (CONFIRMING_SEEDS if self.is_search else 1)

    def changed(self, seeds: int | None = None, trials: int | None = None, metric: str | None = None) -> "Plan":
        """Return the plan with more seeds, more trials, or another metric. None keeps an option.

        Raises:
            ConfigError: if the study cannot have the options.
        """
        if trials is not None and self.num_trials is None:
            hint = "start a new study with --vary and --trials"
            raise ConfigError(COMMAND_LINE, "--trials", "the study is not a search", hint)
        for option, number, old in (("seeds", seeds, self._num_seeds()), ("trials", trials, self.num_trials or 0)):
            if number is not None and number <= old:
                problem = f"the study has {count_of(old, option.removesuffix('s'))}"
                raise ConfigError(COMMAND_LINE, f"--{option}", problem, "choose a larger number")
        if self.is_search and metric is not None:
            raise ConfigError(
                COMMAND_LINE,
                "--metric",
                "a search optimizes run.monitor",
                "start a new study with run.monitor=val/loss",
            )
        plan = replace(
            self, num_seeds=seeds or self.num_seeds, num_trials=trials or self.num_trials,
            compared=metric or self.compared,
        )  # fmt: skip
        _check_size(plan)
        return plan

    def to_yaml(self) -> str:
        """Return the options of the study, as `read_plan` reads them."""
        options = {
            "config": f"{self.config.path.stem}.yaml",
            "seeds": self.num_seeds,
            "folds": self.num_folds,
            "vary": {key: to_text(space) for key, space in self.vary.items()},
            "trials": self.num_trials,
            "prune": self.prune,
            "threads": self.threads,
            "seed_keys": list(self.seed_keys),
            "metric": self.compared,
            "overrides": list(self.written),
        }
        return write_yaml(options)


def make_plan(
    config: Config, overrides: list[str], vary: list[str], grid: bool, metric: str | None, **options: Any
) -> Plan:
    """Return the plan of the options of the command line.

    Raises:
        ConfigError: if the options do not fit each other, or a value is wrong.
    """
    other = load_config(config.path, [*overrides, f"seed={(config['seed'] + 1) % 2**32}"])
    seed_keys = tuple(key for key in config.parameters if key != "seed" and config[key] != other[key])
    written = tuple(override for override in overrides if not override.startswith("run."))
    plan = Plan(
        config, vary=read_spaces(vary, config, overrides), seed_keys=seed_keys, written=written, **options,
    )  # fmt: skip
    ranges = [key for key, space in plan.vary.items() if not isinstance(space, Choices)]
    if plan.is_search and not plan.vary:
        raise ConfigError(COMMAND_LINE, "--trials", "needs --vary KEY=VALUES")
    if not (plan.num_seeds or plan.num_folds or plan.vary):
        raise ConfigError(COMMAND_LINE, "", "--seeds, --folds or --vary is missing", "see --help")
    if plan.is_search and grid:
        raise ConfigError(COMMAND_LINE, "--grid", "cannot be combined with --trials", "leave out --grid or --trials")
    if metric is not None:
        plan = plan.changed(metric=metric)
    if plan.is_search and plan.num_folds:
        hint = "search first, then run --folds with the best values"
        raise ConfigError(COMMAND_LINE, "--folds", "cannot be combined with --trials", hint)
    if ranges and not plan.is_search:
        hint = f"add --trials 40, or list the values: --vary {ranges[0]}=A,B"
        raise ConfigError(COMMAND_LINE, ranges[0], "a range needs a search", hint)
    if len(plan.vary) > 1 and not (grid or plan.is_search):
        problem = f"{len(plan.vary)} keys are varied"
        raise ConfigError(
            COMMAND_LINE, "--vary", problem, "add --grid for all combinations, or --trials 40 for a search"
        )
    if not (plan.prune or plan.is_search):
        raise ConfigError(COMMAND_LINE, "--no-pruning", "is for a search", "add --trials N")
    if plan.num_folds and config.origins.get("data.num_folds") == COMMAND_LINE:
        raise ConfigError(COMMAND_LINE, "data.num_folds", "is set by --folds", "leave out one of them")
    if grid and not plan.vary:
        raise ConfigError(COMMAND_LINE, "--grid", "needs --vary KEY=A,B")
    _check_size(plan)
    if plan.config["trainer.devices"] not in ("auto", 1) or plan.config["trainer.num_nodes"] > 1:
        problem = "the runs of a study use a single device each"
        raise config.error("trainer.devices", problem, "choose the number of runs at the same time with --workers")
    for key in RUN_KEYS:
        is_set = config["model"].get(key.removeprefix("model.")) is not None or key in plan.vary
        if is_set and (plan.num_folds or "data.split_seed" in plan.seed_keys):
            problem = "names a run that was trained on test samples of other folds or splits"
            raise config.error(key, problem, "leave out --folds, and set data.split_seed to the value of that run")
    _check_packages(plan)
    folds = [f"data.num_folds={plan.num_folds}", "data.fold=0"] if plan.num_folds else []
    check_requirements(load_config(config.path, [*overrides, *folds]))
    if config["trainer.enable_checkpointing"] is False and plan.is_search:
        problem = "must be true for a search, because a search compares the best checkpoints"
        raise ConfigError(config.where("trainer.enable_checkpointing"), "trainer.enable_checkpointing", problem)
    return plan


def _check_size(plan: Plan) -> None:
    if (number := plan.num_runs()) > MAX_RUNS:
        raise ConfigError(COMMAND_LINE, "", f"{number:,} runs are too many", f"at most {MAX_RUNS:,}")


def _check_packages(plan: Plan) -> None:
    for package in ("scipy", *(["optuna"] if plan.is_search else [])):
        if find_spec(package) is None:
            hint = "run: pip install -e '.[study]' -c constraints.txt"
            raise ConfigError(COMMAND_LINE, "", f"studies need the package {package}", hint)


def dropped_keys(plan: Plan) -> Iterator[str]:
    """Yield a sentence for each key of the config that another varied name drops, because it belongs to the old name."""
    for key, space in plan.vary.items():
        if not key.endswith(".name") or not isinstance(space, Choices):
            continue
        section = key.removesuffix("name")
        for value in space.values:
            other = load_config(plan.config.path, [*plan.written, setting(key, value)])
            for name in other.parameters.keys() & plan.config.parameters.keys():
                is_dropped = name in plan.config.origins and other[name] != plan.config[name]
                if is_dropped and name.startswith(section) and name not in plan.vary:
                    kept = setting(name, plan.config[name])
                    yield f"with {key}={value}, {name} is {other[name]}, the default of {value}; {kept} keeps the value"


def read_plan(folder: Path) -> Plan:
    """Return the plan of the study in `folder`.

    Raises:
        ConfigError: if the folder is not that of a study, or its files are broken.
    """
    path = folder / STUDY_FILE
    if not path.is_file():
        raise ConfigError(COMMAND_LINE, str(folder), f"is not the folder of a study: it has no {STUDY_FILE}")
    try:
        options = plain(read_yaml(path), "")
        config = load_config(folder / str(options["config"]))
        vary = [f"{key}={text}" for key, text in options["vary"].items()]
        return Plan(
            config, options["seeds"], options["folds"], read_spaces(vary, config, []), options["trials"],
            options["prune"], options["threads"], tuple(options["seed_keys"]), options["metric"],
            tuple(options["overrides"]),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is broken: {error!r}") from None
