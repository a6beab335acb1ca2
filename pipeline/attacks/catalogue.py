"""Attacks as compositions of a start, a loss, a step size and a memory of gradients."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.ascent import Ascent, Loss
from pipeline.attacks.auto import PARTS, AutoAttack
from pipeline.attacks.distribution import ExplicitDistribution
from pipeline.attacks.fea import Fea
from pipeline.attacks.spsa import Spsa
from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.losses import carlini_wagner, cross_entropy, margin
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Attack as Settings

GRADIENT_FAMILIES = ("fgsm", "pgd", "mim", "cw")  # one loop, which may run in low precision
# (model, x, labels, perturbations, noise) to attacked images; the caller freezes the model.
Perturb = Callable[[nn.Module, Tensor, Tensor, PerturbationSet, Noise], Tensor]


@dataclass(frozen=True)
class Attack:
    """An iterated gradient attack.

    `any_iterate`: the verdict is taken on the first iterate that is misclassified, which is
    stronger; else on the last one, as released. `restarts`: runs from new random starts for the
    examples that still hold; the first one that breaks an example counts.
    """

    loss: Loss
    steps: int
    step_size: float
    random_start: bool
    momentum: float | None = None
    restarts: int = 1
    any_iterate: bool = False

    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise
    ) -> Tensor:
        """Attacked images for x (N, C, H, W) in [0, 1]; the caller freezes the model."""
        images = self._once(model, x, labels, perturbations, noise)
        for restart in range(1, self.restarts):
            with torch.no_grad():
                holding = margin(model(images), labels) > 0
            if not holding.any():
                break
            again = noise.branch(restart).rows(holding)
            images[holding] = self._once(model, x[holding], labels[holding], perturbations, again)
        return images

    def _once(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise
    ) -> Tensor:
        start = perturbations.start(x, noise) if self.random_start else torch.zeros_like(x)
        ascent = Ascent(self.loss, perturbations, self.steps, self.step_size, self.momentum)
        return (ascent.first_broken if self.any_iterate else ascent.last)(model, x, labels, start)


def compose(settings: "Settings", eps: float, pool: Split) -> Perturb:
    """The attack that `settings` describes, in a set of radius `eps`.

    fgsm: one step of size eps from the image itself (Goodfellow et al. 2015). pgd:
    steps on the cross-entropy from a random start (Madry et al. 2018). mim: the same
    with a running gradient (Dong et al. 2018). cw: the same on the C&W margin loss.
    Random starts for these three, as in ADT's released evaluation. fea: towards the features of
    images of other classes, which it takes from `pool`. adt_exp: samples of the explicit
    adversarial distribution. spsa: no gradients, but estimates of them from pairs of evaluations
    (Uesato et al. 2018). autoattack: Croce and Hein 2020, or some of its parts. Any other
    family is the import path of a user's own attack, called with `options` as keyword arguments.
    """
    if ":" in settings.family:
        return partial(own(settings.family), **settings.options or {})
    build = {
        "fgsm": lambda: Attack(cross_entropy, steps=1, step_size=eps, random_start=False),
        "pgd": lambda: _iterated(settings, cross_entropy),
        "mim": lambda: _iterated(settings, cross_entropy),
        "cw": lambda: _iterated(settings, partial(carlini_wagner, confidence=settings.confidence)),
        "fea": lambda: Fea(settings.steps, settings.step_size, settings.targets, pool),
        "adt_exp": lambda: ExplicitDistribution(
            settings.steps, settings.samples, settings.step_size, settings.lam, settings.draws
        ),
        "spsa": lambda: Spsa(settings.steps, settings.step_size, settings.samples, settings.sigma),
        "autoattack": lambda: AutoAttack(settings.steps, settings.queries, tuple(settings.parts or PARTS)),
    }
    return build[settings.family]()


def _iterated(settings: "Settings", loss: Loss) -> Attack:
    return Attack(
        loss,
        settings.steps,
        settings.step_size,
        random_start=True,
        momentum=settings.momentum,
        restarts=settings.restarts,
        any_iterate=settings.rule == "any",
    )


def own(family: str) -> Perturb:
    """A user's attack by its import path `package.module:function`; `UserError` where there is none."""
    module, _, name = family.partition(":")
    try:
        attack = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"params.yaml: evaluation.attacks: {family}: cannot be imported: {error}") from error
    if not callable(attack):
        raise UserError(f"params.yaml: evaluation.attacks: {family}: is no function")
    return attack


def source(family: str) -> Path | None:
    """The file that defines a user's own attack; None for the families of the catalogue."""
    return Path(inspect.getfile(own(family))) if ":" in family else None
