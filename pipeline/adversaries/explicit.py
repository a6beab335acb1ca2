"""ADT_EXP: an explicit distribution for each image, found by an inner optimisation."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline.adversaries.base import Adversary, Samples
from pipeline.adversaries.entropy import squashed_gaussian
from pipeline.ascent import frozen
from pipeline.losses import cross_entropy
from pipeline.perturbation import PerturbationSet, onto_images
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Explicit as Settings


class Explicit(Adversary):
    """p(delta) = squash(mu + sigma r), r ~ N(0, I), sigma = softplus(rho), found per image.

    The inner loop climbs the Monte-Carlo objective of eq. (10),
    (1/k) sum_s [ L(f(x + delta_s), y) + lam * h(delta_s) ], h the entropy per dimension,
    for T steps with Adam at betas (0, 0), which is inner_lr * g / (|g| + 1e-8). The training
    sample is a fresh draw from the distribution found.

    `accumulate`: the released code never zeroes the gradients of (mu, rho), so g is
    the sum over all steps so far; False gives each step its own gradient.
    """

    settings: "Settings"

    def __init__(self, settings: "Settings", perturbations: PerturbationSet, channels: int, size: int) -> None:
        super().__init__(settings, perturbations, channels, size)
        self.gradient_evaluations = settings.steps * settings.samples

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """One sample an image from the distribution after T steps."""
        mean, raw_scale = self.fit(model, x, labels, noise)
        draw = noise.normal(*x.shape[1:], draw=self.settings.steps)
        delta, entropy = sample(self.perturbations, mean, raw_scale, draw)
        return Samples(onto_images(x, delta), stats={"entropy": entropy.mean()})

    def fit(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The parameters (mu, rho) of every image's distribution, each (N, C, H, W)."""
        s = self.settings
        mean = torch.zeros_like(x)
        raw_scale = torch.full_like(x, s.initial_rho)
        total = (torch.zeros_like(x), torch.zeros_like(x))
        with frozen(model) as fast:
            for step in range(s.steps):
                draws = noise.normal(s.samples, *x.shape[1:], draw=step)
                gradients = self._gradients(fast, x, labels, mean, raw_scale, draws)
                if s.accumulate:
                    gradients = tuple(t + g for t, g in zip(total, gradients, strict=True))
                    total = gradients
                mean, raw_scale = (
                    value + s.inner_lr * g / (g.abs() + 1e-8)
                    for value, g in zip((mean, raw_scale), gradients, strict=True)
                )
        return mean, raw_scale

    def _gradients(
        self, model: nn.Module, x: Tensor, labels: Tensor, mean: Tensor, raw_scale: Tensor, draws: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradient of the objective with respect to (mu, rho); draws is (N, k, C, H, W).

        All k samples share one forward pass of N k images.
        """
        k = draws.shape[1]
        mean, raw_scale = mean.requires_grad_(), raw_scale.requires_grad_()
        with torch.enable_grad():
            delta, entropy = sample(
                self.perturbations,
                mean.repeat_interleave(k, 0),
                raw_scale.repeat_interleave(k, 0),
                draws.flatten(0, 1),
            )
            images = onto_images(x.repeat_interleave(k, 0), delta)
            loss = cross_entropy(model(images), labels.repeat_interleave(k))
            objective = (loss + self.settings.lam * entropy).sum() / k
        gradients = torch.autograd.grad(objective, (mean, raw_scale))
        mean.requires_grad_(False)
        raw_scale.requires_grad_(False)
        return gradients


def sample(perturbations: PerturbationSet, mean: Tensor, raw_scale: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """delta = squash(mean + softplus(raw_scale) * draw) and its entropy term per row (N,)."""
    sigma = softplus(raw_scale)
    delta, log_det = perturbations.squash(mean + sigma * draw)
    return delta, squashed_gaussian(draw, sigma, log_det, perturbations.eps)
