"""FeaScatter: perturb a batch away from itself as a whole (Zhang, Wang, NeurIPS 2019). A known failure mode.

Under attacks made for it, its robust accuracy falls far below what PGD suggests: a
pipeline that judges defences needs it as a positive control.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, log_softmax, one_hot

from pipeline.adversaries.base import Samples, at_least_single
from pipeline.adversaries.iterated import Iterated
from pipeline.ascent import frozen
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import FeatureScatter as Settings

_ENOUGH = 0.1  # released: stop when the row potentials move less than this in sum
_TINY = 1e-6  # released: inside the logarithm of each sum of exponentials


class FeatureScatter(Iterated):
    """Climb the optimal-transport distance between the logits of the clean and of the perturbed batch.

    Cost: max(0, 1 - cosine) between logits, as released (the paper speaks of features).
    The classifier descends the cross-entropy to labels that lose `label_smoothing` of
    their probability to the other classes. Examples of a batch depend on each other.
    """

    settings: "Settings"

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """One scattered image an image, from a random start."""
        with frozen(model, self.inner) as fast:
            with torch.no_grad():
                clean = fast(x)
            start = self.perturbations.start(x, noise)
            images = self.climb(fast, x, labels, start, lambda logits, _: self._distance(clean, logits))
        return Samples(images)

    def loss(
        self, model: nn.Module, samples: Samples, x: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy to the method's own smoothed labels; `smoothing` of the loop does not apply."""
        logits = at_least_single(model(samples.x))
        classes, moved = logits.shape[1], self.settings.label_smoothing
        targets = one_hot(labels, classes) * (1 - moved - moved / (classes - 1)) + moved / (classes - 1)
        return -(targets * log_softmax(logits, 1)).sum(1).mean(), logits

    def _distance(self, clean: Tensor, logits: Tensor) -> Tensor:
        cost = (1 - cosine_similarity(clean[:, None], logits[None], dim=2, eps=1e-6)).clamp_min(0)
        plan = transport(cost, self.settings.regularization, self.settings.iterations)
        return ((plan if self.settings.plan_gradient else plan.detach()) * cost).sum()


def transport(cost: Tensor, regularization: float, iterations: int) -> Tensor:
    """Sinkhorn's plan between uniform weights for a cost (m, n): (m, n), rows and columns sum to about 1/m, 1/n.

    Written as the released code iterates (github Haichao-Zhang/FeatureScatter, 77e9140,
    ot.py): potentials in the log domain, an early stop, sums of exponentials kept above 1e-6.
    """
    m, n = cost.shape
    row, column = cost.new_zeros(m), cost.new_zeros(n)

    def kernel() -> Tensor:
        return (row[:, None] + column[None] - cost) / regularization

    for _ in range(iterations):
        before = row
        row = regularization * (-math.log(m) - (kernel().exp().sum(1) + _TINY).log()) + row
        column = regularization * (-math.log(n) - (kernel().exp().sum(0) + _TINY).log()) + column
        if (row - before).abs().sum() < _ENOUGH:
            break
    return kernel().exp()
