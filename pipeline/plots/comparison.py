"""The comparison of methods: accuracies, cost, learning curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import EngFormatter, LogLocator

from pipeline.labels import method_label
from pipeline.plots.style import COLOURS, method_colour, method_marker, one_panel, save


def accuracies(table: Mapping[str, Any], path: Path) -> None:
    """Accuracy under every attack: a marker and deviation bar a method, a faint dot a run."""
    metrics, methods = table["metrics"], table["methods"]
    figure, axes = one_panel(max(6, len(metrics) + 0.5), 4.2)
    width = 0.8 / len(methods)
    for place, (method, summary) in enumerate(methods.items()):
        at = np.arange(len(metrics)) + (place - (len(methods) - 1) / 2) * width
        colour = method_colour(method)
        means = [summary[m]["mean"] for m in metrics]
        spreads = [summary[m]["std"] or 0 for m in metrics]
        axes.errorbar(at, means, spreads, fmt="s", ms=5, capsize=3, color=colour, label=method_label(method))
        for x, metric in zip(at, metrics, strict=True):
            runs = list(summary[metric]["runs"].values())
            axes.plot([x] * len(runs), runs, ".", ms=5, color=colour, alpha=0.35)
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set_ylabel(f"accuracy, %\n{_images(table)}")
    axes.grid(axis="y", alpha=0.3)
    bars = ", bars ± sample standard deviation" if len(table["seeds"]) >= 3 else ""
    axes.set_title(f"Mean over {len(table['seeds'])} seeds{bars}, dots single runs", fontsize=10)
    axes.legend(frameon=False, ncols=len(methods), fontsize=9, loc="upper right")
    save(figure, path)


def tradeoff(table: Mapping[str, Any], path: Path) -> None:
    """Robust (worst-case) accuracy against the cost of training, and against natural accuracy: a point a run.

    Open markers are means over seeds. Cost: gradient evaluations of the whole training, on a logarithmic axis.
    """
    figure, (cost, natural) = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for method, summary in table["methods"].items():
        colour, marker = method_colour(method), method_marker(method)
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
    natural.set_xlabel(f"natural accuracy, %\n{_images(table)}")
    cost.set_ylabel("accuracy under all attacks at once, %")
    for axes in (cost, natural):
        axes.grid(alpha=0.3)
    figure.suptitle("Filled: single runs; open: mean over seeds", fontsize=10)
    figure.legend(*cost.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside right upper")
    save(figure, path)


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
    save(figure, path)


def _images(table: Mapping[str, Any]) -> str:
    return f"{table['test_examples']} test images of {table['data']}"
