"""Loss surfaces, on the mean and image by image, and the numbers of curvature beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from pipeline.comparison.statistics import FEWEST
from pipeline.labels import method_label
from pipeline.plots.style import method_colour, method_marker, save

_ACROSS = 4  # panels a row
GRADIENT, RANDOM = "sign of own gradient, eps", "orthogonal random signs, eps"
# The columns of curvature.csv that have a panel, and their axes.
PANELS = {
    "largest_eigenvalue": "largest eigenvalue of the\ninput Hessian, nats / range²",
    "linearity_error": "local linearity error, nats",
    "loss_range": "range of the loss\nin the set, nats",
}
Surfaces = Mapping[str, np.ndarray]  # a method: losses (seeds, images, P, P), the first grid axis along the gradient


@dataclass(frozen=True)
class Shown:
    """The images of the figure of single ones: pixels (N, C, H, W) in [0, 1], labels, indices in the data set."""

    pixels: np.ndarray
    labels: Sequence[int]
    index: Sequence[int]


def draw(data: str, axis: np.ndarray, surfaces: Surfaces, seeds: Sequence[int], clip: bool, path: Path) -> None:
    """Surfaces averaged over images and seeds as contours, one panel a method, on one colour scale."""
    means = {method: losses.mean((0, 1)) for method, losses in surfaces.items()}
    rows, columns = -(-len(means) // _ACROSS), min(_ACROSS, len(means))
    size = (max(5.5, 3.1 * columns + 0.6), 3.3 * rows + 0.9)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    levels = _levels(means.values())
    for axes, (method, mean) in zip(grid.flat, means.items(), strict=False):
        filled = _contours(axes, axis, mean, levels)
        axes.set_title(method_label(method) + _seed_deviation(surfaces[method]), fontsize=10)
        axes.set_xlabel(GRADIENT)
        axes.tick_params(labelbottom=True)
    for axes in list(grid.flat)[len(means) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(RANDOM)
    figure.colorbar(filled, ax=grid, label="cross-entropy, nats", shrink=0.85, ticks=levels[::4])
    figure.suptitle(
        f"{_averaged(surfaces, seeds)}{_clipped(clip)}\n{data}; dashed: one eps along each axis", fontsize=10
    )
    save(figure, path)


def draw_in_space(
    data: str, axis: np.ndarray, surfaces: Surfaces, seeds: Sequence[int], clip: bool, path: Path
) -> None:
    """The same averages as surfaces in space: one panel a method, equal axes and colour scale."""
    means = {method: losses.mean((0, 1)) for method, losses in surfaces.items()}
    columns = min(2, len(means))
    rows = -(-len(means) // columns)
    # Axes in space do not tell a layout engine how far their labels reach, so the margins are set here, in inches.
    width, height = 4.4 * columns + 1.8, 4.0 * rows + 1.1
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(width, height), squeeze=False, subplot_kw={"projection": "3d"}
    )
    figure.subplots_adjust(0.4 / width, 0.5 / height, 1 - 1.6 / width, 1 - 1.0 / height, wspace=0.1, hspace=0.3)
    levels = _levels(means.values())
    for axes, (method, mean) in zip(grid.flat, means.items(), strict=False):
        drawn = _in_space(axes, axis, mean, levels)
        axes.set_title(method_label(method) + _seed_deviation(surfaces[method]), fontsize=10)
    for axes in list(grid.flat)[len(means) :]:
        axes.set_axis_off()
    bar = figure.add_axes((1 - 1.0 / width, 0.25, 0.22 / width, 0.5))
    figure.colorbar(drawn, cax=bar, label="cross-entropy, nats")
    figure.suptitle(f"{_averaged(surfaces, seeds)}{_clipped(clip)}\n{data}", fontsize=10, y=1 - 0.2 / height, va="top")
    save(figure, path)


def draw_images(data: str, axis: np.ndarray, losses: Surfaces, shown: Shown, seed: int, clip: bool, path: Path) -> None:
    """Surfaces of single images, losses (images, P, P) a method: a row an image, a column a method, one scale."""
    rows, columns = len(shown.labels), len(losses) + 1
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(max(5.5, 1.9 * columns + 1.2), 1.9 * rows + 1.1), squeeze=False, layout="constrained"
    )
    levels = _levels(losses.values())
    for row, panels in enumerate(grid):
        _picture(panels[0], shown, row)
        for axes, (method, single) in zip(panels[1:], losses.items(), strict=True):
            filled = _contours(axes, axis, single[row], levels)
            axes.label_outer()
            if row == 0:
                axes.set_title(method_label(method), fontsize=10)
        panels[1].tick_params(labelleft=True)
    figure.colorbar(filled, ax=grid, label="cross-entropy, nats", shrink=0.85, ticks=levels[::4])
    figure.supxlabel(f"horizontal: {GRADIENT}; vertical: {RANDOM}", fontsize=9)
    figure.suptitle(
        f"Single test images, seed {seed}{_clipped(clip)}\n{data}; dashed: one eps along each axis", fontsize=10
    )
    save(figure, path)


def draw_curvature(data: str, table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The rows of curvature.csv: a panel a quantity, a column a method, a dot a seed (its mean over images)."""
    methods = list(dict.fromkeys(row["method"] for row in table))
    counts = [sum(row["method"] == method for row in table) for method in methods]
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(3.4 * len(PANELS), 3.6), layout="constrained")
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        for place, method in enumerate(methods):
            values = [row[name] for row in table if row["method"] == method]
            colour = method_colour(method)
            spread = np.std(values, ddof=1) if len(values) >= FEWEST else None
            axes.errorbar(
                place, np.mean(values), spread, fmt=method_marker(method), color=colour, ms=7, capsize=4, lw=1.5
            )
            axes.plot(place + np.linspace(0.15, 0.3, len(values)), values, ".", ms=5, color=colour, alpha=0.6)
        axes.set_xticks(range(len(methods)), [method_label(m) for m in methods], rotation=30, ha="right", fontsize=9)
        axes.set_xlim(-0.5, len(methods) - 0.5)
        low, high = axes.get_ylim()
        axes.set_ylim(min(0, low), high + 0.05 * abs(high))
        axes.set_ylabel(label)
        axes.grid(alpha=0.3, axis="y")
    said = ", bars: sample standard deviation over seeds" if max(counts) >= FEWEST else ""
    images = table[0]["images"]
    figure.suptitle(
        f"{data}, means over {images} test images: dots a seed each, large marks their mean{said}", fontsize=10
    )
    save(figure, path)


