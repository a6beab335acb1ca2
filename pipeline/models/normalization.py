"""Standardise images inside a classifier, so that attacks work on pixels in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std for every channel.

    `mean`, `std`: one number a channel, std > 0, else `ValueError`. They follow the
    module's device and dtype but are settings, not weights: they are not in the
    state dict, so weight files of equal networks fit whatever their normalisation.

    Input and output: (N, channels, H, W).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(f"one mean and one std a channel, not {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise ValueError(f"every std must be positive, not {min(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised images, in the dtype of x also where that is lower than the settings'."""
        return ((x - self.mean) / self.std).to(x.dtype)
