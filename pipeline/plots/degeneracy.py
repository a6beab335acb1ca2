"""ADT_EXP without entropy beside AT_PGD."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot

from pipeline.plots.style import COLOURS, save


def draw(
    data: str,
    widths: Sequence[Mapping[str, Any]],
    table: Sequence[Mapping[str, Any]],
    attack: str,
    steps: int,
    path: Path,
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
    figure.suptitle(
        f"{data}, without entropy: lines and squares are means over {seeds} seeds, dots single runs", fontsize=10
    )
    save(figure, path)
