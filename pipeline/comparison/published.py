"""Published numbers, beside which ours are put; pipeline/params/studies.py says which data each table is about.

Tables A and B: the authors' response to the reviews of "Adversarial Distributional Training for Robust Deep
Learning" (NeurIPS 2020), which is published with the paper, as printed there. The other two of theirs: comments in
adt_impam.py of their development code (github thudzj/ADT, af3529d), which count errors; accuracies are 100 minus
their share. Rice et al. (2020): the log cifar10_validation/preactresnet18 of github locuslab/robust_overfitting,
c47a25c, epoch 102.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Value = tuple[float, float | None]  # mean and sample deviation, in % of the test set; one run has no deviation


@dataclass(frozen=True)
class PublishedTable:
    """One table: `settings` in words, `runs` behind every value, and method -> metric -> value.

    Metrics have the names that presets give these attacks.
    """

    settings: str
    runs: int
    values: Mapping[str, Mapping[str, Value]]

    @property
    def metrics(self) -> list[str]:
        """The columns."""
        return list(next(iter(self.values.values())))


def _rows(metrics: list[str], rows: Mapping[str, list[Value]]) -> dict[str, dict[str, Value]]:
    return {method: dict(zip(metrics, values, strict=True)) for method, values in rows.items()}


def _accuracy(errors: int, images: int) -> Value:
    """Of one run, in % to two decimals."""
    return round(100 * (1 - errors / images), 2), None


TABLES = {
    "table-a": PublishedTable(
        "linf, eps 8/255, with early stopping, weight decay and PGD steps of Rice et al. (2020)",
        1,
        _rows(
            ["natural", "pgd-10", "pgd-20", "pgd-100"],
            {
                "at_pgd": [(86.41, None), (55.90, None), (54.52, None), (54.20, None)],
                "adt_exp": [(86.49, None), (56.84, None), (55.43, None), (55.01, None)],
                "adt_exp_am": [(87.27, None), (56.28, None), (54.88, None), (54.58, None)],
                "adt_imp_am": [(87.38, None), (56.63, None), (55.10, None), (54.43, None)],
            },
        ),
    ),
    "table-b": PublishedTable(
        "linf, eps 8/255, the settings of the paper",
        3,
        _rows(
            ["natural", "pgd-20", "pgd-100"],
            {
                "at_pgd": [(86.50, 0.14), (49.77, 0.21), (49.34, 0.27)],
                "adt_exp": [(87.15, 0.13), (52.38, 0.23), (51.89, 0.22)],
                "adt_exp_am": [(87.30, 0.09), (53.01, 0.22), (52.45, 0.28)],
                "adt_imp_am": [(87.58, 0.14), (51.90, 0.15), (50.94, 0.16)],
            },
        ),
    ),
    "rice-preactresnet18": PublishedTable(
        "linf, eps 8/255, PreActResNet-18 trained for 200 epochs, epoch selected on 1,000 validation images: Rice et"
        " al. (2020)",
        1,
        _rows(["natural", "pgd-10"], {"at_pgd": [(81.80, None), (53.11, None)]}),
    ),
    "authors-cifar100": PublishedTable(
        "linf, eps 8/255, lambda 1, tau 0.9, a comment in the authors' development code",
        1,
        _rows(["natural", "pgd-20"], {"adt_imp_am": [_accuracy(3593, 10000), _accuracy(7062, 10000)]}),
    ),
    "authors-svhn": PublishedTable(
        "linf, eps 4/255, lambda 1, tau 0.9, a comment in the authors' development code",
        1,
        _rows(["natural", "pgd-20"], {"adt_imp_am": [_accuracy(1603, 26032), _accuracy(12662, 26032)]}),
    ),
}


def beside(name: str, ours: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """A published table with ours beside every value; `ours`: method -> metric -> mean and std, in %.

    Methods and metrics that we did not run have None. `difference` is ours minus theirs, in
    points; `within` tells whether it is at most our deviation and at most theirs, and is None
    where a side has none: a single run has no spread to lie within.
    """
    table = TABLES[name]
    return {
        "name": name,
        "settings": table.settings,
        "runs": table.runs,
        "metrics": table.metrics,
        "methods": {
            method: {metric: _pair(value, ours.get(method, {}).get(metric)) for metric, value in values.items()}
            for method, values in table.values.items()
        },
    }


def _pair(value: Value, ours: Mapping[str, Any] | None) -> dict[str, Any]:
    mean, std = value
    theirs = {"published": mean, "published_std": std}
    if ours is None:
        return theirs | {"ours": None, "ours_std": None, "difference": None, "within": None}
    difference = round(ours["mean"] - mean, 4)
    spreads = [spread for spread in (std, ours["std"]) if spread is not None]
    within = abs(difference) <= min(spreads) if len(spreads) == 2 else None
    return theirs | {"ours": ours["mean"], "ours_std": ours["std"], "difference": difference, "within": within}
