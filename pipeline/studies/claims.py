"""What is said of lambda, claim by claim, and whether the runs of the lambda study support it.

Differences are paired by seed; their intervals are Student's t intervals of the mean over seeds. A claim
has parts, and holds as its worst part does. Test images choose nothing, validation images choose the lambda.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from scipy import stats

from pipeline.comparison.statistics import t_interval
from pipeline.files import read_csv
from pipeline.verdicts import NATURAL, WORST_CASE

SUPPORTED, AGAINST, UNDECIDED = "supported", "not supported", "undecided"
RISES, FALLS, SAME = 1, -1, 0  # what a claim says of a difference
REFERENCE = "at_pgd"
# What is claimed, in the order of `judge`.
CLAIMS = {
    "gain": "A moderate lambda makes models more robust than lambda 0 does",
    "better": "With that lambda, models are more robust than with AT_PGD",
    "degenerate": "With lambda 0 it behaves like AT_PGD",
    "broader": "The distributions become broader as lambda grows",
    "milder": "The adversarial loss of their samples falls as lambda grows",
    "harmless": "With the largest lambda the samples do less harm than with lambda 0, and models are less robust",
}

Row = Mapping[str, Any]  # of lambda.csv
Runs = Mapping[int, Row]  # by seed
_PERCENT = 100


@dataclass(frozen=True)
class Line:
    """The runs of a method by lambda, rising; `tau` is the threshold of those with lambda > 0, where there is one."""

    method: str
    tau: float | None
    runs: Mapping[float, Runs]


def judge(rows: Sequence[Row], attack: str, confidence: float) -> dict[str, Any]:
    """Every claim for every method of `rows`: the content of claims.json.

    A row has method, lam, tau, seed and the columns of lambda.csv, None where there is no value; rows of the
    reference have no lambda, all methods have the same seeds, and every method has lambda 0. Accuracies are
    shares; what is said of them is in points.
    """
    judging = _Judge(attack, confidence, _by_seed(row for row in rows if row["method"] == REFERENCE))
    found = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != REFERENCE):
        found += judging.method(lines([row for row in rows if row["method"] == method]))
    return {"attack": attack, "confidence": confidence, "seeds": sorted(judging.reference), "claims": found}


def read(path: Path) -> list[Row]:
    """The rows of lambda.csv with their numbers; None in the place of what a method does not have."""
    kinds = {"method": str, "seed": int}
    return [
        {name: kinds.get(name, float)(value) if value else None for name, value in row.items()}
        for row in read_csv(path)
    ]


def lines(rows: Sequence[Row]) -> list[Line]:
    """The rows of one method as a line a threshold; all of them begin with the runs of lambda 0."""
    start = _by_seed(row for row in rows if row["lam"] == 0)
    taus = sorted({row["tau"] for row in rows if row["lam"]}, key=lambda tau: -math.inf if tau is None else tau)
    return [
        Line(
            rows[0]["method"],
            tau,
            {0.0: start}
            | {
                lam: _by_seed(row for row in rows if row["lam"] == lam and row["tau"] == tau)
                for lam in sorted({row["lam"] for row in rows if row["lam"] and row["tau"] == tau})
            },
        )
        for tau in taus
    ]


def chosen(found: Sequence[Line]) -> tuple[Line, float]:
    """The line and the lambda above 0 with the highest mean validation robust accuracy (ties: the first)."""
    points = [(line, lam) for line in found for lam in line.runs if lam]
    return max(points, key=lambda point: _mean(point[0].runs[point[1]], "val_robust"))


@dataclass(frozen=True)
class _Judge:
    attack: str
    confidence: float
    reference: Runs

    def method(self, found: Sequence[Line]) -> list[dict[str, Any]]:
        """All claims about one method."""
        line, lam = chosen(found)
        zero, best, robust = line.runs[0.0], line.runs[lam], (self.attack, WORST_CASE)
        choice = {
            "lam": lam,
            "tau": line.tau,
            "val_robust": _rounded(_PERCENT * _mean(best, "val_robust")),
            "val_robust_lambda_0": _rounded(_PERCENT * _mean(zero, "val_robust")),
        }
        parts = {
            "gain": [self.accuracy(name, best, zero, RISES) for name in robust],
            "better": [self.accuracy(name, best, self.reference, RISES) for name in robust],
            "degenerate": [self.accuracy(name, zero, self.reference, SAME) for name in (NATURAL, *robust)],
            "broader": [self.trend(own, *what) for own in found for what in _breadth(own)],
            "milder": [self.trend(own, "adversarial_loss", FALLS) for own in found],
            "harmless": [
                {**part, "lam": max(own.runs), "tau": own.tau}
                for own in found
                for part in (
                    self.quantity("adversarial_loss", own.runs[max(own.runs)], zero, FALLS),
                    self.accuracy(WORST_CASE, own.runs[max(own.runs)], zero, FALLS),
                )
            ],
        }
        return [
            {"method": line.method, "claim": name, "verdict": together([part["verdict"] for part in parts[name]])}
            | ({"chosen": choice} if name in ("gain", "better") else {})
            | {"parts": parts[name]}
            for name in CLAIMS
        ]

    def accuracy(self, column: str, one: Runs, other: Runs, claimed: int) -> dict[str, Any]:
        """One accuracy minus the other, in points."""
        return self.quantity(column, one, other, claimed, _PERCENT)

    def quantity(self, column: str, one: Runs, other: Runs, claimed: int, scale: float = 1) -> dict[str, Any]:
        """A difference that is a part of its own."""
        return {"quantity": column} | self.difference(column, one, other, claimed, scale)

    def trend(self, line: Line, column: str, claimed: int) -> dict[str, Any]:
        """A quantity along lambda: its means, every step, the whole change, Kendall's rank correlation over runs."""
        runs = {lam: of for lam, of in line.runs.items() if all(row[column] is not None for row in of.values())}
        steps = [self.difference(column, runs[b], runs[a], claimed) for a, b in pairwise(runs)]
        change = self.difference(column, runs[max(runs)], runs[min(runs)], claimed)
        pairs = [(lam, row[column]) for lam, of in runs.items() for row in of.values()]
        lambdas, values = zip(*pairs, strict=True)
        varied = len(set(lambdas)) > 1 and len(set(values)) > 1
        rank = stats.kendalltau(lambdas, values) if varied else None
        verdict = change["verdict"]
        if any(step["verdict"] == AGAINST for step in steps):
            verdict = AGAINST
        elif verdict == SUPPORTED and any(step["mean"] * claimed <= 0 for step in steps):
            verdict = UNDECIDED
        return {
            "quantity": column,
            "tau": line.tau,
            "claimed": claimed,
            "lambdas": list(runs),
            "means": [_rounded(_mean(of, column)) for of in runs.values()],
            "steps": steps,
            "change": change,
            "kendall": None if rank is None else _rounded(rank.statistic),
            "p": None if rank is None else _rounded(rank.pvalue),
            "verdict": verdict,
        }

    def difference(self, column: str, one: Runs, other: Runs, claimed: int, scale: float = 1) -> dict[str, Any]:
        """One minus the other, seed by seed, with the interval of the mean and what it says of the claim."""
        differences = {seed: scale * (one[seed][column] - other[seed][column]) for seed in sorted(one)}
        interval = t_interval(list(differences.values()), self.confidence)
        low, high = (None, None) if interval is None else map(_rounded, interval)
        mean = _rounded(sum(differences.values()) / len(differences))
        seeds = {str(seed): _rounded(value) for seed, value in differences.items()}
        told = {"claimed": claimed, "seeds": seeds, "mean": mean, "low": low, "high": high}
        return told | {"verdict": decided(interval, claimed)}


