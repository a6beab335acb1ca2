"""Attacks as compositions of a start, a loss, a step size and a memory of gradients."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.ascent import Loss, ascend
from pipeline.losses import carlini_wagner, cross_entropy
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Attack as Settings


@dataclass(frozen=True)
class Attack:
    """An iterated gradient attack; its verdict is taken on the last iterate, as released."""

    loss: Loss
    steps: int
    step_size: float
    random_start: bool
    momentum: float | None = None

    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise
    ) -> Tensor:
        """Attacked images for x (N, C, H, W) in [0, 1]; the caller freezes the model."""
        start = perturbations.start(x, noise) if self.random_start else torch.zeros_like(x)
        return ascend(
            model,
            x,
            labels,
            start,
            loss=self.loss,
            perturbations=perturbations,
            steps=self.steps,
            step_size=self.step_size,
            momentum=self.momentum,
        )


def compose(settings: "Settings", eps: float) -> Attack:
    """The attack that `settings` describes, in a set of radius `eps`.

    fgsm: one step of size eps from the image itself (Goodfellow et al. 2015). pgd:
    steps on the cross-entropy from a random start (Madry et al. 2018). mim: the same
    with a running gradient (Dong et al. 2018). cw: the same on the C&W margin loss.
    Random starts for the last three, as in ADT's released evaluation.
    """
    if settings.family == "fgsm":
        return Attack(cross_entropy, steps=1, step_size=eps, random_start=False)
    loss: Loss = cross_entropy
    if settings.family == "cw":
        loss = partial(carlini_wagner, confidence=settings.confidence)
    assert settings.step_size is not None
    return Attack(loss, settings.steps, settings.step_size, random_start=True, momentum=settings.momentum)
