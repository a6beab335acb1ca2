"""Classifiers by name, and the networks of the amortised adversaries."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.errors import UserError
from pipeline.models.normalization import Normalize
from pipeline.models.resnet import PreActResNet18, ResNet18
from pipeline.models.small import SmallCNN
from pipeline.models.wide_resnet import WideResNet
from pipeline.seeding import Stream, seeded_globals

if TYPE_CHECKING:
    from pipeline.params import Model


def classifier(settings: "Model", meta: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The classifier that `settings` names, for a data set described by its `meta` (shape, classes).

    Images in [0, 1] come in, normalisation is part of the model. Initialised from the
    stream (seed, "initialisation", "classifier").
    """
    channels, size, _ = meta["shape"]
    classes = len(meta["classes"])
    with seeded_globals(Stream.of(seed, "initialisation", "classifier")):
        if settings.name == "small_cnn":
            return SmallCNN(channels, size, classes, settings.widths, settings.unshuffle)
        normalize = _normalize(settings, channels)
        if settings.name == "resnet18":
            return ResNet18(channels, classes, normalize)
        if settings.name == "preact_resnet18":
            return PreActResNet18(channels, classes, normalize)
        depth = {"wrn_28_10": 28, "wrn_34_10": 34}[settings.name]
        return WideResNet(depth, 10, channels, classes, normalize)


def architecture(settings: "Model") -> str:
    """The name under which a weight file says what it holds."""
    if settings.name != "small_cnn":
        return settings.name
    return f"small_cnn {'-'.join(map(str, settings.widths))} unshuffle {settings.unshuffle}"


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters())


def _normalize(settings: "Model", channels: int) -> nn.Module | None:
    if settings.mean is None or settings.std is None:
        return None
    if len(settings.mean) != channels:
        raise UserError(f"params.yaml: model.mean: {len(settings.mean)} numbers for images of {channels} channels")
    return Normalize(settings.mean, settings.std)
