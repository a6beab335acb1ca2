"""The sections of studies and comparisons: loss surfaces, the lambda studies, the table of methods."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.base import Count, Key, NonNegative, Positive, Section, Seed
from pipeline.params.methods import MethodName


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
    attacks: Annotated[list[Key], Field(min_length=1)] = Field(
        description="attacks of `evaluation.attacks` that make the worst case"
    )
    attack: Key = Field(description="the one of them that is reported beside it")
    samples: Annotated[int, Field(ge=2)] = Field(description="draws an image for adversarial loss and diversity")

    @model_validator(mode="after")
    def _checked(self) -> "Ablation":
        _reported(self.attack, self.attacks)
        if 0 not in self.lams:
            raise ValueError("lams must contain 0, the point that degenerates to adversarial training")
        for name, values in (("lams", self.lams), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must be distinct")
        return self


class Degeneracy(Section):
    """ADT_EXP with lambda = 0 beside AT_PGD: trained in full, then looked at on test images."""

    seeds: Annotated[list[Seed], Field(min_length=1)]
    attacks: Annotated[list[Key], Field(min_length=1)] = Field(
        description="attacks of `evaluation.attacks` that make the worst case"
    )
    attack: Key = Field(description="the one of them that is reported beside it")
    images: Count = Field(description="test images on which distributions are searched for")
    lams: Annotated[list[NonNegative], Field(min_length=1)] = Field(description="lambda of these searches")
    steps: Annotated[list[Count], Field(min_length=1)] = Field(description="inner steps of these searches")
    samples: Annotated[int, Field(ge=2)] = Field(description="draws an image")

    @model_validator(mode="after")
    def _checked(self) -> "Degeneracy":
        _reported(self.attack, self.attacks)
        for name, values in (("seeds", self.seeds), ("lams", self.lams), ("steps", self.steps)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must be distinct")
        if 0 not in self.lams:
            raise ValueError("lams must contain 0, whose collapse is the question")
        return self


def _reported(attack: str, attacks: list[str]) -> None:
    if attack not in attacks:
        raise ValueError(f"attack: {attack!r} is not one of attacks ({', '.join(attacks)})")


class Comparison(Section):
    """The comparison table."""

    reference: MethodName = Field(description="method the others are paired with")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(description="level of the intervals")
    resamples: Annotated[int, Field(ge=100)] = Field(description="resamples of the bootstrap")
    seed: Seed = Field(description="seed of the bootstrap")
    published: Literal["table-a", "table-b"] | None = Field(
        None, description="the authors' table that ours is put beside, both about CIFAR-10; none: null"
    )
