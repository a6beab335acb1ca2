"""The lambda grid: every point of a study once, whatever interrupts it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

Evaluate = Callable[[float, int], tuple[float, dict[str, float]]]


def lambda_grid(
    lams: list[float],
    seeds: list[int],
    evaluate: Evaluate,
    storage: Path,
    study_name: str,
    on_point: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Evaluate every (lambda, seed) once; returns one row a point, ordered by (lambda, seed).

    `evaluate(lam, seed)` returns the objective (validation robust accuracy) and the
    measured values. `study_name` must determine what a trial means (a hash of everything but
    lambda and seed): a study of that name in `storage` is continued, its finished trials
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
    space = {
        "lam": optuna.distributions.FloatDistribution(0, max(lams)),
        "seed": optuna.distributions.IntDistribution(0, max(seeds)),
    }
    done = _finished(study)
    points = [(lam, seed) for lam in lams for seed in seeds]
    for point in sorted(points, key=lambda point: point not in done):
        if point in done:
            on_point(done[point])
            continue
        study.sampler = _fixed({"lam": point[0], "seed": point[1]})
        trial = study.ask(space)
        value, measured = evaluate(trial.params["lam"], trial.params["seed"])
        for name, number in measured.items():
            trial.set_user_attr(name, number)
        study.tell(trial, value)
        on_point({**trial.params, "val_robust": value, **measured})
    done = _finished(study)
    return [done[point] for point in sorted(points)]


def _fixed(point: dict[str, Any]) -> optuna.samplers.BaseSampler:
    """A sampler that proposes exactly this point (nothing is left for the sampler behind it)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.PartialFixedSampler(point, optuna.samplers.RandomSampler(seed=0))


def _finished(study: optuna.Study) -> dict[tuple[float, int], dict[str, Any]]:
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return {(t.params["lam"], t.params["seed"]): {**t.params, "val_robust": t.value, **t.user_attrs} for t in trials}
