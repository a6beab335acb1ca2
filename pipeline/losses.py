"""Losses, one value an example: (N, K) logits and (N,) int64 labels to (N,) floats.

All are written to be *maximised* by an adversary.
"""

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y."""
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j: positive exactly where the example is classified correctly.

    A tie counts as broken (margin 0).
    """
    own = logits.gather(1, labels[:, None])[:, 0]
    hidden = torch.zeros_like(logits).scatter(1, labels[:, None], float("inf"))
    return own - (logits - hidden).amax(1)


def carlini_wagner(logits: Tensor, labels: Tensor, confidence: float = 50.0) -> Tensor:
    """-max(margin + confidence, 0), the C&W objective inside PGD (Madry et al. 2018; ADT's C&W).

    `confidence` is in logits; the attack keeps pushing until the wrong class leads by it.
    """
    return -(margin(logits, labels) + confidence).clamp_min(0)
