"""A search for the best setting with Optuna, whose journal is a file in the folder of the study.

With one worker, an interrupted search gives the same trials as an uninterrupted search. The values of a trial depend only on
the seed of the study, the number of the trial, and the results of earlier trials.
"""

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import NopPruner, PercentilePruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from engine.studies.jobs import Job, lock_of, read_result, run_folder_of, study_lock, try_claim
from engine.studies.plan import Plan, PlannedRun
from engine.studies.results import Choices, RunResult, SettingResult, Space, State

JOURNAL = "journal.log"
PRUNED_AT = "pruned_at"  # attribute of a trial: the step after which it was pruned
# a trial is pruned if its best value so far is not in this best part of the values of finished trials at the same epoch
PERCENTILE = 33.0
FULL_TRIALS = 3  # trials at the start that are not pruned
FIRST_EPOCH = 1  # after which a trial can be pruned


class SearchQueue:
    """The trials of a search.

    Args:
        plan: The plan.
        folder: Folder of the study.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self._is_shared = False  # whether other trials are running; a new trial then avoids values near theirs
        optuna.logging.set_verbosity(logging.WARNING)
        # Optuna's own locks are files, which a killed process leaves behind
        backend = JournalFileBackend(str(folder / JOURNAL), lock_of(folder, "journal"))  # type: ignore[arg-type]
        self.storage = JournalStorage(backend)
        pruner = PercentilePruner(PERCENTILE, FULL_TRIALS, FIRST_EPOCH) if plan.prune else NopPruner()
        directions = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
        self.study = optuna.create_study(
            storage=self.storage, study_name="study", direction=directions[plan.mode_of(plan.metric)], pruner=pruner,
            load_if_exists=True,
        )  # fmt: skip
        self.study_id = self.storage.get_study_id_from_name("study")

    def claim(self) -> Job | None:
        with study_lock(self.folder):
            trials = self.study.get_trials(deepcopy=False)
            for frozen in trials:
                if frozen.state == TrialState.RUNNING and (claim := try_claim(self.folder, _name(frozen))) is not None:
                    trial_id = self.storage.get_trial_id_from_study_id_trial_number(self.study_id, frozen.number)
                    return self._job(Trial(self.study, trial_id), claim)
            if len(trials) >= (self.plan.num_trials or 0):
                return None
            self._is_shared = any(trial.state == TrialState.RUNNING for trial in trials)
            trial = self.study.ask()
            claim = try_claim(self.folder, _name(trial))
            assert claim is not None  # the name is new
            return self._job(trial, claim)

    def report(self, job: Job, step: int, value: float) -> bool:
        trial: Trial = job.trial
        if PRUNED_AT in trial.user_attrs:
            return step >= trial.user_attrs[PRUNED_AT]
        reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if step < max(reported, default=-1):  # the run was resumed from a checkpoint, and repeats a validation
            return False
        if step not in reported:
            trial.report(value, step)
        if math.isfinite(value) and not trial.should_prune():
            return False
        trial.set_user_attr(PRUNED_AT, step)
        return True

    def finish(self, job: Job) -> RunResult:
        result, trial = read_result(self.plan, self.folder, job.run), job.trial
        value = result.value(self.plan.metric)
        with study_lock(self.folder):  # so that no other command claims the trial in between
            if result.state == "finished" and PRUNED_AT in trial.user_attrs:
                self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            elif result.state == "finished" and value is not None:
                self.study.tell(trial, value, skip_if_finished=True)
            elif result.state in ("finished", "failed"):
                self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            job.claim.release()
        return self._with_state(result, self.study.get_trials(deepcopy=False)[trial.number])

    def num_left(self) -> int:
        trials = self.study.get_trials(deepcopy=False)
        return max(len(trials), self.plan.num_trials or 0) - sum(trial.state.is_finished() for trial in trials)

    def settings(self) -> list[SettingResult]:
        """Return the trials, also those that are not finished."""
        found = []
        for frozen in self.study.get_trials(deepcopy=False):
            values = self._values(frozen.params)
            result = read_result(self.plan, self.folder, self._run(frozen.number, values))
            found.append(SettingResult(frozen.number, values, [self._with_state(result, frozen)]))
        return found

    def best_trial(self) -> dict[int, dict[str, Any]]:
        """Return the number and the values of the best finished trial, or an empty dict."""
        finished = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
        best = self.study.best_trial if finished else None
        return {} if best is None else {best.number: self._values(best.params)}

    def _job(self, trial: Trial, claim: Any) -> Job:
        for key, space in self.plan.vary.items():
            if key not in trial.params:  # the command may have been killed before all values were suggested
                self._seed_sampler(trial.number, key)
                _suggest(trial, key, space)
        run = self._run(trial.number, self._values(trial.params))
        return Job(run, run_folder_of(self.plan, self.folder, run), claim, trial)

    def _seed_sampler(self, number: int, name: str) -> None:
        """Let the next values depend only on the study, the trial and the key, and not on what was drawn before."""
        words = f"{self.plan.config['seed']} {number} {name}".encode()
        seed = int.from_bytes(hashlib.sha256(words).digest()[:4])
        self.study.sampler = TPESampler(seed=seed, constant_liar=self._is_shared)

    def _run(self, number: int, values: dict[str, Any]) -> PlannedRun:
        seed = self.plan.config["seed"]
        # the test set is used only for the setting that the search has chosen
        overrides = [*self.plan.overrides(values), "trainer.limit_test_batches=0"]
        return PlannedRun(f"trial-{number:03d}", overrides, seed, None)

    def _values(self, params: dict[str, Any]) -> dict[str, Any]:
        return {
            key: json.loads(params[key]) if isinstance(space, Choices) else params[key]
            for key, space in self.plan.vary.items()
            if key in params
        }

    def _with_state(self, result: RunResult, frozen: FrozenTrial) -> RunResult:
        states: dict[TrialState, State] = {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        state = states.get(frozen.state, result.state)
        return RunResult(result.name, result.folder, result.seed, result.fold, state, result.metrics, result.reason)


def _suggest(trial: Trial, key: str, space: Space) -> None:
    if isinstance(space, Choices):
        trial.suggest_categorical(key, [json.dumps(value) for value in space.values])  # Optuna refuses lists
    elif space.is_int:
        trial.suggest_int(key, int(space.low), int(space.high), log=space.is_log)
    else:
        trial.suggest_float(key, space.low, space.high, log=space.is_log)


def _name(trial: Trial | FrozenTrial) -> str:
    return f"trial-{trial.number:03d}"
