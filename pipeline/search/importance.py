"""Which hyper-parameter mattered: functional ANOVA over the trials of a table."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution

from pipeline.search.table import Row, complete

_LEAST = 4  # complete trials; with fewer there is nothing to decompose


def importance(rows: Sequence[Row], space: dict[str, BaseDistribution], target: str) -> dict[str, float]:
    """The share of the variance of column `target` over complete trials that each parameter explains, largest first.

    Functional ANOVA of a random forest (Hutter, Hoos, Leyton-Brown 2014) with a fixed seed; shares sum to 1.
    {} where there are fewer than four complete trials, or `target` or every parameter is the same in all of them.
    """
    known = complete(rows)
    varied = {name: kind for name, kind in space.items() if len({row[name] for row in known}) > 1}
    if len(known) < _LEAST or not varied or len({row[target] for row in known}) == 1:
        return {}
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={name: row[name] for name in varied}, distributions=varied, value=float(row[target])
            )
            for row in known
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return {
            name: float(share)
            for name, share in optuna.importance.get_param_importances(study, evaluator=evaluator).items()
        }
