"""The numbers of curvature for people and plots: a row a model, and a table of the methods."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.comparison.statistics import FEWEST, Summary

# The quantities that are compared, by the names they have for people.
QUANTITIES = {
    "largest_eigenvalue": "largest eigenvalue",
    "linearity_error": "local linearity error",
    "loss_range": "range of the loss",
}
COLUMNS = [
    *("method", "seed", "images"),
    *(column for name in QUANTITIES for column in (name, f"{name}_std")),
    *("converged", "residual"),
]
Measured = Mapping[tuple[str, int], Mapping[str, np.ndarray]]  # of a (method, seed): arrays (images,) by name


def rows(measured: Measured, tolerance: float) -> list[dict[str, Any]]:
    """A row a model: mean and sample standard deviation over images (none for one image) of every quantity.

    `converged`: the share of images whose eigenvalue's residual is at most `tolerance`; `residual`: the largest one.
    """
    table = []
    for (method, seed), arrays in measured.items():
        residual = np.asarray(arrays["residual"], np.float64)
        row: dict[str, Any] = {"method": method, "seed": seed, "images": len(residual)}
        for name in QUANTITIES:
            values = np.asarray(arrays[name], np.float64)
            row |= {name: float(values.mean()), f"{name}_std": _deviation(values)}
        table.append(row | {"converged": float((residual <= tolerance).mean()), "residual": float(residual.max())})
    return table


def markdown(table: list[dict[str, Any]], *, where: str, clip: bool, tolerance: float, iterations: int) -> str:
    """The rows of `rows` a method: mean over images and seeds, deviation over seeds, deviation over images.

    `where` names data and perturbation set. The deviation over images is the mean of the models' own.
    """
    seeds = sorted({row["seed"] for row in table})
    spread = "± sample standard deviation over seeds of the means over images" if len(seeds) >= FEWEST else ""
    body = [[method, *(_cell(table, method, name) for name in QUANTITIES)] for method in _methods(table)]
    header = ["method", *QUANTITIES.values()]
    lines = ["| " + " | ".join(line) + " |" for line in (header, ["---", *["---:"] * len(QUANTITIES)], *body)]
    points = "clipped to [0, 1]" if clip else "not clipped to [0, 1]"
    done, worst = np.mean([row["converged"] for row in table]), max(row["residual"] for row in table)
    return "\n".join(
        [
            f"# Curvature of the loss: {where}",
            "",
            f"Of the cross-entropy (nats) of single images: mean over {table[0]['images']} test images and seeds"
            f" {', '.join(map(str, seeds))}{', ' if spread else ''}{spread} (in brackets: sample standard deviation"
            " over images, mean over seeds). They say how a model's loss is curved, not how robust it is.",
            "",
            *lines,
            "",
            "- Largest eigenvalue of the Hessian with respect to the image, in nats per square of the image range, at"
            " the image itself. Power iteration: the residual is at most"
            f" {tolerance:g} of the largest magnitude for {100 * done:.4g} % of the images (the largest residual is"
            f" {worst:.2g}; at most {iterations} products).",
            "- Local linearity error: largest |L(x + d) - L(x) - d' grad L(x)| found in the set, in nats.",
            f"- Range of the loss: highest minus lowest found in the set, in nats. Points are {points}. Both are"
            " searched for by PGD, so they are lower bounds.",
            "",
        ]
    )


def _methods(table: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in table))


def _cell(table: list[dict[str, Any]], method: str, name: str) -> str:
    own = [row for row in table if row["method"] == method]
    over_seeds = Summary.of({row["seed"]: row[name] for row in own})
    over_images = [row[f"{name}_std"] for row in own if row[f"{name}_std"] is not None]
    spread = "" if over_seeds.std is None else f" ± {over_seeds.std:.3f}"
    return f"{over_seeds.mean:.3f}{spread}" + (f" ({np.mean(over_images):.3f})" if over_images else "")


def _deviation(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None