def _contours(axes: Axes, axis: np.ndarray, losses: np.ndarray, levels: np.ndarray) -> QuadContourSet:
    """Filled contours with the gradient direction, the first axis of `losses`, on the horizontal axis."""
    filled = axes.contourf(axis, axis, losses.T, levels=levels, cmap="viridis")
    axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="white", lw=0.8, ls="--")
    axes.set_aspect("equal")
    return filled


def _in_space(axes: Axes, axis: np.ndarray, losses: np.ndarray, levels: np.ndarray) -> Poly3DCollection:
    """A surface over both directions, from the first to the last of `levels`."""
    first, second = np.meshgrid(axis, axis, indexing="ij")
    count = len(axis)
    drawn = axes.plot_surface(
        first,
        second,
        losses,
        cmap="viridis",
        vmin=levels[0],
        vmax=levels[-1],
        rcount=count,
        ccount=count,
        lw=0,
        antialiased=False,
    )
    axes.set_zlim(levels[0], levels[-1])
    axes.view_init(elev=28, azim=-125)
    for side, label in ((axes.xaxis, "own gradient's sign, eps"), (axes.yaxis, "random signs, eps")):
        side.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        side.set_label_text(label, fontsize=9)
    axes.set_zlabel("cross-entropy, nats", fontsize=9)
    axes.tick_params(labelsize=8)
    return drawn


def _picture(axes: Axes, shown: Shown, row: int) -> None:
    """One of the images, with its index and label."""
    pixels = shown.pixels[row].transpose(1, 2, 0)
    axes.imshow(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"image {shown.index[row]}, label {shown.labels[row]}", fontsize=9)


def _levels(surfaces: Any) -> np.ndarray:
    """Contour levels from 0 that hold every loss of all surfaces."""
    return MaxNLocator(20).tick_values(0, max(losses.max() for losses in surfaces))


def _seed_deviation(losses: np.ndarray) -> str:
    """The second line of a panel's title: how far seeds differ where they differ most."""
    if len(losses) < FEWEST:
        return ""
    return f"\nseeds deviate by {losses.mean(1).std(0, ddof=1).max():.2g} at most"


def _averaged(surfaces: Surfaces, seeds: Sequence[int]) -> str:
    images = next(iter(surfaces.values())).shape[1]
    return f"Mean over {images} test images and seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _clipped(clip: bool) -> str:
    return "; points clipped to [0, 1]" if clip else "; points not clipped"
