"""Classifiers by name, and the networks of the amortised adversaries."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.models.small import SmallCNN
from pipeline.seeding import Stream, seeded_globals

if TYPE_CHECKING:
    from pipeline.params import Model


def classifier(settings: "Model", meta: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The classifier that `settings` names, for a data set described by its `meta` (shape, classes).

    Initialised from the stream (seed, "initialisation", "classifier").
    """
    channels, size, _ = meta["shape"]
    with seeded_globals(Stream.of(seed, "initialisation", "classifier")):
        return SmallCNN(channels, size, len(meta["classes"]), settings.widths, settings.unshuffle)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters())
