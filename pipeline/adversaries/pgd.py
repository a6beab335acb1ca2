"""AT_PGD: the Dirac adversary of adversarial training (Madry et al. 2018)."""

from torch import Tensor, nn

from pipeline.adversaries.base import Samples
from pipeline.adversaries.iterated import Iterated
from pipeline.ascent import frozen
from pipeline.losses import cross_entropy
from pipeline.seeding import Noise


class ProjectedGradient(Iterated):
    """The last iterate of PGD on the cross-entropy from a random start."""

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """One adversarial example an image."""
        with frozen(model, self.inner) as fast:
            return Samples(self.climb(fast, x, labels, self.perturbations.start(x, noise), cross_entropy))
