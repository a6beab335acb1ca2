"""The comparison of methods over seeds, with the uncertainty that so few runs leave: what comparison.json holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.comparison.statistics import FEWEST, McNemar, Summary, bootstrap, holm, mcnemar, t_interval
from pipeline.verdicts import WORST_CASE, Verdicts

NO_INTERVAL = (None, None)


@dataclass(frozen=True)
class Result:
    """What one training left: its verdicts, what it cost, and its validation history.

    `data`: SHA-256 of the data set; `cost`: gradient evaluations an example and epoch;
    `gradient_evaluations`: of the whole training; `selected_epoch` counts from 1; `history`: a
    row an epoch, as in history.csv.
    """

    verdicts: Verdicts
    data: str
    cost: int
    gradient_evaluations: int
    selected_epoch: int
    history: Sequence[Mapping[str, str]]

    @classmethod
    def of(
        cls, verdicts: Verdicts, run: Mapping[str, Any], selected_epoch: int, history: Sequence[Mapping[str, str]]
    ) -> "Result":
        """From the contents of a run's files; `run`: of run.json."""
        cost = run["gradient_evaluations_per_example_and_epoch"]
        return cls(verdicts, run["data"]["sha256"], cost, run["gradient_evaluations"], selected_epoch, history)

    def holds(self, metric: str) -> np.ndarray:
        """The examples that hold: bool (N,); `worst-case` means under every attack at once."""
        return ~self.verdicts.broken_by(self.verdicts.attacks if metric == WORST_CASE else [metric])

    def validation(self, epoch: int) -> dict[str, float]:
        """Natural and robust validation accuracy in % after an epoch."""
        row = self.history[epoch - 1]
        return {name: 100 * float(row[f"val_{name}"]) for name in ("natural", "robust")}


Results = Mapping[str, Mapping[int, Result]]  # method -> seed -> result


@dataclass(frozen=True)
class Pairing:
    """A method and the reference, paired by seed (those that both have) and by example."""

    method: Mapping[int, Result]
    reference: Mapping[int, Result]

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds of both, rising."""
        return sorted(self.method.keys() & self.reference.keys())

    def block(self, metric: str) -> np.ndarray:
        """Who is ahead on which example: +1 the method, -1 the reference, 0 neither; int (seeds, N)."""
        pairs = [(self.method[seed].holds(metric), self.reference[seed].holds(metric)) for seed in self.seeds]
        return np.array([mine.astype(int) - theirs for mine, theirs in pairs])

    def tests(self, metric: str) -> dict[int, McNemar]:
        """McNemar's test on each pair of models."""
        return {s: mcnemar(self.method[s].holds(metric), self.reference[s].holds(metric)) for s in self.seeds}


def summarise(results: Results) -> dict[str, dict[str, Summary]]:
    """Accuracy in percent: method -> attack (and worst-case) -> summary over seeds."""
    summaries = {}
    for method, runs in results.items():
        accuracies = {seed: result.verdicts.accuracies() for seed, result in runs.items()}
        names = next(iter(accuracies.values()))
        summaries[method] = {
            name: Summary.of({seed: 100 * values[name] for seed, values in accuracies.items()}) for name in names
        }
    return summaries


