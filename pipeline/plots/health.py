"""Is the evaluation to be trusted: accuracy as the set grows, and the checks of every run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes

from pipeline.labels import method_label
from pipeline.plots.style import method_colour, save


def draw(radii: Mapping[tuple[str, int], Mapping[str, float]], found: Mapping[str, Any], path: Path) -> None:
    """Accuracy against the radius, a line a run, and the table of checks: which failed where."""
    figure, (curves, table) = pyplot.subplots(1, 2, figsize=(12, 4.6), width_ratios=[1, 1.5], layout="constrained")
    for (method, seed), curve in radii.items():
        first = seed == min(s for m, s in radii if m == method)
        curves.plot(
            [float(radius) for radius in curve],
            [100 * accuracy for accuracy in curve.values()],
            "-o",
            ms=3,
            lw=1,
            color=method_colour(method),
            label=method_label(method) if first else None,
        )
    curves.set_xscale("log", base=2)
    curves.xaxis.set_major_formatter("{x:g}")
    curves.set_xlabel("radius of the set, eps")
    curves.set_ylabel("accuracy under PGD, %")
    curves.grid(alpha=0.3)
    curves.legend(frameon=False, fontsize=9)
    _checks(table, found)
    save(figure, path)


def _checks(axes: Axes, found: Mapping[str, Any]) -> None:
    """A field a check and run: its figure, on white where it passes, on orange where it fails, on grey if unknown."""
    names = list(found["checks"])
    runs = [
        (f"{method_label(m)} {seed}", verdicts)
        for m, seeds in found["cells"].items()
        for seed, verdicts in seeds.items()
    ]
    shades = {True: (1.0, 1.0, 1.0), False: (0.93, 0.6, 0.2), None: (0.8, 0.8, 0.8)}
    axes.imshow([[shades[verdicts[name]["passed"]] for name in names] for _, verdicts in runs], aspect="auto")
    for row, (_, verdicts) in enumerate(runs):
        for column, name in enumerate(names):
            value = verdicts[name]["figure"]
            axes.text(column, row, "?" if value is None else f"{value:.2g}", ha="center", va="center", fontsize=8)
    limits = [
        found["checks"][name]["passes"].replace("at most", "\u2264").replace("at least", "\u2265") for name in names
    ]
    axes.set_xticks(range(len(names)), [f"{n}\n{limit}" for n, limit in zip(names, limits, strict=True)], fontsize=8)
    axes.tick_params(axis="x", rotation=45)
    axes.set_yticks(range(len(runs)), [label for label, _ in runs], fontsize=8)
    axes.set_title("checks: figure a run; orange fails", fontsize=10)
