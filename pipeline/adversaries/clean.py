"""Standard training: no adversary at all."""

from torch import Tensor, nn

from pipeline.adversaries.base import Adversary, Samples
from pipeline.seeding import Noise


class Standard(Adversary):
    """The images themselves; every robustness table needs one undefended row.

    Its epoch is selected by natural accuracy: robust accuracy near 0 would select by chance.
    """

    gradient_evaluations = 0
    selects_by = "natural"

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """The images as they are."""
        return Samples(x)
