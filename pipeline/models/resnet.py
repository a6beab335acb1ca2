"""Residual classifiers of 18 layers, for small images: after and before the identity mappings of He et al. 2016.

Blocks are written with nn.Sequential bodies so that `folding.folded` finds their convolutions and batch norms.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.functional import relu


class ResNet18(nn.Module):
    """ResNet-18 with the 3x3 stem for small images, as in the released models/resnet.py.

    Stem conv 3x3, BN, ReLU; four stages of two `BasicBlock`s (`widths`), the last three
    halving the resolution; average pooling; linear. The released pooling is fixed
    to 32x32 images; averaging everything frees the size (8 or more).

    Input: (N, channels, size, size) in [0, 1], which `normalize` then standardises.
    Output: (N, classes) logits.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        normalize: nn.Module | None = None,
        widths: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        super().__init__()
        self.normalize = normalize or nn.Identity()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.stages = stages(BasicBlock, widths[0], widths, blocks=2)
        self.neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        return self.head(self.neck(self.stages(self.stem(self.normalize(x)))))


class PreActResNet18(nn.Module):
    """ResNet-18 of pre-activation blocks, as in Rice et al. 2020 (robust_overfitting, preactresnet.py).

    Stem conv 3x3; four stages of two `PreActBlock`s (`widths`), the last three halving the
    resolution; BN, ReLU; average pooling; linear. The BN and ReLU before the pooling
    are in He et al. 2016 and in Rice et al.; the widespread kuangliu/pytorch-cifar lacks them.

    Input: (N, channels, size, size) in [0, 1], which `normalize` then standardises.
    Output: (N, classes) logits.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        normalize: nn.Module | None = None,
        widths: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        super().__init__()
        self.normalize = normalize or nn.Identity()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stages = stages(PreActBlock, widths[0], widths, blocks=2)
        self.neck = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        return self.head(self.neck(self.stages(self.stem(self.normalize(x)))))


class BasicBlock(nn.Module):
    """conv 3x3, BN, ReLU, conv 3x3, BN, plus the shortcut, ReLU.

    The shortcut is the input, or its 1x1 conv and BN where width or resolution change.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        return relu(self.body(x) + self.shortcut(x))


class PreActBlock(nn.Module):
    """BN, ReLU, conv 3x3, BN, ReLU, conv 3x3, plus the shortcut.

    The shortcut is the input, or, where width or resolution change, a 1x1 conv (without BN)
    of the activated input, that is after the first BN and ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        active = self.activate(x)
        return self.body(active) + (x if self.shortcut is None else self.shortcut(active))


def stages(
    block: Callable[[int, int, int], nn.Module], inputs: int, widths: Sequence[int], blocks: int
) -> nn.Sequential:
    """A stage of `blocks` blocks a width; every stage after the first halves the resolution.

    `block`: (inputs, outputs, stride) to a module.
    """
    made = []
    for number, width in enumerate(widths):
        first = block(inputs, width, 1 if number == 0 else 2)
        made.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(blocks - 1))))
        inputs = width
    return nn.Sequential(*made)
