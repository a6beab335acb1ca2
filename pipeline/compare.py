"""The comparison of methods over seeds, with the uncertainty that so few runs leave."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pipeline.verdicts import Verdicts

ROUNDING = 1e-9  # in points: pairs closer than this differ by rounding alone
Table = Mapping[str, Mapping[int, Verdicts]]  # method -> seed -> verdicts


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof 1; None with fewer than 3 runs) of one quantity over runs."""

    mean: float
    std: float | None
    runs: dict[int, float]

    @classmethod
    def of(cls, runs: dict[int, float]) -> "Summary":
        """Summarise one value a seed."""
        values = np.array(list(runs.values()))
        std = float(values.std(ddof=1)) if len(values) >= 3 else None
        return cls(float(values.mean()), std, runs)


def summarise(table: Table) -> dict[str, dict[str, Summary]]:
    """Accuracy in percent: method -> attack (and worst-case) -> summary over seeds."""
    result = {}
    for method, runs in table.items():
        accuracies = {seed: verdicts.accuracies() for seed, verdicts in runs.items()}
        names = next(iter(accuracies.values()))
        result[method] = {
            name: Summary.of({seed: 100 * values[name] for seed, values in accuracies.items()}) for name in names
        }
    return result


def difference(method: Summary, reference: Summary, confidence: float) -> dict[str, float | None]:
    """Mean difference of runs paired by seed, in points, with Student's t interval over the pairs.

    With fewer than 3 pairs, or pairs that all differ by the same amount, the interval is None: a
    t interval would then claim a precision that the runs do not show.
    """
    pairs = np.array([method.runs[seed] - reference.runs[seed] for seed in reference.runs])
    low = high = None
    if len(pairs) >= 3 and np.ptp(pairs) > ROUNDING:
        interval = stats.ttest_1samp(pairs, 0).confidence_interval(confidence)
        low, high = float(interval.low), float(interval.high)
    return {"mean": float(pairs.mean()), "low": low, "high": high}


def compare(
    table: Table, costs: Mapping[str, int], selected: Mapping[str, Mapping[int, int]], reference: str, level: float
) -> dict[str, Any]:
    """The content of comparison.json.

    `costs`: gradient evaluations an example and epoch of each method; `selected`:
    the epoch that validation chose, by method and seed. Accuracies are percentages on the
    test set, differences are points against `reference` at confidence `level`.
    """
    summaries = summarise(table)
    metrics = list(next(iter(summaries.values())))
    return {
        "reference": reference,
        "confidence": level,
        "metrics": metrics,
        "seeds": sorted(next(iter(table.values()))),
        "test_examples": len(next(iter(next(iter(table.values())).values())).labels),
        "methods": {
            method: {
                name: {
                    "mean": round(s.mean, 4),
                    "std": None if s.std is None else round(s.std, 4),
                    "runs": {str(seed): round(value, 4) for seed, value in s.runs.items()},
                }
                for name, s in summary.items()
            }
            for method, summary in summaries.items()
        },
        "differences": {
            method: {name: _rounded(difference(summary[name], summaries[reference][name], level)) for name in metrics}
            for method, summary in summaries.items()
            if method != reference
        },
        "gradient_evaluations_per_example_and_epoch": dict(costs),
        "selected_epoch": {m: {str(s): e for s, e in by_seed.items()} for m, by_seed in selected.items()},
    }


def rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The comparison as flat rows for CSV: one a (method, metric)."""
    flat = []
    for method, metrics in comparison["methods"].items():
        for name, summary in metrics.items():
            delta = comparison["differences"].get(method, {}).get(name, {})
            runs = {f"seed_{seed}": value for seed, value in summary["runs"].items()}
            flat.append(
                {"method": method, "metric": name, "mean": summary["mean"], "std": summary["std"], **runs}
                | {f"difference_{key}": value for key, value in delta.items()}
            )
    return flat


def markdown(comparison: Mapping[str, Any], heading: str) -> str:
    """Two Markdown tables: accuracies with their deviation, and paired differences with their interval."""
    metrics, seeds = comparison["metrics"], comparison["seeds"]
    cost = comparison["gradient_evaluations_per_example_and_epoch"]
    spread = (
        f"mean ± sample standard deviation over seeds {', '.join(map(str, seeds))}"
        if len(seeds) >= 3
        else f"mean over {len(seeds)} seed(s): too few for a deviation"
    )
    accuracies = [
        [method, *(_plus_minus(summary[m]) for m in metrics), str(cost[method])]
        for method, summary in comparison["methods"].items()
    ]
    lines = [
        heading,
        "",
        f"Accuracy in % on {comparison['test_examples']} test images, {spread}."
        " Cost: gradient evaluations an example and epoch.",
        "",
        *_table(["method", *metrics, "cost"], accuracies),
        "",
        f"Difference to {comparison['reference']} in points, paired by seed,"
        f" with its {100 * comparison['confidence']:.4g}% t interval:",
        "",
        *_table(
            ["method", *metrics],
            [[m, *(_interval(d[name]) for name in metrics)] for m, d in comparison["differences"].items()],
        ),
    ]
    return "\n".join(lines) + "\n"


def _plus_minus(summary: Mapping[str, Any]) -> str:
    return f"{summary['mean']:.1f}" + ("" if summary["std"] is None else f" ± {summary['std']:.1f}")


def _interval(delta: Mapping[str, Any]) -> str:
    bounds = "" if delta["low"] is None else f" [{delta['low']:+.1f}, {delta['high']:+.1f}]"
    return f"{delta['mean']:+.1f}{bounds}"


def _table(header: list[str], body: list[list[str]]) -> list[str]:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in values.items()}
