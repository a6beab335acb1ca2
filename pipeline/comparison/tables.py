"""The comparison for people: flat rows for CSV, and Markdown tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.comparison.statistics import FEWEST
from pipeline.verdicts import NATURAL, WORST_CASE

SIGNIFICANT = 0.05  # of corrected p values
Content = Mapping[str, Any]  # what `compare.compare` gives
DIFFERENCE = ("mean", "low", "high", "t_low", "t_high")


def columns(comparison: Content) -> list[str]:
    """The columns of `rows`."""
    seeds = comparison["seeds"]
    return [
        *("method", "metric", "mean", "std"),
        *(f"seed_{seed}" for seed in seeds),
        *(f"difference_{key}" for key in DIFFERENCE),
        *(f"p_corrected_seed_{seed}" for seed in seeds),
    ]


def rows(comparison: Content) -> list[dict[str, Any]]:
    """The comparison as flat rows for CSV: one a (method, metric); what a row lacks is not in it."""
    flat = []
    for method, metrics in comparison["methods"].items():
        for name, summary in metrics.items():
            delta = comparison["differences"].get(method, {}).get(name, {})
            tests = comparison["tests"].get(method, {}).get(name, {})
            flat.append(
                {"method": method, "metric": name, "mean": summary["mean"], "std": summary["std"]}
                | {f"seed_{seed}": value for seed, value in summary["runs"].items()}
                | {f"difference_{key}": value for key, value in delta.items()}
                | {f"p_corrected_seed_{seed}": test["p_corrected"] for seed, test in tests.items()}
            )
    return flat


def markdown(comparison: Content, heading: str) -> str:
    """Accuracies, differences with interval and test, best and last checkpoints, costs, and published numbers."""
    parts = [heading, *_accuracies(comparison), *_differences(comparison), *_tests(comparison)]
    parts += [*_checkpoints(comparison), *_attack_costs(comparison), *_published(comparison)]
    return "\n\n".join(parts) + "\n"


def _accuracies(comparison: Content) -> list[str]:
    seeds, metrics = comparison["seeds"], comparison["metrics"]
    own = {method: list(next(iter(summary.values()))["runs"]) for method, summary in comparison["methods"].items()}
    if any(list(map(str, seeds)) != mine for mine in own.values()):
        each = "; ".join(f"{method} {', '.join(mine)}" for method, mine in own.items())
        spread = f"mean, and from {FEWEST} seeds on sample standard deviation, over unequal seeds: {each}"
    elif len(seeds) >= FEWEST:
        spread = f"mean ± sample standard deviation over seeds {', '.join(map(str, seeds))}"
    else:
        spread = f"mean over {len(seeds)} seed(s): too few for a deviation"
    body = [
        [method, *(plus_minus(summary[m]) for m in metrics), *_cost(comparison, method)]
        for method, summary in comparison["methods"].items()
    ]
    return [
        f"Accuracy in % on {comparison['test_examples']} test images of {comparison['data']}, {spread}."
        " Cost: gradient evaluations an example and epoch. Total: those of the whole training, and how many"
        f" times those of {comparison['reference']}.",
        _table(["method", *metrics, "cost", "total"], body),
    ]


def _differences(comparison: Content) -> list[str]:
    if len(comparison["methods"]) == 1:
        return []
    if not comparison["differences"]:
        return ["The runs were judged on different test images, so there are no paired differences."]
    few = all(d["low"] is None for delta in comparison["differences"].values() for d in delta.values())
    level = f"{100 * comparison['confidence']:.4g}%"
    body = [
        [method, *(_difference(delta[name]) for name in comparison["metrics"])]
        for method, delta in comparison["differences"].items()
    ]
    said = (
        f"; with fewer than {FEWEST} common seeds there is no interval."
        if few
        else f", with its {level} interval from a bootstrap of seeds and images. Bold: that interval and the {level}"
        " t interval over seeds (in the CSV) both exclude 0. With few seeds either alone is too narrow: the first if"
        " mostly the seeds vary, the second if mostly the images do."
    )
    return [
        f"Difference to {comparison['reference']} in points, paired by seed and image{said}",
        _table(["method", *comparison["metrics"]], body),
    ]


def _tests(comparison: Content) -> list[str]:
    tests = comparison["tests"]
    count = sum(len(seeds) for metrics in tests.values() for seeds in metrics.values())
    if not count:
        return []
    body = [[method, *(score(seeds) for seeds in metrics.values())] for method, metrics in tests.items()]
    return [
        f"Seeds whose two models McNemar's exact test tells apart, + better or - worse than {comparison['reference']}"
        f" (p < {SIGNIFICANT} after {comparison['correction']}'s correction for these {count} tests). It judges"
        " single models, not methods:",
        _table(["method", *comparison["metrics"]], body),
    ]


def _checkpoints(comparison: Content) -> list[str]:
    body = []
    for method, kinds in comparison["checkpoints"].items():
        epochs = ", ".join(map(str, comparison["selected_epoch"][method].values()))
        values = [plus_minus(kinds[kind][name]) for name in ("natural", "robust") for kind in ("selected", "last")]
        body.append([method, epochs, *values, plus_minus(kinds["change"]["robust"], sign="+")])
    header = ["natural, selected", "natural, last", "robust, selected", "robust, last", "change of robust"]
    return [
        "Validation accuracy in % of the selected and the last epoch. The selected one is the best on these very"
        " images, so a fall of robust accuracy to the last epoch is chance and overfitting together:",
        _table(["method", "selected epochs", *header], body),
    ]


def _attack_costs(comparison: Content) -> list[str]:
    attacks = [name for name in comparison["metrics"] if name not in (NATURAL, WORST_CASE)]
    body = [[method, *(_passes(costs[a]) for a in attacks)] for method, costs in comparison["attack_costs"].items()]
    return [
        "Cost of the attacks: gradient evaluations + forward passes an example, mean over seeds; examples that are"
        " broken leave some attacks early:",
        _table(["method", *attacks], body),
    ]


def _published(comparison: Content) -> list[str]:
    table = comparison["published"]
    if table is None:
        return []
    body = [[method, *(beside(values[m]) for m in table["metrics"])] for method, values in table["methods"].items()]
    spread = f"mean ± standard deviation over {table['runs']} runs"
    runs = "a single run, so no spread" if table["runs"] == 1 else spread
    return [
        f"Ours / published ({table['name']}: {table['settings']}; {runs}), and the difference in points;"
        " within: at most either deviation:",
        _table(["method", *table["metrics"]], body),
    ]


def convincing(difference: Mapping[str, float | None]) -> bool:
    """Whether both intervals of a difference are there and exclude 0; see `statistics.bootstrap` for why both."""
    bounds = [(difference["low"], difference["high"]), (difference["t_low"], difference["t_high"])]
    return all(low is not None and high is not None and (low > 0 or high < 0) for low, high in bounds)


def _cost(comparison: Content, method: str) -> list[str]:
    totals = {m: sum(runs.values()) / len(runs) for m, runs in comparison["gradient_evaluations"].items()}
    times = totals[method] / totals[comparison["reference"]]
    cost = comparison["gradient_evaluations_per_example_and_epoch"][method]
    return [str(cost), f"{_short(totals[method])} ({times:.2g}x)"]


def _short(count: float) -> str:
    """A count with four digits: 175.5k, 1.317M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g}{letter}"
    return f"{count:.4g}"


