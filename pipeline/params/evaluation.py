"""The sections that judge trained models: attacks, loss surfaces, the lambda study, the comparison."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.params.base import Count, Key, NonNegative, Positive, Section, Seed
from pipeline.params.methods import MethodName

# The families of the catalogue, with the keys that each must have.
FAMILIES: dict[str, set[str]] = {
    "fgsm": set(),
    "pgd": {"step_size"},
    "mim": {"step_size", "momentum"},
    "cw": {"step_size", "confidence"},
    "spsa": {"step_size", "samples", "sigma"},
}


class Attack(Section):
    """One attack of the catalogue with its parameters, or one of your own."""

    family: str = Field(description="fgsm, pgd, mim, cw, spsa, or package.module:function of your own")
    steps: Count = 1
    step_size: Positive | None = Field(None, description="for fgsm: none, it is eps")
    momentum: NonNegative | None = Field(None, description="decay of MIM's running gradient; others: none")
    confidence: NonNegative | None = Field(None, description="margin of cw in logits; others: none")
    samples: Annotated[int, Field(ge=2, multiple_of=2)] | None = Field(
        None, description="model evaluations a step of spsa, in pairs; others: none"
    )
    sigma: Positive | None = Field(None, description="finite-difference step of spsa a pixel; others: none")
    restarts: Count = Field(1, description="random starts tried on examples that still hold; fgsm and spsa have none")
    rule: Literal["last", "any"] = Field("last", description="judge the last iterate, as released, or any of them")
    options: dict[str, Any] | None = Field(None, description="keyword arguments of your own attack; others: none")

    @model_validator(mode="after")
    def _fits_family(self) -> "Attack":
        own = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.family)
        if not own and self.family not in FAMILIES:
            raise ValueError(
                f"family {self.family!r} should be {', '.join(FAMILIES)},"
                " or the import path package.module:function of your own"
            )
        if self.options is not None and not own:
            raise ValueError(f"family {self.family} takes no options")
        if own and (self.steps, self.restarts, self.rule) != (1, 1, "last"):
            raise ValueError("an attack of your own takes its parameters under options")
        needed = FAMILIES.get(self.family, set())
        for key in ("step_size", "momentum", "confidence", "samples", "sigma"):
            if (getattr(self, key) is not None) != (key in needed):
                raise ValueError(f"family {self.family} {'needs' if key in needed else 'takes no'} {key}")
        if self.family == "fgsm" and (self.steps, self.restarts, self.rule) != (1, 1, "last"):
            raise ValueError("family fgsm takes one step from the image itself: no steps, restarts or rule")
        if self.family == "spsa" and (self.restarts, self.rule) != (1, "last"):
            raise ValueError("family spsa goes from the image itself to where its label flips: no restarts or rule")
        return self


class Evaluation(Section):
    """The attacks on the test set."""

    batch_size: Count
    seed: Seed = Field(description="seed of the attacks' random starts, the same for every checkpoint")
    precision: Literal["fp32", "bf16"] = Field(
        description="of gradient attacks judged on their last iterate; all else: fp32"
    )
    attacks: Annotated[dict[Key, Attack], Field(min_length=1)]

    @model_validator(mode="after")
    def _reserved(self) -> "Evaluation":
        for name in ("natural", "worst-case"):
            if name in self.attacks:
                raise ValueError(f"attacks: {name!r} is always evaluated and cannot be redefined")
        return self


class Landscape(Section):
    """Loss surfaces around test images."""

    images: Count = Field(description="test images averaged over")
    points: Annotated[int, Field(ge=3)] = Field(description="grid points a side (odd: the image itself is one)")
    radius: Positive = Field(description="half width of the grid, in units of eps")


class Ablation(Section):
    """The lambda study: ADT_EXP trained for every (lambda, seed)."""

    lams: Annotated[list[NonNegative], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    epochs: Count
    attack: Key = Field(description="attack of `evaluation.attacks` reported beside the worst case")
    samples: Annotated[int, Field(ge=2)] = Field(description="draws an image for adversarial loss and diversity")

    @model_validator(mode="after")
    def _checked(self) -> "Ablation":
        if 0 not in self.lams:
            raise ValueError("lams must contain 0, the point that degenerates to adversarial training")
        for name, values in (("lams", self.lams), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must be distinct")
        return self


class Degeneracy(Section):
    """ADT_EXP with lambda = 0 beside AT_PGD: trained in full, then looked at on test images."""

    seeds: Annotated[list[Seed], Field(min_length=1)]
    attack: Key = Field(description="attack of `evaluation.attacks` reported beside the worst case")
    images: Count = Field(description="test images on which distributions are searched for")
    lams: Annotated[list[NonNegative], Field(min_length=1)] = Field(description="lambda of these searches")
    steps: Annotated[list[Count], Field(min_length=1)] = Field(description="inner steps of these searches")
    samples: Annotated[int, Field(ge=2)] = Field(description="draws an image")

    @model_validator(mode="after")
    def _checked(self) -> "Degeneracy":
        for name, values in (("seeds", self.seeds), ("lams", self.lams), ("steps", self.steps)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must be distinct")
        if 0 not in self.lams:
            raise ValueError("lams must contain 0, whose collapse is the question")
        return self


class Comparison(Section):
    """The comparison table."""

    reference: MethodName = Field(description="method the others are paired with")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(description="level of the intervals")
