"""Lambda = 0: does the distribution collapse to a point, and the training to adversarial training?

Without the entropy term the expected loss is greatest for a distribution that sits on the worst
perturbation, so ADT with lambda = 0 is adversarial training (Dong et al. 2020). The explicit
distribution is searched for with finitely many steps of fixed length, so how far it gets is a
question of measurement: after T steps sigma is at least softplus(rho_0 - T inner_lr).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.adversaries.explicit import Explicit
from pipeline.ascent import Ascent, frozen
from pipeline.data.store import Split
from pipeline.losses import cross_entropy
from pipeline.perturbation import PerturbationSet
from pipeline.samplers import Learned
from pipeline.seeding import Stream
from pipeline.studies.diversity import describe
from pipeline.verdicts import Verdicts


def collapse(
    adversary: Explicit,
    model: nn.Module,
    examples: Split,
    lams: Sequence[float],
    steps: Sequence[int],
    samples: int,
    stream: Stream,
) -> list[dict[str, Any]]:
    """For each (lambda, number of inner steps): how wide the distributions found are, and what they do to `model`.

    `deviation`: root of the mean variance of a pixel of delta / eps over `samples` draws, 0 for a
    point and 0.577 for the uniform distribution on the l-infinity set. `loss`: mean cross-entropy of the draws.
    """
    rows = []
    for lam in lams:
        for count in steps:
            searched = adversary.settings.model_copy(update={"lam": lam, "steps": count})
            described = describe(
                Learned.with_settings(searched), model, examples.x, examples.y, adversary.perturbations, stream, samples
            ).means()
            deviation = math.sqrt(described["diversity"])
            rows.append({"lam": lam, "steps": count, "deviation": deviation, "loss": described["adversarial_loss"]})
    return rows


def pgd_loss(
    model: nn.Module, examples: Split, perturbations: PerturbationSet, steps: int, step_size: float, stream: Stream
) -> float:
    """Mean cross-entropy of PGD's last iterate: what a single worst point reaches."""
    start = perturbations.start(examples.x, stream.at(examples.index))
    with frozen(model) as fast:
        images = Ascent(cross_entropy, perturbations, steps, step_size).last(fast, examples.x, examples.y, start)
        with torch.no_grad():
            return float(cross_entropy(model(images), examples.y).mean())


def agreement(one: Verdicts, other: Verdicts, attack: str) -> float:
    """Share of examples on which an attack has the same verdict on two models."""
    if (one.index != other.index).any():
        raise ValueError("the tables are not over the same examples")
    return float((one.broken_by([attack]) == other.broken_by([attack])).mean())
