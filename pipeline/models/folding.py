"""Fold batch norm into the convolution before it: the same function in evaluation mode, with less work."""

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def folded(module: nn.Module) -> nn.Module:
    """A view of `module` in which every Conv2d, BatchNorm2d pair inside an nn.Sequential is one Conv2d.

    Equal to `module` in evaluation mode up to rounding. It shares every other
    parameter, and holds the folded weights of this moment: make it anew after a step.
    What is not such a pair (layers outside nn.Sequential or in a subclass of it, batch norm
    without statistics or scale) is left as it is, and layers keep their places.
    """
    view = copy.copy(module)
    view._modules = {name: child and folded(child) for name, child in module._modules.items()}
    if type(module) is nn.Sequential:
        for (name, layer), (after, norm) in itertools.pairwise(module._modules.items()):
            if type(layer) is nn.Conv2d and _foldable(norm):
                view._modules[name], view._modules[after] = _fused(layer, norm), nn.Identity()
    return view


def _foldable(norm: nn.Module) -> bool:
    """Whether a layer is a batch norm, of whatever statistics in training, that evaluates with its running ones."""
    return isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and norm.affine and norm.track_running_stats


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> nn.Conv2d:
    weight, bias = fuse_conv_bn_weights(
        conv.weight.detach(),
        None if conv.bias is None else conv.bias.detach(),
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight.detach(),
        norm.bias.detach(),
    )
    fused = copy.copy(conv)
    fused._parameters = {
        "weight": nn.Parameter(weight, requires_grad=False),
        "bias": nn.Parameter(bias, requires_grad=False),
    }
    return fused
