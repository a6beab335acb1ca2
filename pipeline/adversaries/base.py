"""The contract between the training loop and an adversary."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from pipeline.ascent import EVALUATING, Inner
from pipeline.parallel import ALONE, World
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Method


@dataclass
class Samples:
    """What an adversary hands to the training loop for one batch of N images.

    `x`: perturbed images (M N, C, H, W), the M of one image beside each other, in the
    perturbation set and in [0, 1]; they carry a graph where the adversary owns learnable
    parts. `penalty`: a scalar to add to the classifier's loss, so that one backward pass
    serves both players. `stats`: batch means for the history (detached scalars).
    """

    x: Tensor
    penalty: Tensor | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)


class Adversary(nn.Module, ABC):
    """Turns (model, x, y) into adversarial samples and, where it has one, an entropy term.

    A module, so that learnable parts (generator, encoder) travel with it.
    `gradient_evaluations` counts classifier passes (forward and backward) an example and
    step while samples are made, `training_evaluations` those of the classifier's own loss. `selects_by`:
    the validation accuracy, "robust" or "natural", that decides which epoch is kept; the other one breaks ties.
    `world`: the processes of which each sees an equal part of every batch; what is a mean over the batch is a mean
    over all of them.
    """

    gradient_evaluations: int
    training_evaluations: int = 1
    selects_by: str = "robust"
    world: World = ALONE

    def __init__(
        self, settings: "Method", perturbations: PerturbationSet, channels: int, size: int, inner: Inner = EVALUATING
    ) -> None:
        super().__init__()
        self.settings = settings
        self.perturbations = perturbations
        self.shape = (channels, size, size)
        self.inner = inner

    @abstractmethod
    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """Adversarial samples for images x (N, C, H, W) in [0, 1] with labels (N,) int64.

        Random numbers come from `noise` alone, a row an example. The model's mode
        and its parameters' requires_grad are as before on return.
        """

    def loss(
        self, model: nn.Module, samples: Samples, x: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """The scalar that the classifier descends, and its logits on `samples.x` (M N, K).

        Here the mean cross-entropy of the samples, with `smoothing` as the share of each
        target that is spread over all classes. The model is in training mode.
        """
        logits = at_least_single(model(samples.x))
        return cross_entropy(logits, repeat(labels, logits), label_smoothing=smoothing), logits

    def optimizer(self) -> Optimizer | None:
        """The optimiser of the adversary's own parts, stepped together with the classifier's."""
        return None

    def diagnose(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> dict[str, float]:
        """What the history records once an epoch on held-out images; nothing by default."""
        return {}


def at_least_single(values: Tensor) -> Tensor:
    """Values of a network that ran in bfloat16 as float32; wider ones as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def repeat(values: Tensor, samples: Tensor) -> Tensor:
    """Rows of `values` (N, ...) as often as `samples` (M N, ...) has some for each: (M N, ...)."""
    return values.repeat_interleave(len(samples) // len(values), 0)
