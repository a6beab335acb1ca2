"""The explicit adversarial distribution of an image: its search, its samples and their entropy.

p(delta): delta = squash(u), u = mu + sigma r, r ~ N(0, I), sigma = softplus(rho), with a mean mu and a
raw scale rho a pixel. ADT_EXP trains on its samples, ADT_EXP-AM has a generator give (mu, rho), and
an attack draws from it. Entropies are in nats per dimension of delta / eps: dividing delta by eps only
shifts the entropy by log eps, and makes values comparable across radii: a uniform distribution over the
l-infinity set has log 2.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline.ascent import input_gradient
from pipeline.losses import cross_entropy
from pipeline.perturbation import PerturbationSet, onto_images, pull_back
from pipeline.seeding import Noise

# Values that one pass of the search takes at most, unless one sample of the batch has more: it bounds the
# memory of the graph. Five samples of 64 images of 3x32x32 just fit.
_PASS = 2**20


@dataclass(frozen=True)
class Search:
    """How (mu, rho) are found: `steps` steps up the Monte-Carlo objective of ADT's eq. (10).

    The objective is (1/k) sum_s [ L(f(x + delta_s), y) + lam * h(delta_s) ] with k = `samples` fresh
    draws a step and h the entropy per dimension. A step is Adam's with betas (0, 0), which is
    inner_lr * g / (|g| + damping), from mu = 0 and rho = `initial_rho`. The defaults are those of
    the released adt_exp.py.

    `accumulate`: the released code never zeroes the gradients of (mu, rho), so g is the sum over
    all steps so far; False gives each step its own gradient.

    `damping`: the released code differentiates the batch mean, summed over the k samples, which is
    k / N of the gradient here, and Adam adds 1e-8 to it: 1e-8 * 64 / 5 in our units at its
    batch size and k. On large images a part of the gradients is no larger, so it matters there.
    """

    lam: float
    steps: int
    samples: int
    inner_lr: float
    initial_rho: float = 0.0
    accumulate: bool = True
    damping: float = 1e-8 * 64 / 5

    def fit(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        perturbations: PerturbationSet,
        noise: Noise,
        singly: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The parameters (mu, rho) of every image's distribution, each like x (N, C, H, W) in [0, 1].

        The caller freezes the model. Step t takes draw t of `noise`. `singly`: the samples of an image never
        share a pass, so that batch statistics, where the model uses them, are those of single samples.
        """
        group = 1 if singly else max(1, _PASS // x.numel())
        mean, raw_scale = torch.zeros_like(x), torch.full_like(x, self.initial_rho)
        total = (torch.zeros_like(x), torch.zeros_like(x))
        for step in range(self.steps):
            draws = noise.normal(self.samples, *x.shape[1:], draw=step)
            gradients = self._gradients(model, x, labels, perturbations, mean, raw_scale, draws, group)
            if self.accumulate:
                gradients = tuple(t + g for t, g in zip(total, gradients, strict=True))
                total = gradients
            mean, raw_scale = (
                value + self.inner_lr * g / (g.abs() + self.damping)
                for value, g in zip((mean, raw_scale), gradients, strict=True)
            )
        return mean, raw_scale

    def _gradients(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        perturbations: PerturbationSet,
        mean: Tensor,
        raw_scale: Tensor,
        draws: Tensor,
        group: int,
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the objective with respect to (mu, rho); draws is (N, k, C, H, W), `group` of the k a pass.

        By the chain rule through u = mu + sigma r, so that only the network is differentiated
        automatically: dJ/dmu = mean_s dJ/du_s, dJ/dsigma = mean_s r_s dJ/du_s + lam / (d sigma).
        """
        weight = self.lam / x[0].numel()
        sigma = softplus(raw_scale)
        by_mean, by_sigma = torch.zeros_like(x), weight / sigma
        for part in draws.split(group, 1):
            k = part.shape[1]
            images, targets = x.repeat_interleave(k, 0), labels.repeat_interleave(k)
            u = (mean[:, None] + sigma[:, None] * part).flatten(0, 1)
            climb = partial(delta_gradient, model, images, targets)
            by_u = pull_back(perturbations, u, climb, weight).view_as(part)
            by_mean += by_u.sum(1) / draws.shape[1]
            by_sigma += by_u.mul_(part).sum(1) / draws.shape[1]
        return by_mean, by_sigma * torch.sigmoid(raw_scale)


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


def squashed_gaussian(noise: Tensor, sigma: Tensor, log_det: Tensor, eps: float) -> Tensor:
    """-log p(delta / eps) / d of one sample a row, delta = squash(u), u = mu + sigma * noise.

    By change of variables (ADT, section 3.2, eq. 10), with d the number of pixels:
    -log p(delta) = sum_j [noise_j^2 / 2 + log(2 pi) / 2 + log sigma_j] + log |det d delta / d u|.
    Its mean over samples estimates the differential entropy. The released code omits
    the constants and averages over the d dimensions; the average is what lambda multiplies
    here too, and constants have no gradient.

    Shapes: noise and sigma (N, C, H, W), sigma > 0; log_det (N,). Returns (N,).
    """
    d = noise[0].numel()
    gaussian = (noise.square() / 2 + sigma.log()).flatten(1).sum(1) / d + math.log(2 * math.pi) / 2
    return gaussian + log_det / d - math.log(eps)
