"""AT_PGD: the Dirac adversary of adversarial training (Madry et al. 2018)."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipeline.adversaries.base import Adversary, Samples
from pipeline.ascent import ascend, frozen
from pipeline.losses import cross_entropy
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import ProjectedGradient as Settings


class ProjectedGradient(Adversary):
    """The last iterate of PGD on the cross-entropy from a random start."""

    settings: "Settings"

    @property
    def gradient_evaluations(self) -> int:
        """One a step."""
        return self.settings.steps

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """One adversarial example an image."""
        with frozen(model, self.inner) as fast:
            images = ascend(
                fast,
                x,
                labels,
                self.perturbations.start(x, noise),
                loss=cross_entropy,
                perturbations=self.perturbations,
                steps=self.settings.steps,
                step_size=self.settings.step_size,
            )
        return Samples(images)
