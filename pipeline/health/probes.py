"""Measurements on one model and a few images that tell robustness from hidden gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import perturbation
from pipeline.ascent import frozen, input_gradient
from pipeline.attacks import suite
from pipeline.data.store import Split
from pipeline.losses import cross_entropy, margin
from pipeline.perturbation import PerturbationSet, onto_images
from pipeline.seeding import Noise, Stream
from pipeline.verdicts import NATURAL, Column

if TYPE_CHECKING:
    from pipeline.params import Attack, Params


@dataclass(frozen=True)
class Subject:
    """What is probed: a model on a device, in evaluation or any mode, and the images it is probed on."""

    model: nn.Module
    examples: Split
    p: "Params"

    def perturbations(self, radius: float = 1.0) -> PerturbationSet:
        """The threat set, its radius multiplied."""
        return perturbation.build(self.p.threat.set, radius * self.p.threat.eps)

    def broken(self, name: str, settings: "Attack | None", perturbations: PerturbationSet | None = None) -> np.ndarray:
        """Which examples an attack breaks: bool (N,). Random numbers belong to `name`."""
        threat = perturbations or self.perturbations()
        return suite.judged(
            name, settings, self.p.evaluation, self.model, self.examples, threat, natural=self.natural
        ).broken

    @cached_property
    def natural(self) -> Column:
        """The verdicts on the images themselves."""
        return suite.judged(NATURAL, None, self.p.evaluation, self.model, self.examples, self.perturbations())

    def noise(self, purpose: str) -> Noise:
        """Random numbers of the images for one probe."""
        return Stream.of(self.p.evaluation.seed, "health", purpose).at(self.examples.index)


def probe(subject: Subject) -> dict[str, Any]:
    """Every measurement, as plain values; see the functions for their meaning.

    A model whose forward pass is random has no verdicts to take, so nothing else is measured on it.
    """
    spread = randomness(subject)
    if spread:
        return {"images": len(subject.examples.x), "randomness": spread}
    health, base = subject.p.health, subject.p.evaluation.attacks[subject.p.health.base]
    breaks = {name: subject.broken(name, attack) for name, attack in health.attacks.items()}
    return {
        "images": len(subject.examples.x),
        "index": subject.examples.index.tolist(),
        "randomness": spread,
        "single_step": _accuracy(subject.broken("fgsm", base.model_copy(update=_SINGLE_STEP))),
        "steps": accuracy_by(subject, base, "steps", health.steps),
        "restarts": accuracy_by(subject, base, "restarts", health.restarts),
        "radii": accuracy_by_radius(subject, base, health.radii),
        "random_search": _indices(subject, random_search(subject, health.random_points)),
        "breaks": {name: _indices(subject, broken) for name, broken in breaks.items()},
        **gradients(subject),
    }


_SINGLE_STEP = {"family": "fgsm", "steps": 1, "step_size": None, "restarts": 1, "rule": "last"}


def randomness(subject: Subject, passes: int = 4) -> float:
    """The greatest difference between logits of the same images in the same batch, over some passes."""
    with frozen(subject.model), torch.no_grad():
        first, *others = (subject.model(subject.examples.x) for _ in range(passes))
    return float(max((other - first).abs().max() for other in others))


def accuracy_by(subject: Subject, base: "Attack", key: str, values: Sequence[int]) -> dict[str, float]:
    """Accuracy under `base` with one of its parameters varied: the first random numbers are those of every value."""
    changed = {value: base.model_copy(update={key: value}) for value in values}
    return {str(value): _accuracy(subject.broken("health", attack)) for value, attack in changed.items()}


def accuracy_by_radius(subject: Subject, base: "Attack", radii: Sequence[float]) -> dict[str, float]:
    """Accuracy under `base` in ever larger sets, by the radius in units of eps; its steps grow with the set."""
    curve = {}
    for radius in radii:
        assert base.step_size is not None
        scaled = base.model_copy(update={"step_size": radius * base.step_size})
        curve[f"{radius:g}"] = _accuracy(subject.broken("health", scaled, subject.perturbations(radius)))
    return curve


def random_search(subject: Subject, points: int) -> np.ndarray:
    """Which examples at least one of `points` random points of the set breaks: bool (N,).

    Half of them are the set's own random starts, half lie as far out as the set allows along random signs.
    """
    perturbations, x, labels = subject.perturbations(), subject.examples.x, subject.examples.y
    noise, broken = subject.noise("random search"), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    with frozen(subject.model) as fast, torch.no_grad():
        for point in range(points):
            if point % 2:
                signs = noise.signs(*x.shape[1:], draw=point)
                delta = perturbations.project(perturbations.eps * perturbations.direction(signs))
            else:
                delta = perturbations.start(x, noise.branch(point))
            broken |= ~(margin(fast(onto_images(x, delta)), labels) > 0)
    return broken.cpu().numpy()


def gradients(subject: Subject) -> dict[str, float]:
    """What the gradients of the cross-entropy with respect to the images are like.

    `zero_gradients`: share of images whose gradient is exactly zero everywhere in float32, so
    that no step climbs it. `alignment`: mean cosine between the gradient at an image and at
    a random point of the set around it (Andriushchenko and Flammarion 2020, GradAlign), 0
    where one of them is zero. `linearity_error`: mean over images of
    |L(x + d) - L(x) - <d, grad L(x)>| / (|L(x + d) - L(x)| + |<d, grad L(x)>|), in [0, 1], with d
    the FGSM perturbation (the local linearity measure of Qin et al. 2019, relative, at that point).
    """
    perturbations, x, labels = subject.perturbations(), subject.examples.x, subject.examples.y
    with frozen(subject.model) as fast:
        here = input_gradient(fast, x, labels, cross_entropy)
        around = onto_images(x, perturbations.start(x, subject.noise("alignment")))
        there = input_gradient(fast, around, labels, cross_entropy)
        step = onto_images(x, perturbations.project(perturbations.eps * perturbations.direction(here))) - x
        with torch.no_grad():
            risen = (cross_entropy(fast(x + step), labels) - cross_entropy(fast(x), labels)).double()
    promised = (step.double() * here.double()).flatten(1).sum(1)
    error = (risen - promised).abs() / (risen.abs() + promised.abs()).clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "zero_gradients": float((here.flatten(1).abs().amax(1) == 0).double().mean()),
        "alignment": float(_cosine(here, there).mean()),
        "linearity_error": float(error.mean()),
    }


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of each row, also of tiny ones, in float64; 0 where a row is zero."""
    unit = [
        v / v.norm(dim=1, keepdim=True).clamp_min(1e-300) for v in (one.double().flatten(1), other.double().flatten(1))
    ]
    return (unit[0] * unit[1]).sum(1)


def _accuracy(broken: np.ndarray) -> float:
    return round(float(1 - broken.mean()), 6)


def _indices(subject: Subject, broken: np.ndarray) -> list[int]:
    return subject.examples.index.cpu().numpy()[broken].tolist()
