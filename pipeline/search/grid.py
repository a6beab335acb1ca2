"""A grid study: every point once, whatever interrupts it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

Point = Mapping[str, float | int]
Evaluate = Callable[[Point], tuple[float, dict[str, float]]]


def run_grid(
    points: Sequence[Point],
    evaluate: Evaluate,
    storage: Path,
    study_name: str,
    on_point: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Evaluate every point once; returns one row a point, in the order of `points`.

    A point names its coordinates, whole numbers or floats, at most once in `points`; points need not have the
    same ones. `evaluate(point)` returns the objective (validation robust accuracy) and the
    measured values. `study_name` must determine what a trial means (a hash of everything but
    the point): a study of that name in `storage` is continued, its finished trials
    are not repeated, and a trial that a killed process left running is run again.
    `on_point` receives every row as soon as it is there, those of earlier processes first.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=study_name,
        storage=f"sqlite:///{storage.absolute()}",
        direction="maximize",
        load_if_exists=True,
    )
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    done = _finished(study)
    for point in sorted(points, key=lambda point: _key(point) not in done):
        if _key(point) in done:
            on_point(done[_key(point)])
            continue
        study.sampler = _fixed(point)
        trial = study.ask({name: _around(value) for name, value in point.items()})
        value, measured = evaluate(trial.params)
        for name, number in measured.items():
            trial.set_user_attr(name, number)
        study.tell(trial, value)
        on_point({**trial.params, "val_robust": value, **measured})
    done = _finished(study)
    return [done[_key(point)] for point in points]


def _key(point: Point) -> frozenset[tuple[str, float | int]]:
    """A point as what it is looked up by; 1 and 1.0 are the same number here as in the study."""
    return frozenset(point.items())


def _around(value: float | int) -> optuna.distributions.BaseDistribution:
    """A range that holds a value; ranges of a name may differ between the trials of a study."""
    ends = sorted((0, value))
    if isinstance(value, int):
        return optuna.distributions.IntDistribution(*ends)
    return optuna.distributions.FloatDistribution(*ends)


def _fixed(point: Point) -> optuna.samplers.BaseSampler:
    """A sampler that proposes exactly this point (nothing is left for the sampler behind it)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.PartialFixedSampler(dict(point), optuna.samplers.RandomSampler(seed=0))


def _finished(study: optuna.Study) -> dict[frozenset[tuple[str, float | int]], dict[str, Any]]:
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return {_key(t.params): {**t.params, "val_robust": t.value, **t.user_attrs} for t in trials}
