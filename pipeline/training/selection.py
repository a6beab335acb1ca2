"""Choosing a checkpoint: validation accuracy, natural and under PGD. Test data never come here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.ascent import EVALUATING, Ascent, Inner, frozen
from pipeline.losses import cross_entropy, margin
from pipeline.parallel import ALONE, World
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Stream

if TYPE_CHECKING:
    from pipeline.params import Selection


@dataclass(frozen=True)
class Scores:
    """Shares of validation images classified correctly, in [0, 1]."""

    natural: float
    robust: float

    def rank(self, by: str) -> tuple[float, float]:
        """What is compared: the accuracy called `by` ("robust" or "natural"), then the other one."""
        return (self.natural, self.robust) if by == "natural" else (self.robust, self.natural)


def validate(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    settings: "Selection",
    perturbations: PerturbationSet,
    stream: Stream,
    batch_size: int,
    inner: Inner = EVALUATING,
    world: World = ALONE,
) -> Scores:
    """Natural and PGD accuracy on the validation images x (N, C, H, W) in [0, 1].

    Every epoch is attacked from the same random starts, so that scores differ by
    the model alone. `inner.precision` is that of the gradients; verdicts are float32. The batches are shared
    out over the processes of `world`, which all get the scores of all images.
    """
    natural = robust = 0
    ascent = Ascent(cross_entropy, perturbations, settings.steps, settings.step_size)
    index = torch.arange(len(x), device=x.device)
    with frozen(model, inner) as fast:
        for part in index.split(batch_size)[world.rank :: world.size]:
            images, targets = x[part], labels[part]
            attacked = ascent.last(fast, images, targets, perturbations.start(images, stream.at(part)))
            natural += correct(model, images, targets)
            robust += correct(model, attacked, targets)
    counts = world.gather((natural, robust))
    return Scores(*(sum(count) / len(x) for count in zip(*counts, strict=True)))


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, labels: Tensor) -> int:
    """How many of the images are classified correctly; ties and NaN count as wrong, as in verdicts."""
    return int((margin(model(x), labels) > 0).sum())