def compare(
    results: Results,
    data: str,
    reference: str,
    confidence: float,
    resamples: int,
    seed: int,
    published: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The content of comparison.json; every result has the same attacks. `data`: what the data are called.

    Accuracies are percentages on the test set, differences are points against `reference`, with
    intervals at `confidence`. `resamples` and `seed`: of the bootstrap. `published`: from
    `published.beside`, or None. Results that were judged on different test examples cannot be
    paired: then `differences` and `tests` are empty.
    """
    summaries = summarise(results)
    metrics = list(next(iter(summaries.values())))
    paired = {
        method: Pairing(runs, results[reference])
        for method, runs in results.items()
        if method != reference and same_examples(results)
    }
    return {
        "reference": reference,
        "confidence": confidence,
        "resamples": resamples,
        "metrics": metrics,
        "seeds": sorted({seed for runs in results.values() for seed in runs}),
        "data": data,
        "test_examples": len(next(iter(results[reference].values())).verdicts.labels),
        "methods": {m: {name: _summary(s) for name, s in summary.items()} for m, summary in summaries.items()},
        "differences": differences(paired, metrics, confidence, resamples, seed),
        "tests": tests(paired, metrics),
        "correction": "Holm",
        "checkpoints": {method: checkpoints(runs) for method, runs in results.items()},
        "gradient_evaluations_per_example_and_epoch": {m: _first(runs).cost for m, runs in results.items()},
        "gradient_evaluations": {
            m: {str(s): result.gradient_evaluations for s, result in runs.items()} for m, runs in results.items()
        },
        "attack_costs": {
            method: attack_costs([result.verdicts for result in runs.values()]) for method, runs in results.items()
        },
        "selected_epoch": {m: {str(s): r.selected_epoch for s, r in runs.items()} for m, runs in results.items()},
        "published": published,
    }


def differences(
    paired: Mapping[str, Pairing], metrics: Sequence[str], confidence: float, resamples: int, seed: int
) -> dict[str, dict[str, dict[str, float | None]]]:
    """In points, over the common seeds: `mean`; `low`, `high` from the bootstrap; `t_low`, `t_high` over seeds.

    Intervals are None with fewer than 3 common seeds; so are the means where there is none.
    """
    blocks = {(method, name): pair.block(name) for method, pair in paired.items() for name in metrics}
    enough = [place for place, block in blocks.items() if len(block) >= FEWEST]
    drawn = bootstrap([blocks[place] for place in enough], confidence, resamples, seed) if enough else []
    intervals = dict(zip(enough, 100 * np.asarray(drawn), strict=True))
    table: dict[str, dict[str, dict[str, float | None]]] = {method: {} for method in paired}
    for (method, name), block in blocks.items():
        runs = 100 * block.mean(1) if len(block) else np.array([])
        mean = runs.mean() if len(block) else None
        ends = *intervals.get((method, name), NO_INTERVAL), *(t_interval(runs, confidence) or NO_INTERVAL)
        values = zip(("mean", "low", "high", "t_low", "t_high"), (mean, *ends), strict=True)
        table[method][name] = {key: None if v is None else round(float(v), 4) + 0.0 for key, v in values}  # no -0.0
    return table


def tests(paired: Mapping[str, Pairing], metrics: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """McNemar's test for every method, metric and seed, with Holm's correction for all of them together.

    `won`, `lost`: examples that the method's, or the reference's model alone gets right.
    """
    family = {
        (method, name, seed): test
        for method, pair in paired.items()
        for name in metrics
        for seed, test in pair.tests(name).items()
    }
    corrected = holm([test.p for test in family.values()])
    table: dict[str, dict[str, dict[str, Any]]] = {method: {name: {} for name in metrics} for method in paired}
    for ((method, name, seed), test), p in zip(family.items(), corrected, strict=True):
        ps = {"p": float(f"{test.p:.6g}"), "p_corrected": float(f"{p:.6g}")}
        table[method][name][str(seed)] = {"won": test.won, "lost": test.lost, **ps}
    return table


def checkpoints(runs: Mapping[int, Result]) -> dict[str, dict[str, dict[str, Any]]]:
    """Validation accuracy in %, natural and robust, of the `selected` and the `last` epoch, and `change` in points."""
    selected = {seed: result.validation(result.selected_epoch) for seed, result in runs.items()}
    last = {seed: result.validation(len(result.history)) for seed, result in runs.items()}
    change = {seed: {name: last[seed][name] - value for name, value in row.items()} for seed, row in selected.items()}
    return {
        kind: {name: _summary(Summary.of({seed: row[name] for seed, row in rows.items()})) for name in _first(rows)}
        for kind, rows in (("selected", selected), ("last", last), ("change", change))
    }


def attack_costs(runs: Sequence[Verdicts]) -> dict[str, dict[str, float]]:
    """What each attack cost an example, mean over runs: gradient evaluations and forward passes."""
    costs = [verdicts.costs() for verdicts in runs]
    return {
        attack: {kind: round(float(np.mean([c[attack][kind] for c in costs])), 2) for kind in kinds}
        for attack, kinds in costs[0].items()
    }


def same_examples(results: Results) -> bool:
    """Whether all verdicts are about the same examples of the same data, in the same order."""
    runs = [result for group in results.values() for result in group.values()]
    examples = [(run.data, run.verdicts.index.tolist(), run.verdicts.labels.tolist()) for run in runs]
    return all(example == examples[0] for example in examples)


def _summary(s: Summary) -> dict[str, Any]:
    return {
        "mean": round(s.mean, 4),
        "std": None if s.std is None else round(s.std, 4),
        "runs": {str(seed): round(value, 4) for seed, value in s.runs.items()},
    }


def _first(values: Mapping[Any, Any]) -> Any:
    return next(iter(values.values()))
