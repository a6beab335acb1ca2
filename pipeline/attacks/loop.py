"""Run an attack over a test set and take the verdicts."""

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.ascent import EVALUATING, Inner, frozen
from pipeline.attacks.catalogue import Perturb
from pipeline.data.store import Split
from pipeline.losses import margin
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Noise, Stream
from pipeline.verdicts import Column

TOLERANCE = 1e-6


def identity(model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise) -> Tensor:
    """The attack called `natural`: the images as they are."""
    return x


def run(
    attack: Perturb,
    model: nn.Module,
    examples: Split,
    perturbations: PerturbationSet,
    stream: Stream,
    batch_size: int,
    inner: Inner = EVALUATING,
) -> Column:
    """Attack every example and judge the attacked images themselves, in float32.

    Gradients run through the model with batch norm folded and in the precision of `inner`,
    verdicts through the model itself. Random starts belong to the example's index, so the result does not depend on
    `batch_size` beyond the rounding of batched arithmetic. An attack never mends an example: where
    it turns a misclassified image into one that holds, the image itself is judged. Raises
    `ValueError`, naming the example, where an attack leaves [0, 1] or its perturbation set by
    more than 1e-6.
    """
    parts = []
    with frozen(model, inner) as fast:
        for part in torch.arange(len(examples.x), device=examples.x.device).split(batch_size):
            x, labels, index = examples.x[part], examples.y[part], examples.index[part]
            attacked = attack(fast, x, labels, perturbations, stream.at(index))
            norm = perturbations.norm(attacked - x)
            _check(attacked, norm, perturbations.eps, index)
            with torch.no_grad():
                distance, natural = (margin(model(images).float(), labels) for images in (attacked, x))
            mended = (distance > 0) & ~(natural > 0)
            distance, norm = torch.where(mended, natural, distance), torch.where(mended, 0 * norm, norm)
            parts.append((distance.cpu().numpy(), norm.cpu().numpy()))
    margins, norms = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Column(broken=~(margins > 0), margin=margins, norm=norms)


def _check(attacked: Tensor, norm: Tensor, eps: float, index: Tensor) -> None:
    flat = attacked.flatten(1)
    outside = (flat.amin(1) < 0) | (flat.amax(1) > 1) | ~(norm <= eps + TOLERANCE)
    if outside.any():
        example = int(index[outside][0])
        raise ValueError(
            f"example {example}: the attacked image leaves [0, 1] or the perturbation set"
            f" (norm {float(norm[outside][0]):.7g}, allowed {eps:g})"
        )