def decided(interval: tuple[float, float] | None, claimed: int) -> str:
    """What an interval says of a claimed rise, fall or sameness.

    Supported where it lies wholly on the claimed side of 0, not supported where it lies wholly on the other,
    undecided where it contains 0 or there is none. Sameness is refuted by an interval without 0 and never
    supported: how small a difference would not matter is not for these runs to say.
    """
    if interval is None or interval[0] <= 0 <= interval[1]:
        return UNDECIDED
    return SUPPORTED if (interval[0] > 0) == (claimed > 0) and claimed else AGAINST


def together(verdicts: Sequence[str]) -> str:
    """The verdict of a claim from those of its parts: as the worst of them."""
    return next(verdict for verdict in (AGAINST, UNDECIDED, SUPPORTED) if verdict in verdicts)


def _breadth(line: Line) -> list[tuple[str, int]]:
    """The measures of breadth that the method has, and where each should go."""
    last = line.runs[max(line.runs)].values()
    has_density = all(row["entropy"] is not None for row in last)
    return [("entropy", RISES) if has_density else ("code_length", FALLS), ("diversity", RISES)]


def _by_seed(rows: Any) -> Runs:
    return {row["seed"]: row for row in rows}


def _mean(runs: Runs, column: str) -> float:
    return sum(row[column] for row in runs.values()) / len(runs)


def _rounded(value: float) -> float:
    return round(float(value), 6) + 0.0  # no minus before a 0
