"""Samples as attacks over time: what the best of n samples reaches, against what n samples cost an image.

Counted are passes of the attacked model. A gradient evaluation is a forward pass and a backward one with respect
to the image alone, which is as much arithmetic again; so a forward pass by itself, such as the verdict on a
finished sample, counts as half a gradient evaluation.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.samplers import Learned, Restarts, Sampler, Uniform
from pipeline.studies.diversity import Judged

FORWARD = 0.5  # gradient evaluations
POINT = ["samples", "gradient_evaluations", "forward_passes", "cost", "loss", "broken"]
COLUMNS = ["model", "source", "seed", *POINT]


@dataclass(frozen=True)
class Price:
    """Gradient evaluations an image: `search` once, `each` a sample. The verdict on a sample is a forward pass."""

    search: int
    each: int

    @classmethod
    def of(cls, sampler: Sampler) -> "Price":
        """`TypeError` for a generator: its samples cost passes of another network, and a training before."""
        if isinstance(sampler, Learned):
            return cls(sampler.search.steps * sampler.search.samples, 0)
        if isinstance(sampler, Restarts):
            return cls(0, sampler.steps)
        if isinstance(sampler, Uniform):
            return cls(0, 0)
        raise TypeError(f"{type(sampler).__name__} has no price in passes of the attacked model")

    def gradient_evaluations(self, samples: int) -> int:
        """Those of the first `samples` samples of an image."""
        return self.search + self.each * samples

    def total(self, samples: int) -> float:
        """Gradient evaluations and verdicts of the first `samples` samples, in gradient evaluations."""
        return self.gradient_evaluations(samples) + FORWARD * samples

    def affordable(self, budget: float) -> int:
        """How many samples cost at most `budget` together; one where not even that does."""
        return max(1, int((budget - self.search) // (self.each + FORWARD)))


def curve(judged: Judged, price: Price) -> list[dict[str, Any]]:
    """Rows by number of samples n: what the first n of each image cost and reach.

    `loss`: mean over images of the greatest cross-entropy among the first n; `broken`: share of images of
    which at least one of them is misclassified. n runs over 1, 2, 3, 5, 7, 10, 20, ... and all samples.
    """
    losses, broken = judged.loss.cummax(1).values.mean(0), judged.fooled.double().cummax(1).values.mean(0)
    points = []
    for n in counts(judged.loss.shape[1]):
        costs = (price.gradient_evaluations(n), n, price.total(n))
        points.append(dict(zip(POINT, (n, *costs, float(losses[n - 1]), float(broken[n - 1])), strict=True)))
    return points


def counts(most: int) -> list[int]:
    """1, 2, 3, 5, 7, 10, 20, 30, ... below `most`, and `most` itself."""
    steps = [digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 3, 5, 7)]
    return [*(n for n in steps if n < most), most]
