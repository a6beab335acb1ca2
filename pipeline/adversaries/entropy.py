"""Entropy terms of the adversarial distributions, in nats per dimension of delta / eps.

Dividing delta by eps only shifts the entropy by log eps; it makes values
comparable across radii: a uniform distribution over the l-infinity set has log 2.
"""

import math

import torch
from torch import Tensor


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


def latent_code_length(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """-log q(z | delta) / dim(z) for a diagonal Gaussian q, one value a row.

    The variational bound of IMP-AM: H(delta) >= E[log q(z | delta)] + const (mutual
    information, as in InfoGAN), so a shorter code for z means a broader distribution
    of delta. Shapes: z, mean, variance (N, L), variance > 0. Returns (N,).
    """
    terms = (z - mean).square() / (2 * variance) + variance.log() / 2 + math.log(2 * math.pi) / 2
    return terms.mean(1)


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient.neg()


def reverse_gradient(x: Tensor) -> Tensor:
    """The identity, with its gradient negated: what is behind it ascends the loss that others descend."""
    return _Reversal.apply(x)
