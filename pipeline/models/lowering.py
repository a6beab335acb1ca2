"""Run a network in another number format and memory layout, from float32 images to float32 logits."""

import copy

import torch
from torch import Tensor, nn


class Lowered(nn.Module):
    """A view of `module` whose convolutions and linear layers hold their weights as `dtype`, channels last.

    Batch norms keep their float32 statistics and everything else its parameters. The
    weights are those of this moment: make the view anew after a step. Input (N, C, H, W)
    and output (N, K) have the input's dtype, so whatever surrounds the network is untouched.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.view, self.dtype = _lowered(module, dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        """Logits, in the dtype of x."""
        return self.view(x.to(self.dtype, memory_format=torch.channels_last)).to(x.dtype)


def _lowered(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    view = copy.copy(module)
    view._modules = {name: child and _lowered(child, dtype) for name, child in module._modules.items()}
    if isinstance(view, Lowered):  # a view of a view
        view.dtype = dtype
    if type(module) in (nn.Conv2d, nn.Linear):
        view._parameters = {name: _cast(value, dtype) for name, value in module._parameters.items()}
    return view


def _cast(parameter: Tensor | None, dtype: torch.dtype) -> nn.Parameter | None:
    if parameter is None:
        return None
    layout = torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
    return nn.Parameter(parameter.detach().to(dtype, memory_format=layout), requires_grad=False)


def is_wide(module: nn.Module) -> bool:
    """Whether float32 runs channels last: convolutions of 64 and more channels gained from it on an AVX512 CPU."""
    return any(layer.out_channels >= 64 for layer in module.modules() if isinstance(layer, nn.Conv2d))
