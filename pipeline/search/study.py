"""A study of TPE: the same trials whatever interrupts it, and shared by workers without going over its budget.

A trial's *slot* is the number of trials before it that count. The sampler's random numbers are a function of
(seed, slot) and of what was measured before, never of how many processes it took to get there.
"""

import contextlib
import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from pipeline.search.measuring import Measured
from pipeline.search.storage import quiet
from pipeline.seeding import Stream
from pipeline.training.loop import Diverged

# `evaluate(values, prune)`: one trial. `prune(epoch, robust)` tells it whether to give up after that epoch.
Prune = Callable[[int, float], bool]
Evaluate = Callable[[dict[str, Any], Prune], Measured]
OnTrial = Callable[[list[dict[str, Any]]], None]
DIVERGED = "diverged"
_DIGITS = 3  # significant ones of a suggestion, so that a table shows exactly what was tried
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
_POLL = 1.0  # seconds between two looks at what other workers do


class _Surplus(Exception):
    """Ends a trial that started when the budget was spent already, before it did anything."""


def open_study(
    name: str,
    storage: optuna.storages.BaseStorage,
    pareto: bool,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> optuna.Study:
    """The study called `name`, made where there is none; `pareto`: gradient evaluations are the second objective."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = ["maximize", "minimize"] if pareto else ["maximize"]
    return optuna.create_study(
        study_name=name, storage=storage, directions=directions, sampler=sampler, pruner=pruner, load_if_exists=True
    )


def run_alone(
    study: optuna.Study,
    trials: int,
    space: Mapping[str, BaseDistribution],
    evaluate: Evaluate,
    on_trial: OnTrial,
) -> None:
    """Bring a study that no other process works on to `trials` finished trials.

    Trials that a killed process left are run again, at their slot, with the same values. `on_trial` receives
    the rows of all finished trials first, and after each.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        study.tell(trial.number, state=TrialState.FAIL)
    on_trial(rows(study))
    while len(finished(study)) < trials:
        _one(study, trials, space, evaluate)
        on_trial(rows(study))


def run_shared(
    study: optuna.Study,
    trials: int,
    space: Mapping[str, BaseDistribution],
    evaluate: Evaluate,
    on_trial: OnTrial,
    kept: optuna.storages.RDBStorage,
) -> None:
    """As `run_alone`, beside other workers of the database `kept`: returns when all are finished, whoever did it.

    A worker whose heart stops loses its trial to the next that looks. Which values are suggested depends on what
    the others have finished by then, so a study of several workers cannot be repeated.
    """
    on_trial(rows(study))
    while len(finished(study)) < trials:
        with quiet():
            optuna.storages.fail_stale_trials(study)
        _bury(study, kept.grace_period)
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if len(_counted(study)) >= trials and not waiting:
            time.sleep(_POLL)
            continue
        # Optuna's own first sign of life comes from a thread, at some later moment.
        _one(study, trials, space, evaluate, lambda trial: kept.record_heartbeat(trial._trial_id))
        on_trial(rows(study))


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that used up a part of the budget, in their order: complete, pruned or diverged."""
    return [trial for trial in _counted(study) if trial.state.is_finished()]


def rows(study: optuna.Study) -> list[dict[str, Any]]:
    """Every finished trial as a row of the table, numbered by slot; a diverged one has no measurements."""
    return [
        {"number": slot, "state": _STATES.get(trial.state, DIVERGED), **trial.params, **trial.user_attrs}
        for slot, trial in enumerate(finished(study))
    ]


class SlotSampler(optuna.samplers.BaseSampler):
    """TPE that draws for every trial from (seed, slot); suggestions have three significant digits."""

    def __init__(self, seed: int, startup: int) -> None:
        self.seed, self.startup = seed, startup
        self._inner: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Start from a generator of this trial's own."""
        seed = Stream.of(self.seed, "search", _slot(study, trial.number)).key % 2**32
        self._inner = optuna.samplers.TPESampler(n_startup_trials=self.startup, seed=seed, constant_liar=True)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As TPE."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As TPE, rounded."""
        found = self._inner.sample_relative(study, trial, search_space)
        return {name: _rounded(value, search_space[name]) for name, value in found.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As TPE, rounded."""
        found = self._inner.sample_independent(study, trial, param_name, param_distribution)
        return _rounded(found, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """As TPE."""
        self._inner.after_trial(study, trial, state, values)


def _one(
    study: optuna.Study,
    trials: int,
    space: Mapping[str, BaseDistribution],
    evaluate: Evaluate,
    on_start: Callable[[optuna.Trial], None] = lambda trial: None,
) -> None:
    """Run one trial, new or waiting; whatever `evaluate` raises but divergence ends this process' work.

    A worker that was silent for too long finds that its trial was given to another: it leaves the trial to it.
    """
    broken: list[BaseException] = []

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        if _slot(study, trial.number) >= trials:
            raise _Surplus
        on_start(trial)
        values = {name: _suggest(trial, name, kind) for name, kind in space.items()}

        def prune(epoch: int, robust: float) -> bool:
            if len(study.directions) > 1:
                return False
            trial.report(robust, epoch)
            return trial.should_prune()

        try:
            measured = evaluate(values, prune)
        except Diverged:
            trial.set_user_attr(DIVERGED, True)
            raise
        except UpdateFinishedTrialError:
            raise
        except BaseException as error:
            broken.append(error)
            raise
        for name, number in vars(measured).items():
            trial.set_user_attr(name, number)
        if measured.pruned_at is not None:
            raise optuna.TrialPruned
        return (measured.val_robust, measured.gradient_evaluations)[: len(study.directions)]

    with quiet():
        try:
            study.optimize(objective, n_trials=1, catch=(Diverged, _Surplus))
        except (UpdateFinishedTrialError, ValueError):  # how Optuna says that the trial was ended by another
            if broken:
                raise


def _suggest(trial: optuna.Trial, name: str, kind: BaseDistribution) -> Any:
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(name, kind.choices)
    if isinstance(kind, FloatDistribution):
        return trial.suggest_float(name, kind.low, kind.high, log=kind.log)
    return trial.suggest_int(name, kind.low, kind.high, log=kind.log)


def _rounded(value: Any, kind: BaseDistribution) -> Any:
    if not isinstance(kind, FloatDistribution):
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), kind.low), kind.high)


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are part of the budget: all but those that failed for reasons of their process."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state != TrialState.FAIL or DIVERGED in trial.user_attrs]


def _slot(study: optuna.Study, number: int) -> int:
    return sum(trial.number < number for trial in _counted(study))


def _bury(study: optuna.Study, grace: float) -> None:
    """Fail the trials of workers that died between asking for a trial and their first sign of life."""
    before = datetime.datetime.now() - datetime.timedelta(seconds=grace)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not trial.params and trial.datetime_start < before:
            with contextlib.suppress(UpdateFinishedTrialError, ValueError):
                study.tell(trial.number, state=TrialState.FAIL)
