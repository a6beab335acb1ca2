"""Fold batch norm into the convolution before it: the same function in evaluation mode, with less work."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def folded(module: nn.Module) -> nn.Module:
    """A view of `module` in which every Conv2d, BatchNorm2d pair inside an nn.Sequential is one Conv2d.

    Equal to `module` in evaluation mode up to rounding. It shares every other
    parameter, and holds the folded weights of this moment: make it anew after a step.
    Networks built without nn.Sequential come back as they are.
    """
    if isinstance(module, nn.Sequential):
        return _fold_sequence(module)
    view = copy.copy(module)
    view._modules = {name: child and folded(child) for name, child in module._modules.items()}
    return view


def _fold_sequence(sequence: nn.Sequential) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in sequence:
        if isinstance(layer, nn.BatchNorm2d) and layers and type(layers[-1]) is nn.Conv2d:
            layers[-1] = _fused(layers[-1], layer)
        else:
            layers.append(folded(layer))
    return nn.Sequential(*layers).train(sequence.training)


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
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
