"""The contract between the training loop and an adversary."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Method


@dataclass
class Samples:
    """What an adversary hands to the training loop for one batch.

    `x`: perturbed images (N, C, H, W), in the perturbation set and in [0, 1]; they
    carry a graph where the adversary owns learnable parts. `penalty`: a scalar to
    add to the classifier's loss, so that one backward pass serves both players.
    `stats`: batch means for the history (detached scalars).
    """

    x: Tensor
    penalty: Tensor | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)


class Adversary(nn.Module, ABC):
    """Turns (model, x, y) into adversarial samples and, where it has one, an entropy term.

    A module, so that learnable parts (generator, encoder) travel with it.
    `gradient_evaluations` counts classifier passes (forward and backward) an example
    and step beyond the training step's own one.
    """

    gradient_evaluations: int

    def __init__(self, settings: "Method", perturbations: PerturbationSet, channels: int, size: int) -> None:
        super().__init__()
        self.settings = settings
        self.perturbations = perturbations
        self.shape = (channels, size, size)

    @abstractmethod
    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """Adversarial samples for images x (N, C, H, W) in [0, 1] with labels (N,) int64.

        Random numbers come from `noise` alone, a row an example. The model's mode
        and its parameters' requires_grad are as before on return.
        """

    def optimizer(self) -> Optimizer | None:
        """The optimiser of the adversary's own parts, stepped together with the classifier's."""
        return None
