"""Studies over hyper-parameters; the only module that imports Optuna."""

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
    on_trial: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Evaluate every (lambda, seed) once; returns one row a point, ordered by (lambda, seed).

    `evaluate(lam, seed)` returns the objective (validation robust accuracy) and the
    measured values. `study_name` must determine what a trial means (a hash of everything but
    lambda and seed): a study of that name in `storage` is continued, its finished trials
    are not repeated, and a trial that a killed process left running is run again.
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
    for point in _missing(study, lams, seeds):
        study.sampler = _fixed(point)
        trial = study.ask(space)
        value, measured = evaluate(trial.params["lam"], trial.params["seed"])
        for name, number in measured.items():
            trial.set_user_attr(name, number)
        study.tell(trial, value)
        on_trial({**point, **measured})
    finished = _finished(study)
    return [finished[lam, seed] for lam in sorted(lams) for seed in sorted(seeds)]


def _fixed(point: dict[str, Any]) -> optuna.samplers.BaseSampler:
    """A sampler that proposes exactly this point (nothing is left for the sampler behind it)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.PartialFixedSampler(point, optuna.samplers.RandomSampler(seed=0))


def count_finished(storage: Path, study_name: str) -> int:
    """How many points of a study are already evaluated."""
    if not storage.exists():
        return 0
    try:
        return len(_finished(optuna.load_study(study_name=study_name, storage=f"sqlite:///{storage.absolute()}")))
    except KeyError:
        return 0


def _finished(study: optuna.Study) -> dict[tuple[float, int], dict[str, Any]]:
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return {(t.params["lam"], t.params["seed"]): {**t.params, "val_robust": t.value, **t.user_attrs} for t in trials}


def _missing(study: optuna.Study, lams: list[float], seeds: list[int]) -> list[dict[str, Any]]:
    done = _finished(study)
    return [{"lam": lam, "seed": seed} for lam in lams for seed in seeds if (lam, seed) not in done]