def plus_minus(summary: Mapping[str, Any], sign: str = "", digits: int = 1) -> str:
    """Mean and, where there is one, deviation."""
    spread = "" if summary["std"] is None else f" ± {summary['std']:.{digits}f}"
    return f"{summary['mean']:{sign}z.{digits}f}{spread}"


def _difference(delta: Mapping[str, float | None]) -> str:
    if delta["mean"] is None:
        return "no common seed"
    mean = f"{delta['mean']:+z.1f}"
    interval = "" if delta["low"] is None else f" [{delta['low']:+z.1f}, {delta['high']:+z.1f}]"
    return (f"**{mean}**" if convincing(delta) else mean) + interval


def score(tests: Mapping[str, Mapping[str, float]]) -> str:
    """How many seeds the method's model is significantly better or worse in, of how many."""
    clear = [test["won"] > test["lost"] for test in tests.values() if test["p_corrected"] < SIGNIFICANT]
    won = [f"+{sum(clear)}"] if any(clear) else []
    lost = [f"-{len(clear) - sum(clear)}"] if not all(clear) else []
    return f"{' '.join(won + lost) or '0'} of {len(tests)}"


def _passes(cost: Mapping[str, float]) -> str:
    forward = f" + {cost['forward_passes']:.0f}" if cost["forward_passes"] else ""
    return f"{cost['gradient_evaluations']:.0f}{forward}"


def beside(pair: Mapping[str, Any]) -> str:
    """Ours / published, the difference, and whether it lies within both deviations."""
    published = plus_minus({"mean": pair["published"], "std": pair["published_std"]}, digits=2)
    if pair["ours"] is None:
        return f"not run / {published}"
    ours = plus_minus({"mean": pair["ours"], "std": pair["ours_std"]}, digits=2)
    verdict = {True: ", within", False: ", outside", None: ""}[pair["within"]]
    return f"{ours} / {published} ({pair['difference']:+.2f}{verdict})"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *body))
