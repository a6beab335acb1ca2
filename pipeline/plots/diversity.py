"""Samples of every distribution: what they are like, what they cost, where they lie, and how they look."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.labels import method_label
from pipeline.plots.style import COLOURS, method_colour, method_marker, save
from pipeline.studies.exploration import PGD, UNIFORM, scaled, source_label

# Panels of the measures; the rest of them stand in the tables.
_PANELS = {
    "seen_diversity": "variance of delta / eps",
    "seen_cosine": "cosine similarity",
    "classes": "predicted classes",
    "adversarial_loss": "mean loss",
    "worst_loss": "largest loss",
    "fooled": "samples that fool, %",
}
_REACHED = {"loss": "largest loss so far", "broken": "images broken, %"}
_FLOOR = {"classes": 1, "seen_cosine": None}
_BACKGROUND = LinearSegmentedColormap.from_list("loss", ["#FFFFFF", "#8C8C8C"])  # leaves the markers their colours
Rows = Sequence[Mapping[str, Any]]


def measures(data: str, rows: Rows, common: Sequence[str], path: Path) -> None:
    """Measures by source: a line of panels for the classifiers of each of `common`, and one for each source on its own.

    `rows`: as in diversity.csv. Markers are means over seeds, bars deviations, dots single seeds.
    """
    own = [name for name in dict.fromkeys(row["model"] for row in rows) if name not in common]
    lines = [*common, *([None] if own else [])]
    figure, grid = pyplot.subplots(
        len(lines), len(_PANELS), figsize=(13, 2.9 * len(lines) + 0.5), squeeze=False, layout="constrained"
    )
    for line, model in zip(grid, lines, strict=True):
        for axes, (measure, label) in zip(line, _PANELS.items(), strict=True):
            if model is None:
                _own(axes, rows, own, measure)
            else:
                _common(axes, [row for row in rows if row["model"] == model], measure)
            axes.set_title(label, fontsize=9)
            axes.tick_params(labelsize=8)
            axes.set_ylim(bottom=_FLOOR.get(measure, 0))
            axes.grid(alpha=0.3)
        where = "each on its own classifiers" if model is None else f"all on {method_label(model)}'s classifiers"
        line[0].set_ylabel(where, fontsize=9)
    beside = "\nOn its own classifiers: a method's samples beside PGD restarts (black) and uniform noise (grey)"
    title = f"{data}, samples of an image: markers are means over images and {_spread(rows, 'bars')}, dots single seeds"
    figure.suptitle(title + beside * bool(own), fontsize=10)
    save(figure, path)


def budget(data: str, rows: Rows, path: Path) -> None:
    """Loss reached and share of images broken by the best of n samples against what they cost; `rows`: budget.csv."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, grid = pyplot.subplots(
        len(models), 2, figsize=(9.5, 3.6 * len(models) + 0.4), squeeze=False, layout="constrained"
    )
    for line, model in zip(grid, models, strict=True):
        mine = [row for row in rows if row["model"] == model]
        for axes, measure, label in zip(
            line, ("loss", "broken"), ("largest loss so far", "images broken, %"), strict=True
        ):
            for source in dict.fromkeys(row["source"] for row in mine):
                _curve(axes, [row for row in mine if row["source"] == source], source, measure)
            axes.set_ylabel(label)
            axes.set_xlabel("cost an image, gradient evaluations (a forward pass: 1/2)", fontsize=9)
            axes.set_title(f"on {method_label(model)}'s classifiers", fontsize=9)
            axes.grid(alpha=0.3)
            axes.set_xlim(left=0)
        line[0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{data}, the best of n samples: means over images and {_spread(rows, 'bands')}", fontsize=10)
    save(figure, path)


def projection(data: str, shown: Mapping[str, np.ndarray], path: Path) -> None:
    """A panel an image: samples in the plane that holds most of them, and the loss in that plane behind.

    `shown`: the arrays of samples.npz. One colour scale for all panels. A filled marker fools the model, an
    open one does not; which it does is a matter of the sample itself, which lies off the plane.
    """
    eps, count = float(shown["eps"]), len(shown["images"])
    across = min(4, count)
    down = -(-count // across)
    figure, grid = pyplot.subplots(
        down, across, figsize=(3.3 * across + 0.7, 3.45 * down + 1.1), squeeze=False, layout="constrained"
    )
    levels = MaxNLocator(12).tick_values(0, max(float(shown["surface"].max()), 1e-6))
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    for n, axes in enumerate(grid.flat[:count]):
        along = shown["axes"][n] / eps
        picture = axes.contourf(*along, shown["surface"][n], levels=levels, cmap=_BACKGROUND)
        _edge(axes, along, shown["surface_margin"][n], 0.0, COLOURS[4], "-")
        _edge(axes, along, shown["surface_norm"][n], 1.0, "black", ":")
        for s, source in enumerate(map(str, shown["sources"])):
            _points(axes, shown["places"][n, s] / eps, shown["fooled"][n, s], source)
        axes.plot(0, 0, "+", color="black", ms=11, mew=2)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=8)
        title = (
            f"test image {shown['index'][n]}, label {shown['labels'][n]}\n{100 * shown['share'][n]:.0f} % in the plane"
        )
        axes.set_title(title, fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("second direction, eps", fontsize=9)
    for axes in grid.flat[max(0, count - across) : count]:
        axes.set_xlabel("first direction, eps", fontsize=9)
    figure.colorbar(picture, ax=grid, label="cross-entropy", shrink=0.8)
    figure.legend(handles=_key(shown), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(
        f"{data}, {_where(shown)}: samples in the plane through the image that holds most of their squared length,"
        " and the loss there\n(samples are projected onto it; its own points into the set, then clipped to [0, 1])",
        fontsize=10,
    )
    save(figure, path)


def images(data: str, shown: Mapping[str, np.ndarray], path: Path) -> None:
    """A line an image: clean, then for every source the perturbation of its first sample, amplified, and the result.

    `shown`: the arrays of samples.npz. Zero perturbation is mid-grey, and the factor one for all panels.
    """
    x, deltas = shown["images"], shown["deltas"][:, :, 0]
    seen = np.clip(x[:, None] + deltas, 0, 1) - x[:, None]
    factor = 0.5 / max(float(np.abs(seen).max()), 1e-6)
    sources = [str(source) for source in shown["sources"]]
    size = (max(8.5, 1.05 * (1 + 2 * len(sources)) + 0.4), 1.28 * len(x) + 0.7)
    figure, grid = pyplot.subplots(len(x), 1 + 2 * len(sources), figsize=size, squeeze=False, layout="constrained")
    for n, line in enumerate(grid):
        _picture(line[0], x[n])
        line[0].set_ylabel(f"image {shown['index'][n]}\nlabel {shown['labels'][n]}", fontsize=8)
        _prediction(line[0], shown["clean_predicted"][n], shown["labels"][n])
        for s in range(len(sources)):
            noise, result = line[1 + 2 * s : 3 + 2 * s]
            _picture(noise, 0.5 + factor * seen[n, s])
            _picture(result, x[n] + seen[n, s])
            _prediction(result, shown["predicted"][n, s, 0], shown["labels"][n])
    grid[0, 0].set_title("clean", fontsize=9)
    for s, source in enumerate(sources):
        grid[0, 1 + 2 * s].set_title(source_label(source), fontsize=9, loc="left", color=_ink(source))
    figure.suptitle(
        f"{data}, {_where(shown)}; the first sample of each source: perturbation x {factor:.3g} (zero is mid-grey), and"
        " the image with it.\nBelow: predicted class, bold and orange where it is wrong",
        fontsize=9,
    )
    save(figure, path)


def _common(axes: Axes, rows: Rows, measure: str) -> None:
    """One marker a source."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    for place, source in enumerate(sources):
        _marker(axes, place, [scaled(measure, row[measure]) for row in rows if row["source"] == source], source)
    axes.set_xticks(range(len(sources)), map(source_label, sources), rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(sources) - 0.4)


def _own(axes: Axes, rows: Rows, models: Sequence[str], measure: str) -> None:
    """The sources on each of `models`, beside one another."""
    for place, model in enumerate(models):
        mine = [row for row in rows if row["model"] == model]
        sources = list(dict.fromkeys(row["source"] for row in mine))
        for offset, source in enumerate(sources):
            values = [scaled(measure, row[measure]) for row in mine if row["source"] == source]
            _marker(axes, place + 0.25 * (offset - (len(sources) - 1) / 2), values, source)
    axes.set_xticks(range(len(models)), map(method_label, models), rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(models) - 0.4)


def _marker(axes: Axes, place: float, values: Sequence[float], source: str) -> None:
    """Mean, deviation where there is one, and single values."""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0
    colour = _ink(source)
    axes.errorbar(place, np.mean(values), spread, fmt=_shape(source), ms=6, color=colour, capsize=3, lw=1.2)
    axes.plot([place + 0.12] * len(values), values, ".", ms=4, color=colour, alpha=0.5)


def _curve(axes: Axes, rows: Rows, source: str, measure: str) -> None:
    """Mean over seeds against cost, with a band of one deviation."""
    cost = sorted({row["cost"] for row in rows})
    values = [[(100 if measure == "broken" else 1) * row[measure] for row in rows if row["cost"] == c] for c in cost]
    mean = np.array([np.mean(v) for v in values])
    spread = np.array([np.std(v, ddof=1) if len(v) > 1 else 0 for v in values])
    colour = _ink(source)
    axes.plot(cost, mean, f"-{_shape(source)}", ms=4, color=colour, label=source_label(source))
    axes.fill_between(cost, mean - spread, mean + spread, color=colour, alpha=0.18, lw=0)


def _points(axes: Axes, places: np.ndarray, fooled: np.ndarray, source: str) -> None:
    colour = _ink(source)
    faces = [colour if wrong else "none" for wrong in fooled]
    axes.scatter(
        places[:, 0], places[:, 1], s=26, marker=_shape(source), facecolors=faces, edgecolors=colour, lw=1, zorder=3
    )


def _edge(axes: Axes, along: np.ndarray, values: np.ndarray, level: float, colour: str, style: str) -> None:
    """The contour at `level`, where there is one."""
    if values.min() < level < values.max():
        axes.contour(*along, values, levels=[level], colors=[colour], linestyles=[style], linewidths=1.3)


def _key(shown: Mapping[str, np.ndarray]) -> list[Line2D]:
    """The legend of the projection."""
    sources = [
        Line2D([], [], ls="", marker=_shape(source), color=_ink(source), label=source_label(source))
        for source in map(str, shown["sources"])
    ]
    return [
        *sources,
        Line2D([], [], ls="", marker="+", ms=10, mew=2, color="black", label="the image itself"),
        Line2D([], [], ls="", marker="o", mfc="none", color="black", label="open: does not fool"),
        Line2D([], [], color=COLOURS[4], label="misclassified beyond"),
        Line2D([], [], color="black", ls=":", label="edge of the set"),
    ]


def _picture(axes: Axes, image: np.ndarray) -> None:
    """An image (C, H, W) in [0, 1]: three channels in colour, others as their mean."""
    picture = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
    axes.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _prediction(axes: Axes, predicted: int, label: int) -> None:
    wrong = predicted != label
    axes.set_xlabel(
        str(predicted),
        fontsize=9,
        labelpad=2,
        color=COLOURS[4] if wrong else "black",
        fontweight="bold" if wrong else "normal",
    )


def _where(shown: Mapping[str, np.ndarray]) -> str:
    return f"{method_label(str(shown['model']))}, seed {shown['seed']}"


def _spread(rows: Rows, drawn: str) -> str:
    """Over what means are taken, and what shows their deviation."""
    seeds = len({row["seed"] for row in rows})
    return f"{seeds} seeds, {drawn} their sample standard deviation" if seeds > 1 else "one seed"


def _ink(source: str) -> str:
    """A method's colour for its source; PGD has AT_PGD's, noise is grey."""
    return "#777777" if source == UNIFORM else method_colour("at_pgd" if source == PGD else source)


def _shape(source: str) -> str:
    return "X" if source == UNIFORM else method_marker("at_pgd" if source == PGD else source)
