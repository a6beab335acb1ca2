"""ADT_EXP: an explicit distribution for each image, found by an inner optimisation."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline.adversaries.base import Adversary, Samples
from pipeline.adversaries.entropy import squashed_gaussian
from pipeline.ascent import frozen, input_gradient
from pipeline.losses import cross_entropy
from pipeline.perturbation import PerturbationSet, onto_images, pull_back
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Explicit as Settings

# Values that one pass of the inner loop takes at most, unless one sample of the batch has more: it bounds the
# memory of the graph. Five samples of 64 images of 3x32x32 just fit.
_PASS = 2**20


class Explicit(Adversary):
    """p(delta) = squash(mu + sigma r), r ~ N(0, I), sigma = softplus(rho), found per image.

    The inner loop climbs the Monte-Carlo objective of eq. (10),
    (1/k) sum_s [ L(f(x + delta_s), y) + lam * h(delta_s) ], h the entropy per dimension,
    for T steps with Adam at betas (0, 0), which is inner_lr * g / (|g| + damping). The
    training samples are fresh draws from the distribution found, `outer_samples` an image.

    `damping`: the released code differentiates the batch mean, summed over the k samples, which is
    k / N of the gradient here, and Adam adds 1e-8 to it: 1e-8 * 64 / 5 in our units at its
    batch size and k. On large images a part of the gradients is no larger, so it matters there.

    `accumulate`: the released code never zeroes the gradients of (mu, rho), so g is
    the sum over all steps so far; False gives each step its own gradient.
    """

    settings: "Settings"

    @property
    def gradient_evaluations(self) -> int:
        """T k."""
        return self.settings.steps * self.settings.samples

    @property
    def training_evaluations(self) -> int:
        """One a training sample."""
        return self.settings.outer_samples

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """`outer_samples` samples an image from the distribution after T steps."""
        mean, raw_scale = self.fit(model, x, labels, noise)
        images, entropy = self.draw(x, mean, raw_scale, noise)
        return Samples(images, stats={"entropy": entropy.mean()})

    def draw(self, x: Tensor, mean: Tensor, raw_scale: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """M = `outer_samples` perturbed images an image (M N, C, H, W), and the entropy term of each (M N,)."""
        count = self.settings.outer_samples
        draws = noise.normal(count, *x.shape[1:], draw=self.settings.steps)
        return spread(self.perturbations, x, mean, raw_scale, draws)

    def fit(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The parameters (mu, rho) of every image's distribution, each (N, C, H, W)."""
        s = self.settings
        mean = torch.zeros_like(x)
        raw_scale = torch.full_like(x, s.initial_rho)
        total = (torch.zeros_like(x), torch.zeros_like(x))
        with frozen(model, self.inner) as fast:
            for step in range(s.steps):
                draws = noise.normal(s.samples, *x.shape[1:], draw=step)
                gradients = self._gradients(fast, x, labels, mean, raw_scale, draws)
                if s.accumulate:
                    gradients = tuple(t + g for t, g in zip(total, gradients, strict=True))
                    total = gradients
                mean, raw_scale = (
                    value + s.inner_lr * g / (g.abs() + s.damping)
                    for value, g in zip((mean, raw_scale), gradients, strict=True)
                )
        return mean, raw_scale

    def _gradients(
        self, model: nn.Module, x: Tensor, labels: Tensor, mean: Tensor, raw_scale: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the objective with respect to (mu, rho); draws is (N, k, C, H, W).

        By the chain rule through u = mu + sigma r, so that only the network is differentiated
        automatically: dJ/dmu = mean_s dJ/du_s, dJ/dsigma = mean_s r_s dJ/du_s + lam / (d sigma).
        """
        weight = self.settings.lam / x[0].numel()
        sigma = softplus(raw_scale)
        by_mean, by_sigma = torch.zeros_like(x), weight / sigma
        for part in draws.split(self._group(x), 1):
            k = part.shape[1]
            images, targets = x.repeat_interleave(k, 0), labels.repeat_interleave(k)
            u = (mean[:, None] + sigma[:, None] * part).flatten(0, 1)
            climb = partial(delta_gradient, model, images, targets)
            by_u = pull_back(self.perturbations, u, climb, weight).view_as(part)
            by_mean += by_u.sum(1) / draws.shape[1]
            by_sigma += by_u.mul_(part).sum(1) / draws.shape[1]
        return by_mean, by_sigma * torch.sigmoid(raw_scale)

    def _group(self, x: Tensor) -> int:
        """How many samples of the whole batch share a pass; batch statistics are those of single samples."""
        return 1 if self.inner.batch_norm == "train" else max(1, _PASS // x.numel())


def delta_gradient(model: nn.Module, x: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
    """Gradient of each example's cross-entropy at clip(x + delta, 0, 1) with respect to delta; 0 where clipped."""
    moved = x + delta
    images = moved.clamp(0, 1)
    return input_gradient(model, images, labels, cross_entropy).mul_(images == moved)


def spread(
    perturbations: PerturbationSet, x: Tensor, mean: Tensor, raw_scale: Tensor, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """Perturbed images (N k, C, H, W) and their entropy terms (N k,) for draws (N, k, C, H, W)."""
    k = draws.shape[1]
    delta, entropy = sample(
        perturbations, mean.repeat_interleave(k, 0), raw_scale.repeat_interleave(k, 0), draws.flatten(0, 1)
    )
    return onto_images(x.repeat_interleave(k, 0), delta), entropy


def sample(perturbations: PerturbationSet, mean: Tensor, raw_scale: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """delta = squash(mean + softplus(raw_scale) * draw) and its entropy term per row (N,)."""
    sigma = softplus(raw_scale)
    delta, log_det = perturbations.squash(mean + sigma * draw)
    return delta, squashed_gaussian(draw, sigma, log_det, perturbations.eps)
