"""What a classifier's last linear layer sees of an image."""

import torch
from torch import Tensor, nn

from pipeline.errors import UserError


def features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and penultimate features (N, D) of images x (N, C, H, W), in the dtype of x.

    The features are the input, flattened, of the last `nn.Linear` among the model's modules: the pooled
    640 channels of WRN-28-10, the last map of the small network. They carry a graph where x does.
    The model is as before on return, and so are models that share layers with it. `UserError` where it
    has no linear layer, or does not use the last one.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise UserError("attacks on features need a model with a linear layer, whose input is the features")
    seen: list[Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    try:
        logits = model(x)
    finally:
        hook.remove()
    if not seen:
        raise UserError("attacks on features need a model that uses its last linear layer, whose input is the features")
    return logits, torch.flatten(seen[-1], 1).to(x.dtype)
