"""Classifiers by name, and the networks of the amortised adversaries."""

from typing import TYPE_CHECKING

from torch import nn

from pipeline.models.small import SmallCNN

if TYPE_CHECKING:
    from pipeline.params import Model


def classifier(settings: "Model", channels: int, size: int, classes: int) -> nn.Module:
    """Build the classifier that `settings` names, for images of (channels, size, size)."""
    return SmallCNN(channels, size, classes, settings.widths, settings.unshuffle)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters())
