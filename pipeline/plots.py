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
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.files import write_bytes

LABELS = {
    "standard": "standard",
    "at_fgsm": "AT_FGSM",
    "at_pgd": "AT_PGD",
    "trades": "TRADES",
    "feature_scatter": "FeaScatter",
    "adt_exp": "ADT_EXP",
    "adt_exp_am": "ADT_EXP-AM",
    "adt_imp_am": "ADT_IMP-AM",
}
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
        axes.errorbar(at, means, spreads, fmt="s", ms=5, capsize=3, color=colour, label=_label(method))
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
        axes.set_title(_label(method), fontsize=10)
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
        axes.set_title(_label(method), fontsize=10)
        axes.set_xlabel("gradient sign, eps")
        axes.set_aspect("equal")
    panels[0][0].set_ylabel("orthogonal random signs, eps")
    figure.colorbar(filled, ax=panels, label="cross-entropy", shrink=0.85, ticks=levels[::4])
    figure.suptitle(f"Mean over {images} test images, seed {seed}; dashed: one eps along each axis", fontsize=10)
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _label(method: str) -> str:
    return LABELS.get(method, method)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    write_bytes(path, buffer.getvalue())
