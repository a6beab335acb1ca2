"""Random crops and flips of a batch, made on its device from the examples' own random numbers."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Augmentation


def augment(x: Tensor, settings: "Augmentation", noise: Noise) -> Tensor:
    """Each image of x (N, C, H, W) shifted by up to `crop` pixels a side and mirrored with probability 1/2.

    The shift is a crop of the original size out of the image with `crop` pixels of padding on
    every side (zeros: the ADT code; reflections: Rice et al. 2020). What an example gets depends
    on its row of `noise` alone, so neither on the batch nor on the device.
    """
    if settings.crop:
        x = _shifted(x, settings, noise.uniform(2))
    if settings.flip:
        mirror = noise.uniform(1, draw=1) < 0.5
        x = torch.where(mirror.view(-1, 1, 1, 1), x.flip(3), x)
    return x


def _shifted(x: Tensor, settings: "Augmentation", uniform: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    mode = {"zero": "constant", "reflect": "reflect"}[settings.padding]
    padded = pad(x, [settings.crop] * 4, mode=mode)
    offset = (uniform * (2 * settings.crop + 1)).long()
    rows = offset[:, 0, None] + torch.arange(height, device=x.device)
    columns = offset[:, 1, None] + torch.arange(width, device=x.device)
    picture = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    return padded[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]
