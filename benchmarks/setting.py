"""What both sides of a comparison start from: weights, images, labels and noise of a seed, in one dtype."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.ours import RecordedNoise
from benchmarks.reference import Reference
from pipeline.seeding import Stream, seeded_globals


@dataclass(frozen=True)
class Setting:
    """Every call of a method gives the same numbers again, on the reference's device."""

    reference: Reference
    dtype: torch.dtype
    seed: int

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Random images (N, 3, 32, 32), a sixth of their pixels exactly 0 or 1, and labels (N,)."""
        rows = Stream.of(self.seed, "fidelity images").at(torch.arange(count))
        x = (1.2 * rows.uniform(3, 32, 32) - 0.1).clamp(0, 1)
        y = (rows.uniform(1, draw=1)[:, 0] * 10).long()
        return x.to(self.reference.device, self.dtype), y.to(self.reference.device)

    def noise(self, count: int) -> RecordedNoise:
        """Noise of the batch."""
        index = torch.arange(count, device=self.reference.device)
        return RecordedNoise(Stream.of(self.seed, "fidelity noise").key, index, self.dtype)

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """A network at its own initialisation, the same for every dtype."""
        with seeded_globals(Stream.of(self.seed, "fidelity weights")):
            return make().to(self.dtype)

    def classifier(self) -> nn.Module:
        """Their ResNet-18, its batch norms having seen one batch (else its signal fades in evaluation mode)."""
        model = self.build(self.reference.resnet18)
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(self.batch(8)[0])
        for norm in norms:
            norm.momentum = 0.1
        return model
