"""The encoder q(z | delta) of the implicit adversary."""

from torch import Tensor, nn
from torch.nn.functional import softplus


class Encoder(nn.Module):
    """Gaussian q(z | delta) = N(m(delta), diag v(delta)), at any image size and channel count.

    Four 3x3 convolutions of widths w, 2w, 4w, 8w (the last three halve the
    resolution) with BN and LeakyReLU(0.01), global average pooling and a linear
    map to (m, v). The released encoder (w = 32) uses unpadded kernels that need
    32x32 images; padding here is what frees the image size.

    Input: (N, channels, H, W) in [-1, 1], the perturbation in units of eps.
    Output: mean and variance, each (N, latent), the variance positive (softplus).
    """

    def __init__(self, channels: int, width: int, latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for stage in range(4):
            outputs = width * 2**stage
            layers += [
                nn.Conv2d(inputs, outputs, 3, 1 if stage == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.01),
            ]
            inputs = outputs
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(inputs, 2 * latent)

    def forward(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of z given the perturbation."""
        mean, raw = self.head(self.features(delta)).to(delta.dtype).chunk(2, 1)
        return mean, softplus(raw)
