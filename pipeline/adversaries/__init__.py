"""Adversaries: what makes one training method differ from another. One file a family."""

from typing import TYPE_CHECKING

from pipeline.adversaries.amortized import AmortizedExplicit, AmortizedImplicit
from pipeline.adversaries.base import Adversary, Samples
from pipeline.adversaries.clean import Standard
from pipeline.adversaries.explicit import Explicit
from pipeline.adversaries.feature_scatter import FeatureScatter
from pipeline.adversaries.fgsm import FastGradientSign
from pipeline.adversaries.pgd import ProjectedGradient
from pipeline.adversaries.profiles import resolve
from pipeline.adversaries.trades import Trades
from pipeline.ascent import EVALUATING, Inner
from pipeline.perturbation import PerturbationSet

if TYPE_CHECKING:
    from pipeline.params import Method

__all__ = ["METHODS", "Adversary", "Samples", "build"]

METHODS: dict[str, type[Adversary]] = {
    "standard": Standard,
    "at_fgsm": FastGradientSign,
    "at_pgd": ProjectedGradient,
    "trades": Trades,
    "feature_scatter": FeatureScatter,
    "adt_exp": Explicit,
    "adt_exp_am": AmortizedExplicit,
    "adt_imp_am": AmortizedImplicit,
}


def build(
    method: str,
    settings: "Method",
    perturbations: PerturbationSet,
    channels: int,
    size: int,
    inner: Inner = EVALUATING,
) -> Adversary:
    """The adversary of a training method, for images of (channels, size, size); open switches follow `as`."""
    return METHODS[method](resolve(method, settings), perturbations, channels, size, inner)
