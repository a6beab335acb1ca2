"""Adversaries: what makes one training method differ from another. One file a family."""

from typing import TYPE_CHECKING

from pipeline.adversaries.amortized import AmortizedExplicit, AmortizedImplicit
from pipeline.adversaries.base import Adversary, Samples
from pipeline.adversaries.explicit import Explicit
from pipeline.adversaries.pgd import ProjectedGradient
from pipeline.perturbation import PerturbationSet

if TYPE_CHECKING:
    from pipeline.params import Method

__all__ = ["METHODS", "Adversary", "Samples", "build"]

METHODS: dict[str, type[Adversary]] = {
    "at_pgd": ProjectedGradient,
    "adt_exp": Explicit,
    "adt_exp_am": AmortizedExplicit,
    "adt_imp_am": AmortizedImplicit,
}


def build(method: str, settings: "Method", perturbations: PerturbationSet, channels: int, size: int) -> Adversary:
    """The adversary of a training method, for images of (channels, size, size)."""
    return METHODS[method](settings, perturbations, channels, size)
