"""Loss surfaces."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

from pipeline.labels import method_label
from pipeline.plots.style import save


def draw(axis: np.ndarray, means: Mapping[str, np.ndarray], images: int, seed: int, path: Path) -> None:
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
    save(figure, path)
