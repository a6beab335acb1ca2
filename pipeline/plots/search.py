"""The trials of a search: their course, what they cost, and what their parameters did."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, pyplot
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from pipeline.labels import method_label
from pipeline.plots.style import COLOURS, method_colour, one_panel, save

Rows = Sequence[Mapping[str, Any]]
ACCURACY = "validation robust accuracy, %"
_SHADES = colormaps["viridis"]
_STATES = {"complete": ("o", "trained to the end"), "pruned": ("x", "given up early")}


def history(data: str, rows: Rows, path: Path) -> None:
    """Accuracy of every trial in their order, and the best so far; diverged trials stand as ticks at the bottom."""
    figure, axes = one_panel(6.4, 3.6)
    colour = method_colour(rows[0]["method"])
    best, so_far = float("-inf"), []
    for row in rows:
        best = max(best, row["val_robust"]) if row["state"] == "complete" else best
        so_far.append(100 * best if best > float("-inf") else float("nan"))
    axes.step([row["number"] for row in rows], so_far, where="post", color=COLOURS[0], lw=1.2, label="best so far")
    _points(axes, rows, "number", colour)
    lost = [row["number"] for row in rows if row["val_robust"] is None]
    if lost:
        axes.plot(lost, [0.02] * len(lost), "|", ms=12, color=COLOURS[4], label="diverged", transform=_floor(axes))
    axes.set_xlabel("trial")
    axes.set_ylabel(ACCURACY)
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="best")
    axes.set_title(f"{_name(data, rows)}: {len(rows)} trials, one training each", fontsize=10)
    save(figure, path)


def importance(data: str, shares: Mapping[str, Mapping[str, float]], method: str, path: Path) -> None:
    """The share of each target's variance over the trials that a parameter explains: one bar a parameter and target."""
    targets = {name: values for name, values in shares.items() if values}
    names = sorted({name for values in targets.values() for name in values}, key=lambda n: _share(targets, n))
    figure, axes = one_panel(6.4, 1.6 + 0.34 * max(1, len(names)))
    height = 0.8 / max(1, len(targets))
    for place, (target, values) in enumerate(targets.items()):
        where = np.arange(len(names)) + 0.4 - height * (place + 0.5)
        axes.barh(where, [100 * values.get(n, 0.0) for n in names], height, color=COLOURS[1 + place], label=target)
    axes.set_yticks(range(len(names)), names)
    if targets:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        axes.set_xlim(0, 100)
        axes.grid(alpha=0.3, axis="x")
    else:
        axes.text(0.5, 0.5, "too few different trials to tell", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
    axes.set_xlabel("share of the variance over trials, %")
    axes.set_title(f"{data}, {method_label(method)}: what the parameters explain (functional ANOVA)", fontsize=10)
    save(figure, path)


def slices(data: str, rows: Rows, names: Sequence[str], logarithmic: Collection[str], path: Path) -> None:
    """Accuracy against every parameter alone, a panel each; later trials are lighter."""
    across = min(4, len(names))
    down = -(-len(names) // across)
    size = (2.4 * across + 1.4, 2.3 * down + 0.7)
    figure, grid = pyplot.subplots(down, across, figsize=size, sharey=True, squeeze=False, layout="constrained")
    known = _measured(rows)
    shades = Normalize(0, max(1, len(rows) - 1))
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_axis_off()
            continue
        name = names[place]
        where, ticks = _places(known, name)
        for state, (marker, _) in _STATES.items():
            chosen = [i for i, row in enumerate(known) if row["state"] == state]
            colours = [_SHADES(shades(known[i]["number"])) for i in chosen]
            heights = [100 * known[i]["val_robust"] for i in chosen]
            axes.scatter([where[i] for i in chosen], heights, c=colours or None, marker=marker, s=26, lw=1)
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks, rotation=20, ha="right", fontsize=8)
            axes.set_xlim(-0.5, len(ticks) - 0.5)
        elif name in logarithmic:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(pyplot.MaxNLocator(4, integer=_whole(known, name)))
        axes.tick_params(labelsize=8)
        axes.set_xlabel(name, fontsize=9)
        axes.grid(alpha=0.3)
    figure.supylabel(ACCURACY, fontsize=9)
    figure.colorbar(ScalarMappable(shades, _SHADES), ax=grid, label="trial", pad=0.01)
    figure.suptitle(f"{_name(data, rows)}: every parameter by itself{_given_up(known)}", fontsize=10)
    save(figure, path)


def parallel(data: str, rows: Rows, names: Sequence[str], logarithmic: Collection[str], path: Path) -> None:
    """One line a trial through the values of all its parameters, coloured by accuracy; pruned trials are dashed."""
    known = sorted(_measured(rows), key=lambda row: row["val_robust"])  # the best lie on top
    figure, axes = one_panel(max(5.0, 1.25 * len(names) + 2.0), 3.8)
    accuracies = [100 * row["val_robust"] for row in known] or [0.0]
    shades = Normalize(min(accuracies), max(accuracies) if max(accuracies) > min(accuracies) else min(accuracies) + 1)
    heights = np.array([_heights(known, name, name in logarithmic, axes, x) for x, name in enumerate(names)])
    for number, row in enumerate(known):
        line = "-" if row["state"] == "complete" else ":"
        colour = _SHADES(shades(100 * row["val_robust"]))
        axes.plot(heights[:, number], line, color=colour, lw=1.4, marker="o", ms=3)
    for x in range(len(names)):
        axes.axvline(x, color="black", lw=0.8, zorder=0)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.tick_params(axis="x", length=0, pad=8)
    axes.set_yticks([])
    axes.set_xlim(-0.45, len(names) - 0.3)
    axes.set_ylim(-0.1, 1.1)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.colorbar(ScalarMappable(shades, _SHADES), ax=axes, label=ACCURACY, pad=0.01)
    dotted = "; dotted: given up early" if any(row["state"] == "pruned" for row in known) else ""
    axes.set_title(f"{_name(data, rows)}: a line a trial{dotted}", fontsize=10)
    save(figure, path)


def pareto(data: str, rows: Rows, front: Rows, chosen: Mapping[str, Any], path: Path) -> None:
    """Accuracy against what the training cost, the trials that no other beats in both, and the chosen one."""
    figure, axes = one_panel(6.4, 4.0)
    colour = method_colour(rows[0]["method"])
    _points(axes, rows, "gradient_evaluations", colour)
    cost = [row["gradient_evaluations"] for row in front]
    robust = [100 * row["val_robust"] for row in front]
    axes.step(cost, robust, where="post", color=COLOURS[0], lw=1.2, label="Pareto front")
    for x, y, row in zip(cost, robust, front, strict=True):
        axes.annotate(str(row["number"]), (x, y), xytext=(-4, 4), textcoords="offset points", fontsize=8, ha="right")
    axes.plot(
        [chosen["gradient_evaluations"]],
        [100 * chosen["val_robust"]],
        "o",
        ms=13,
        mfc="none",
        mec=COLOURS[4],
        mew=1.6,
        label=f"chosen: trial {chosen['number']}",
    )
    axes.set_xscale("log")
    axes.margins(0.12)
    axes.set_xlabel("gradient evaluations of the training (forwards and backwards, all examples)")
    axes.set_ylabel(ACCURACY)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_title(f"{_name(data, rows)}: accuracy against cost of {len(_measured(rows))} trials", fontsize=10)
    save(figure, path)


def _points(axes: Axes, rows: Rows, column: str, colour: str) -> None:
    """The trials with a measurement, by their state."""
    for state, (marker, label) in _STATES.items():
        chosen = [row for row in rows if row["state"] == state]
        if chosen:
            heights = [100 * row["val_robust"] for row in chosen]
            axes.plot([row[column] for row in chosen], heights, marker, ms=6, color=colour, label=label, ls="none")


def _heights(rows: Rows, name: str, logarithmic: bool, axes: Axes, x: int) -> list[float]:
    """A parameter's values between 0 and 1 on the axis at `x`, with its ends (or names) written beside it."""
    where, ticks = _places(rows, name)
    values = np.log(where) if logarithmic else np.array(where, float)
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    scaled = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    ends = {round(float(y), 9): f"{value:.3g}" for y, value in zip(scaled, where, strict=True) if y in (0, 1)}
    alone = {} if high > low or not len(values) else {0.5: f"{where[0]:.3g}"}
    named = {place / (len(ticks) - 1) if len(ticks) > 1 else 0.5: tick for place, tick in enumerate(ticks)}
    for y, text in (named or alone or ends).items():
        side = {0: (0, -6, "center", "top"), 1: (0, 6, "center", "bottom")}.get(y, (6, 0, "left", "center"))
        axes.annotate(
            text,
            (x, y),
            xytext=side[:2],
            textcoords="offset points",
            ha=side[2],
            va=side[3],
            fontsize=8,
            zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.85},
        )
    return scaled.tolist()


def _places(rows: Rows, name: str) -> tuple[list[float], list[str]]:
    """Where a parameter's values stand on an axis, and the names of these places if they are words."""
    values = [row[name] for row in rows]
    if not any(isinstance(value, str) for value in values):
        return values, []
    words = sorted(set(values))
    return [words.index(value) for value in values], words


def _measured(rows: Rows) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["val_robust"] is not None]


def _whole(rows: Rows, name: str) -> bool:
    return all(isinstance(row[name], int) for row in rows)


def _given_up(rows: Rows) -> str:
    return " (crosses: given up early)" if any(row["state"] == "pruned" for row in rows) else ""


def _share(targets: Mapping[str, Mapping[str, float]], name: str) -> float:
    """What the bars are ordered by: the first target's share."""
    return next(iter(targets.values())).get(name, 0.0)


def _floor(axes: Axes) -> Any:
    """Trials across, shares of the panel upwards."""
    return axes.get_xaxis_transform()


def _name(data: str, rows: Rows) -> str:
    return f"{data}, search for {method_label(rows[0]['method'])}"
