"""The generator of the amortised adversaries (EXP-AM, IMP-AM), at any image size and channel count."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class Generator(nn.Module):
    """Residual generator g_phi at full resolution, as released but for its width.

    Layout: conv 3x3 (inputs -> w), BN, ReLU; residual blocks w -> 2w -> 2w -> w;
    conv 3x3 (w -> outputs). The released code has w = 256. With `latent` > 0 a
    latent vector z enters as one more input channel, through
    Linear(latent, 4 latent), ReLU, Linear(., size^2), ReLU.

    Input: maps (N, inputs, size, size), z (N, latent) or None; output
    (N, outputs, size, size), unbounded. Weights start from N(0, 0.02), batch-norm
    scales from N(1, 0.02), as released.
    """

    def __init__(self, inputs: int, outputs: int, size: int, width: int, latent: int = 0) -> None:
        super().__init__()
        self.size = size
        self.embed = None
        if latent:
            self.embed = nn.Sequential(
                nn.Linear(latent, 4 * latent), nn.ReLU(), nn.Linear(4 * latent, size * size), nn.ReLU()
            )
        self.stem = nn.Sequential(
            nn.Conv2d(inputs + (1 if latent else 0), width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            ResidualBlock(width, 2 * width), ResidualBlock(2 * width, 2 * width), ResidualBlock(2 * width, width)
        )
        self.head = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
        self.apply(_initialise)

    def forward(self, maps: Tensor, z: Tensor | None = None) -> Tensor:
        """Maps (and, for the implicit generator, z) to unbounded outputs."""
        if self.embed is not None:
            channel = self.embed(z).view(-1, 1, self.size, self.size)
            maps = torch.cat([maps, channel], 1)
        return self.head(self.blocks(self.stem(maps)))


class ResidualBlock(nn.Module):
    """conv 3x3, BN, ReLU, conv 3x3, BN, plus the shortcut (1x1 conv and BN where widths differ), ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Same resolution in and out."""
        return relu(self.body(x) + self.shortcut(x))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
