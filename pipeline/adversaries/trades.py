"""TRADES: natural loss plus the divergence of perturbed from clean predictions (Zhang et al., ICML 2019)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from pipeline.adversaries.base import Samples, at_least_single
from pipeline.adversaries.iterated import Iterated
from pipeline.ascent import frozen
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Trades as Settings


class Trades(Iterated):
    """min CE(f(x), y) + beta max_delta KL(f(x) || f(x + delta)), the maximum by projected ascent.

    The start is a normal of deviation `start_scale` around the image. As in the released
    code (github yaodongyu/TRADES, 6e8e11b) both arguments of the divergence carry
    gradients in the outer step, and clean and perturbed images are separate passes (the
    released code repeats the clean one, which only moves the running statistics once more).
    """

    settings: "Settings"
    training_evaluations = 2

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """The images whose predictions have moved furthest."""
        start = self.perturbations.project(self.settings.start_scale * noise.normal(*x.shape[1:]))
        with frozen(model, self.inner) as fast:
            with torch.no_grad():
                clean = softmax(fast(x), 1)
            images = self.climb(fast, x, labels, start, lambda logits, _: divergence(logits, clean))
        return Samples(images)

    def loss(
        self, model: nn.Module, samples: Samples, x: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """CE on clean images + beta KL; the logits are those of the perturbed images."""
        clean = at_least_single(model(x))
        logits = at_least_single(model(samples.x))
        natural = cross_entropy(clean, labels, label_smoothing=smoothing)
        return natural + self.settings.beta * divergence(logits, softmax(clean, 1)).mean(), logits


def divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    """KL(probabilities || softmax(logits)), one value a row: logits and probabilities (N, K)."""
    return kl_div(log_softmax(logits, 1), probabilities, reduction="none").sum(1)
