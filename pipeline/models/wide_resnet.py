"""The wide residual network of the paper (WRN-28-10), and the layout of the authors' published weights."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models.resnet import PreActBlock, stages


class WideResNet(nn.Module):
    """WRN-depth-widen (Zagoruyko and Komodakis 2016) as in the released models/wideresnet.py, without dropout.

    Stem conv 3x3 to 16 channels; three stages of (depth - 4) / 6 `PreActBlock`s of 16, 32
    and 64 times `widen` channels, the last two halving the resolution; BN, ReLU;
    average pooling; linear. The released pooling is fixed to 32x32 images;
    averaging everything frees the size. `ValueError` for other depths than 10, 16, 22, 28, ...

    Input: (N, channels, size, size) in [0, 1], which `normalize` then standardises
    (the authors do not). Output: (N, classes) logits.
    Starts as released: convolutions N(0, 2 / (k^2 outputs)) as (mean, variance), batch norms
    1 and 0, the linear layer as PyTorch has it but for its bias 0.
    """

    def __init__(self, depth: int, widen: int, channels: int, classes: int, normalize: nn.Module | None = None) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"the depth of a wide residual network is 6 n + 4 (10, 16, 22, 28, ...), not {depth}")
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.normalize = normalize or nn.Identity()
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stages = stages(PreActBlock, 16, widths, blocks=(depth - 4) // 6)
        self.neck = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        return self.head(self.neck(self.stages(self.stem(self.normalize(x)))))


def released_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict of a wide residual network, under the names of `WideResNet`.

    The prefix `module.` (DataParallel) goes, and so does `sub_block1`, which the released
    class builds and never uses. Counters of batches, which old PyTorch did not store, may be absent
    and start at 0. Raises `UserError` with the first name that is unknown or missing;
    whether shapes fit is for loading to find out.
    """
    published = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    used = {name: tensor for name, tensor in published.items() if not name.startswith("sub_block1.")}
    # The number of different indices, not the largest: a broken file cannot make the table huge.
    blocks = len({found[1] for name in used if (found := re.match(r"block[123]\.layer\.(\d+)\.", name))})
    ours = dict(_names(max(blocks, 1)))
    for name in used:
        if name not in ours:
            raise UserError(f"unknown weights {name} for a wide residual network of the authors")
    for name in ours:
        if name.endswith(".num_batches_tracked"):
            used.setdefault(name, torch.tensor(0))
        # A network that is not widened (widen = 1) has no shortcut here.
        elif name not in used and name != "block1.layer.0.convShortcut.weight":
            raise UserError(f"missing weights {name} of a wide residual network of the authors")
    return {ours[name]: tensor for name, tensor in used.items()}


def _names(blocks: int) -> Iterator[tuple[str, str]]:
    """(published name, our name) of every tensor of a network with so many blocks a stage."""
    yield "conv1.weight", "stem.weight"
    for stage, block in itertools.product(range(3), range(blocks)):
        theirs, ours = f"block{stage + 1}.layer.{block}", f"stages.{stage}.{block}"
        yield from _norm_names(f"{theirs}.bn1", f"{ours}.activate.0")
        yield f"{theirs}.conv1.weight", f"{ours}.body.0.weight"
        yield from _norm_names(f"{theirs}.bn2", f"{ours}.body.1")
        yield f"{theirs}.conv2.weight", f"{ours}.body.3.weight"
        if block == 0:
            yield f"{theirs}.convShortcut.weight", f"{ours}.shortcut.weight"
    yield from _norm_names("bn1", "neck.0")
    yield "fc.weight", "head.weight"
    yield "fc.bias", "head.bias"


def _norm_names(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for tensor in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        yield f"{theirs}.{tensor}", f"{ours}.{tensor}"


def _initialise(module: nn.Module) -> None:
    # Batch norms start at 1 and 0 in PyTorch.
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
