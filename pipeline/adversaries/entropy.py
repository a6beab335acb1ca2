"""The variational bound of ADT_IMP-AM's entropy, and the reversed gradient through which generators ascend."""

import math

import torch
from torch import Tensor


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
