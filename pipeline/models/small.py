"""A small convolutional classifier for the CPU presets."""

from collections.abc import Sequence

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Convolution, batch norm, ReLU a width; every stage after the first halves the resolution.

    Input: (N, channels, size, size) in [0, 1]. Output: (N, classes) logits. Pixels
    are centred inside the model. `unshuffle` > 1 first folds blocks of pixels into
    channels (pixel unshuffle), which removes the slow single-channel convolution.
    """

    def __init__(self, channels: int, size: int, classes: int, widths: Sequence[int], unshuffle: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(unshuffle)] if unshuffle > 1 else []
        inputs, side = channels * unshuffle**2, size // unshuffle
        for stage, width in enumerate(widths):
            stride = 1 if stage == 0 else 2
            layers += [
                nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            inputs, side = width, (side + stride - 1) // stride
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(inputs * side * side, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        return self.head(self.features(x - 0.5))
