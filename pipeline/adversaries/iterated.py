"""What adversaries share that take projected steps along a gradient: PGD, TRADES, FeaScatter."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipeline.adversaries.base import Adversary
from pipeline.ascent import Ascent, Loss

if TYPE_CHECKING:
    from pipeline.params import FeatureScatter, ProjectedGradient, Trades


class Iterated(Adversary):
    """`steps` steps of length `step_size` on a loss of the subclass's choice."""

    settings: "ProjectedGradient | Trades | FeatureScatter"

    @property
    def gradient_evaluations(self) -> int:
        """One a step."""
        return self.settings.steps

    def climb(self, fast: nn.Module, x: Tensor, labels: Tensor, start: Tensor, loss: Loss) -> Tensor:
        """The last images from the perturbation `start`; `fast` is the frozen model."""
        s = self.settings
        return Ascent(loss, self.perturbations, s.steps, s.step_size).last(fast, x, labels, start)
