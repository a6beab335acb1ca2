"""The lambda study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from pipeline.labels import method_label
from pipeline.plots.style import method_colour, save
from pipeline.studies.claims import REFERENCE, Line, lines
from pipeline.verdicts import WORST_CASE

Rows = Sequence[Mapping[str, Any]]
_STYLES = ("-", "--")  # of the two quantities in a panel
_MARKERS = "os^Dv<>p"
_BREADTH = {"entropy": "entropy, nats a dimension", "code_length": "code length of z, nats a dimension"}


def draw(data: str, rows: Rows, attack: str, path: Path) -> None:
    """A line of panels a method, all against lambda: robust accuracy, breadth of the distributions, loss of samples.

    `rows` as in lambda.csv: those of AT_PGD become the band behind the accuracies. Thresholds of one method are
    shades of its colour. Lambdas are categories: 0 has no logarithm.
    """
    reference = [row for row in rows if row["method"] == REFERENCE]
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != REFERENCE))
    figure, grid = pyplot.subplots(
        len(methods), 3, figsize=(11, 0.6 + 3.2 * len(methods)), squeeze=False, layout="constrained"
    )
    entries = _key({attack: _STYLES[0], WORST_CASE: _STYLES[1]}, bool(reference))
    for method, (accuracy, breadth, loss) in zip(methods, grid, strict=True):
        found = lines([row for row in rows if row["method"] == method])
        lams = sorted({lam for line in found for lam in line.runs})
        _band(accuracy, reference, attack, len(lams))
        measure = "entropy" if _has(found, "entropy") else "code_length"
        variety = breadth.twinx()
        for column, axes, style, scale in (
            (attack, accuracy, _STYLES[0], 100),
            (WORST_CASE, accuracy, _STYLES[1], 100),
            (measure, breadth, _STYLES[0], 1),
            ("diversity", variety, _STYLES[1], 1),
            ("adversarial_loss", loss, _STYLES[0], 1),
        ):
            for place, line in enumerate(found):
                points = _points(line, lams, column, scale, 0.08 * (place - (len(found) - 1) / 2))
                _curve(axes, points, style, _shade(method, place, len(found)), _MARKERS[place % 8])
        accuracy.set_ylabel(f"{method_label(method)}: test accuracy, %")
        breadth.set_ylabel(f"{_BREADTH[measure]} (solid)")
        variety.set_ylabel("variance of delta / eps (dashed)")
        loss.set_ylabel("cross-entropy of samples, nats")
        entries += [_entry(method, place, found) for place in range(len(found)) if found[place].tau is not None]
        for axes in (accuracy, breadth, loss):
            axes.set_xticks(range(len(lams)), [_short(lam) for lam in lams])
            axes.set_xlim(-0.4, len(lams) - 0.6)
            axes.set_xlabel("lambda")
            axes.grid(alpha=0.3)
    figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False, fontsize=9)
    figure.get_layout_engine().set(wspace=0.06)
    figure.suptitle(f"{data}: " + _title(len({row["seed"] for row in rows}), bool(reference)), fontsize=10)
    save(figure, path)


def _points(line: Line, lams: Sequence[float], column: str, scale: float, shift: float) -> dict[float, list[float]]:
    """The runs' values by place on the axis, at the lambdas where the column has values."""
    return {
        lams.index(lam) + shift: [scale * row[column] for row in runs.values()]
        for lam, runs in line.runs.items()
        if all(row[column] is not None for row in runs.values())
    }


def _curve(axes: Axes, points: Mapping[float, list[float]], style: str, colour: Any, marker: str) -> None:
    """Means over seeds, deviations as bars, single runs as dots; dashed lines have open markers."""
    means, deviations = zip(*map(_mean_and_deviation, points.values()), strict=True)
    looks = {"ls": style, "marker": marker, "ms": 5, "color": colour, "mfc": colour if style == "-" else "white"}
    axes.errorbar(list(points), means, deviations, lw=1.4, capsize=3, **looks)
    for x, values in points.items():
        axes.plot([x] * len(values), values, ".", ms=4, color=colour, alpha=0.4)


def _band(axes: Axes, reference: Rows, attack: str, width: int) -> None:
    """Mean and deviation of AT_PGD over the whole panel, under the attack and in the worst case."""
    if not reference:
        return
    colour = method_colour(REFERENCE)
    for column, style in zip((attack, WORST_CASE), _STYLES, strict=True):
        mean, deviation = _mean_and_deviation([100 * row[column] for row in reference])
        axes.axhspan(mean - deviation, mean + deviation, color=colour, alpha=0.12, lw=0)
        axes.axhline(mean, color=colour, lw=1, ls=style, alpha=0.7)


def _key(styles: Mapping[str, str], reference: bool) -> list[Line2D]:
    """Which line style is which accuracy, in grey, because colours belong to methods; and the band."""
    entries = [Line2D([], [], color="dimgrey", ls=style, label=name) for name, style in styles.items()]
    if reference:
        entries.append(Line2D([], [], color=method_colour(REFERENCE), alpha=0.25, lw=7, label=method_label(REFERENCE)))
    return entries


def _entry(method: str, place: int, found: Sequence[Line]) -> Line2D:
    """Which shade is which threshold."""
    colour, marker = _shade(method, place, len(found)), _MARKERS[place % 8]
    return Line2D([], [], color=colour, marker=marker, ms=5, label=f"tau {found[place].tau:g}")


def _shade(method: str, place: int, count: int) -> tuple[float, ...]:
    """The method's colour for a single line; for several, from dark to light around it."""
    colour, share = np.array(to_rgb(method_colour(method))), 0.5 if count == 1 else place / (count - 1)
    return tuple(colour * (0.45 + 1.1 * share) if share <= 0.5 else colour + (1 - colour) * 1.1 * (share - 0.5))


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """The deviation is 0 where there are too few runs for one."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) >= 3 else 0.0


def _has(found: Sequence[Line], column: str) -> bool:
    return all(row[column] is not None for line in found for runs in line.runs.values() for row in runs.values())


def _short(lam: float) -> str:
    """A lambda as a tick label: 0.01, 1e-3."""
    if lam == 0 or lam >= 0.01:
        return f"{lam:g}"
    digits, _, power = f"{lam:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def _title(seeds: int, reference: bool) -> str:
    spread = " ± sample standard deviation" if seeds >= 3 else ""
    band = f"; grey: AT_PGD{', mean and deviation' * bool(spread)}" if reference else ""
    return f"training against lambda: mean{spread} over {seeds} seed{'s' * (seeds > 1)}, dots single runs{band}"
