"""Figures; the only module that imports matplotlib. PNG files come out byte-identical for equal input."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

from pipeline.files import write_bytes
from pipeline.labels import method_label

# Okabe and Ito's colours, distinguishable with every common colour vision.
COLOURS = ["#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442"]


def comparison(table: Mapping[str, Any], path: Path) -> None:
    """Accuracy under every attack: a marker and deviation bar a method, a faint dot a run."""
    metrics, methods = table["metrics"], table["methods"]
    figure, axes = _figure(9, 4.2)
    width = 0.8 / len(methods)
    for place, (method, summary) in enumerate(methods.items()):
        at = np.arange(len(metrics)) + (place - (len(methods) - 1) / 2) * width
        colour = COLOURS[place % len(COLOURS)]
        means = [summary[m]["mean"] for m in metrics]
        spreads = [summary[m]["std"] or 0 for m in metrics]
        axes.errorbar(at, means, spreads, fmt="s", ms=5, capsize=3, color=colour, label=method_label(method))
        for x, metric in zip(at, metrics, strict=True):
            runs = list(summary[metric]["runs"].values())
            axes.plot([x] * len(runs), runs, ".", ms=5, color=colour, alpha=0.35)
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set_ylabel(f"accuracy on {table['test_examples']} test images, %")
    axes.grid(axis="y", alpha=0.3)
    bars = ", bars ± sample standard deviation" if len(table["seeds"]) >= 3 else ""
    axes.set_title(f"Mean over {len(table['seeds'])} seeds{bars}, dots single runs", fontsize=10)
    axes.legend(frameon=False, ncols=len(methods), fontsize=9, loc="upper right")
    _save(figure, path)


def tradeoff(table: Mapping[str, Any], path: Path) -> None:
    """Robust (worst-case) accuracy against the cost of training, and against natural accuracy: a point a run.

    Open markers are means over seeds. Cost: gradient evaluations of the whole training, on a logarithmic axis.
    """
    figure, (cost, natural) = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for place, (method, summary) in enumerate(table["methods"].items()):
        colour, marker = COLOURS[place % len(COLOURS)], "os^Dv<>p"[place % 8]
        robust = summary["worst-case"]["runs"]
        for axes, across in ((cost, table["gradient_evaluations"][method]), (natural, summary["natural"]["runs"])):
            runs = [(across[seed], robust[seed]) for seed in robust]
            axes.plot(*zip(*runs, strict=True), marker, ms=5, color=colour, alpha=0.45, mew=0)
            axes.plot(*np.mean(runs, 0), marker, ms=9, mfc="none", color=colour, label=method_label(method))
    cost.set_xscale("log")
    cost.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    cost.xaxis.set_major_formatter(EngFormatter(sep=""))
    cost.minorticks_off()
    cost.set_xlabel("gradient evaluations of the training")
    natural.set_xlabel(f"natural accuracy on {table['test_examples']} test images, %")
    cost.set_ylabel("accuracy under all attacks at once, %")
    for axes in (cost, natural):
        axes.grid(alpha=0.3)
    figure.suptitle("Filled: single runs; open: mean over seeds", fontsize=10)
    figure.legend(*cost.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside right upper")
    _save(figure, path)


def curves(
    histories: Mapping[str, Mapping[int, Sequence[Mapping[str, str]]]],
    selected: Mapping[str, Mapping[str, int]],
    path: Path,
) -> None:
    """Validation accuracy, natural and under PGD, of every run; a ring marks the selected epoch."""
    figure, panels = pyplot.subplots(
        1, len(histories), figsize=(3.1 * len(histories), 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (method, runs) in zip(panels[0], histories.items(), strict=True):
        for seed, history in runs.items():
            epochs = [int(row["epoch"]) for row in history]
            chosen = selected[method][str(seed)] - 1
            for column, colour in (("val_natural", COLOURS[1]), ("val_robust", COLOURS[4])):
                values = [100 * float(row[column]) for row in history]
                name = column.removeprefix("val_") if seed == next(iter(runs)) else None
                axes.plot(epochs, values, color=colour, lw=1, alpha=0.8, label=name)
                axes.plot(epochs[chosen], values[chosen], "o", mfc="none", color=colour, ms=6)
        axes.set_title(method_label(method), fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("validation accuracy, %")
    panels[0][0].legend(frameon=False, fontsize=9, loc="lower right")
    _save(figure, path)


def ablation(rows: Sequence[Mapping[str, Any]], attack: str, path: Path) -> None:
    """Against lambda: accuracies; entropy and diversity; adversarial loss. Lines are means, dots runs."""
    lams = sorted({row["lam"] for row in rows})
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    groups = [
        ("test accuracy, %", {"natural": 100, attack: 100, "worst-case": 100}),
        ("of delta / eps", {"entropy": 1, "diversity": 1}),
        ("cross-entropy of samples", {"adversarial_loss": 1}),
    ]
    names = {"entropy": "entropy, nats a dimension", "diversity": "variance over samples"}
    colours = iter(COLOURS[1:])
    for axes, (label, columns) in zip(panels, groups, strict=True):
        for column, scale in columns.items():
            colour = next(colours)
            runs = [[scale * row[column] for row in rows if row["lam"] == lam] for lam in lams]
            axes.plot([np.mean(r) for r in runs], "-s", ms=4, color=colour, label=names.get(column, column))
            for x, values in enumerate(runs):
                axes.plot([x] * len(values), values, ".", ms=5, color=colour, alpha=0.4)
        axes.set_xticks(range(len(lams)), [f"{lam:g}" for lam in lams])
        axes.set_xlabel("lambda")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if len(columns) > 1:
            axes.legend(frameon=False, fontsize=9)
    seeds = len({row["seed"] for row in rows})
    figure.suptitle(f"ADT_EXP against lambda: lines are means over {seeds} seeds, dots single runs", fontsize=10)
    _save(figure, path)


def degeneracy(
    widths: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, Any]], attack: str, steps: int, path: Path
) -> None:
    """Width and loss of distributions against inner steps, one line a lambda; accuracies of lambda = 0 and AT_PGD."""
    figure, (width, loss, accuracy) = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for place, lam in enumerate(sorted({row["lam"] for row in widths})):
        rows = [row for row in widths if row["lam"] == lam]
        counts = sorted({row["steps"] for row in rows})
        for axes, column in ((width, "deviation"), (loss, "loss")):
            means = [np.mean([row[column] for row in rows if row["steps"] == count]) for count in counts]
            axes.plot(counts, means, "-s", ms=4, color=COLOURS[place + 1], label=f"lambda {lam:g}")
            dots = [(row["steps"], row[column]) for row in rows]
            axes.plot(*zip(*dots, strict=True), ".", ms=5, color=COLOURS[place + 1], alpha=0.4)
    width.set_ylabel("deviation of samples, delta / eps")
    width.set_ylim(bottom=0)
    loss.set_ylabel("cross-entropy of samples")
    loss.axhline(np.mean([row["pgd_loss"] for row in widths]), color="black", ls="--", lw=1, label="PGD's last iterate")
    for axes in (width, loss):
        axes.axvline(steps, color="grey", ls=":", lw=1, label="T of the training")
        axes.set_xscale("log")
        axes.set_xticks(counts, counts)
        axes.minorticks_off()
        axes.set_xlabel("inner steps")
    loss.legend(frameon=False, fontsize=9)
    names = ["natural", attack, "worst-case"]
    for place, (method, label) in enumerate((("at_pgd", "AT_PGD"), ("adt_exp", "ADT_EXP, lambda 0"))):
        runs = [[100 * row[name] for row in table if row["method"] == method] for name in names]
        at = np.arange(len(names)) + 0.2 * place - 0.1
        accuracy.plot(at, [np.mean(values) for values in runs], "s", ms=5, color=COLOURS[place], label=label)
        for x, values in zip(at, runs, strict=True):
            accuracy.plot([x] * len(values), values, ".", ms=5, color=COLOURS[place], alpha=0.4)
    accuracy.set_xticks(range(len(names)), names)
    accuracy.set_ylabel("test accuracy, %")
    accuracy.legend(frameon=False, fontsize=9)
    for axes in (width, loss, accuracy):
        axes.grid(alpha=0.3)
    seeds = len({row["seed"] for row in table})
    figure.suptitle(f"Without entropy: lines and squares are means over {seeds} seeds, dots single runs", fontsize=10)
    _save(figure, path)


def landscape(axis: np.ndarray, means: Mapping[str, np.ndarray], images: int, seed: int, path: Path) -> None:
    """Mean loss surfaces as contours, one panel a method, on one colour scale."""
    figure, panels = pyplot.subplots(
        1, len(means), figsize=(3.1 * len(means) + 0.6, 4.0), sharey=True, squeeze=False, layout="constrained"
    )
    levels = MaxNLocator(20).tick_values(0, max(surface.max() for surface in means.values()))
    for axes, (method, surface) in zip(panels[0], means.items(), strict=True):
        # The surface's first axis is the gradient direction; it goes on the horizontal axis.
        filled = axes.contourf(axis, axis, surface.T, levels=levels, cmap="viridis")
        axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="white", lw=0.8, ls="--")
        axes.set_title(method_label(method), fontsize=10)
        axes.set_xlabel("gradient sign, eps")
        axes.set_aspect("equal")
    panels[0][0].set_ylabel("orthogonal random signs, eps")
    figure.colorbar(filled, ax=panels, label="cross-entropy", shrink=0.85, ticks=levels[::4])
    figure.suptitle(f"Mean over {images} test images, seed {seed}; dashed: one eps along each axis", fontsize=10)
    _save(figure, path)


def health(radii: Mapping[tuple[str, int], Mapping[str, float]], found: Mapping[str, Any], path: Path) -> None:
    """Accuracy against the radius, a line a run, and the table of checks: which failed where."""
    figure, (curves, table) = pyplot.subplots(1, 2, figsize=(12, 4.6), width_ratios=[1, 1.5], layout="constrained")
    methods = list(found["cells"])
    for (method, seed), curve in radii.items():
        first = seed == min(s for m, s in radii if m == method)
        curves.plot(
            [float(radius) for radius in curve],
            [100 * accuracy for accuracy in curve.values()],
            "-o",
            ms=3,
            lw=1,
            color=COLOURS[methods.index(method) % len(COLOURS)],
            label=method_label(method) if first else None,
        )
    curves.set_xscale("log", base=2)
    curves.xaxis.set_major_formatter("{x:g}")
    curves.set_xlabel("radius of the set, eps")
    curves.set_ylabel("accuracy under PGD, %")
    curves.grid(alpha=0.3)
    curves.legend(frameon=False, fontsize=9)
    _checks(table, found)
    _save(figure, path)


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


def transfer(
    accuracies: np.ndarray, attacks: Sequence[str], sources: Sequence[str], targets: Sequence[str], path: Path
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
    figure.suptitle("The column's model under attacks made with the row's; framed: with itself", fontsize=10)
    _save(figure, path)


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


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _run_label(name: str) -> str:
    """METHOD-SEED for people."""
    method, _, seed = name.rpartition("-")
    return f"{method_label(method)} {seed}"


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    write_bytes(path, buffer.getvalue())
