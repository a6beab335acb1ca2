"""The lambda study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot

from pipeline.plots.style import COLOURS, save


def draw(rows: Sequence[Mapping[str, Any]], attack: str, path: Path) -> None:
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
    save(figure, path)
