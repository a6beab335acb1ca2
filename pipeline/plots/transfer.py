"""Every model under attacks made with every other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from pipeline.labels import method_label
from pipeline.plots.style import save


def draw(
    data: str,
    accuracies: np.ndarray,
    attacks: Sequence[str],
    sources: Sequence[str],
    targets: Sequence[str],
    path: Path,
) -> None:
    """Accuracies in % (attacks, sources, targets): a heat map an attack, all on one colour scale, without rows of NaN.

    Models are called METHOD-SEED. A frame marks a model attacked with itself. Up to 16 models a side have numbers.
    """
    rows = [[s for s in range(len(sources)) if not np.isnan(values[s]).all()] for values in accuracies]
    across = min(2, len(attacks))
    lines = [rows[start : start + across] for start in range(0, len(attacks), across)]
    numbers = max(len(sources), len(targets)) <= 16
    cell = 0.42 if numbers else 0.2
    heights = [max(map(len, line)) * cell + 1.6 for line in lines]
    size = (max(6.0, across * (len(targets) * cell + 1.6) + 1.2), max(3.4, sum(heights) + 0.4))
    figure, grid = pyplot.subplots(
        len(lines), across, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
    )
    shades = Normalize(np.nanmin(accuracies), np.nanmax(accuracies))
    panels = list(grid.flat)
    for axes, attack, values, shown in zip(panels, attacks, accuracies, rows, strict=False):
        picture = _crosses(axes, values[shown], [sources[s] for s in shown], targets, shades, numbers)
        axes.set_title(attack, fontsize=10)
    for axes in panels[len(attacks) :]:
        axes.set_axis_off()
    figure.colorbar(picture, ax=grid, label="accuracy, %", shrink=0.6)
    figure.suptitle(f"{data}: the column's model under attacks made with the row's; framed: with itself", fontsize=10)
    save(figure, path)


def _crosses(
    axes: Axes, values: np.ndarray, sources: Sequence[str], targets: Sequence[str], shades: Normalize, numbers: bool
) -> AxesImage:
    """A heat map of values (sources, targets), framed where source and target are one."""
    for row, source in enumerate(sources):
        for column, target in enumerate(targets):
            if source == target:
                axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, ec="red", lw=1.2))
            if numbers:
                value, ink = values[row, column], "white" if shades(values[row, column]) < 0.6 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_xticks(range(len(targets)), [_run_label(name) for name in targets], rotation=90, fontsize=8)
    axes.set_yticks(range(len(sources)), [_run_label(name) for name in sources], fontsize=8)
    return axes.imshow(values, norm=shades, cmap="viridis")


def _run_label(name: str) -> str:
    """METHOD-SEED for people."""
    method, _, seed = name.rpartition("-")
    return f"{method_label(method)} {seed}"
