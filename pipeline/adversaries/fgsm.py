"""AT_FGSM: single-step adversarial training (Goodfellow et al. 2015; Kurakin et al. 2017)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as mean_cross_entropy

from pipeline.adversaries.base import Adversary, Samples, at_least_single
from pipeline.ascent import Ascent, frozen
from pipeline.losses import cross_entropy
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import FastGradientSign as Settings


class FastGradientSign(Adversary):
    """One step of length eps, and a loss shared between perturbed and clean images.

    loss = (1 - clean_weight) CE(x') + clean_weight CE(x). `target`: climb the loss of the
    "label", or descend that of the "least_likely" class, which does not leak the label.
    `random_start`: step from a random point of the set (Wong et al. 2020).
    """

    settings: "Settings"
    gradient_evaluations = 1

    @property
    def training_evaluations(self) -> int:
        """Clean images cost as much as perturbed ones."""
        return 2 if self.settings.clean_weight else 1

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """One perturbed image an image."""
        p = self.perturbations
        with frozen(model, self.inner) as fast:
            target, climb = labels, cross_entropy
            if self.settings.target == "least_likely":
                with torch.no_grad():
                    target, climb = fast(x).argmin(1), descend
            start = p.start(x, noise) if self.settings.random_start else torch.zeros_like(x)
            images = Ascent(climb, p, steps=1, step_size=p.eps).last(fast, x, target, start)
        return Samples(images)

    def loss(
        self, model: nn.Module, samples: Samples, x: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Perturbed and clean images share one pass, hence their batch statistics, as in Kurakin et al."""
        weight = self.settings.clean_weight
        if not weight:
            return super().loss(model, samples, x, labels, smoothing)
        logits, clean = at_least_single(model(torch.cat([samples.x, x]))).chunk(2)
        losses = [mean_cross_entropy(part, labels, label_smoothing=smoothing) for part in (logits, clean)]
        return (1 - weight) * losses[0] + weight * losses[1], logits


def descend(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the cross-entropy: climbing it makes `labels` likelier."""
    return -cross_entropy(logits, labels)
