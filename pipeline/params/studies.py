"""The sections of studies and comparisons: loss surfaces, lambda = 0, the table of methods."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.base import Count, Key, NonNegative, Positive, Section, Seed
from pipeline.params.methods import MethodName


class Curvature(Section):
    """Numbers of the loss around single test images."""

    images: Count = Field(description="test images, the first ones")
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="residual of an eigenvalue at which power iteration stops, in units of the largest magnitude met"
    )
    iterations: Count = Field(description="Hessian-vector products at most, for each of the two iterations")
    restarts: Count = Field(description="random starts in the set, of every search for an extreme")
    steps: Count = Field(description="PGD steps from each of them")
    step_size: Positive = Field(description="length of a step, in the unit of threat.eps")


class Landscape(Section):
    """Loss surfaces around test images, and how curved they are."""

    seeds: Count | None = Field(description="how many of the matrix's seeds are looked at, at most; all: null")
    images: Count = Field(description="test images averaged over, the first ones")
    shown: Count = Field(description="the first of them, that have panels of their own")
    points: Annotated[int, Field(ge=3)] = Field(description="grid points a side (odd: the image itself is one)")
    radius: Positive = Field(description="half width of the grid, in units of eps")
    clip: bool = Field(description="whether points are clipped to [0, 1]; the authors' are not")
    curvature: Curvature

    @model_validator(mode="after")
    def _checked(self) -> "Landscape":
        if self.shown > self.images:
            raise ValueError(f"shown: should be at most images ({self.images})")
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


class Diversity(Section):
    """Samples of every distribution beside those of PGD with restarts and of noise, on test images."""

    models: Annotated[list[MethodName], Field(min_length=1)] = Field(
        description="methods of the matrix whose classifiers every source attacks; each distribution attacks those of"
        " its own method, too"
    )
    images: Count = Field(description="test images, the first ones")
    samples: Annotated[int, Field(ge=2)] = Field(description="samples an image from every source")
    restarts: Count = Field(
        description="restarts of PGD when sources are compared by cost; the others draw as many samples for that cost"
    )
    shown: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=8)] = Field(
        description="those of the images that are drawn, counted from 0"
    )
    points: Annotated[int, Field(ge=3)] = Field(description="grid points a side of the loss behind them")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(description="level of the intervals")

    @model_validator(mode="after")
    def _checked(self) -> "Diversity":
        for name, values in (("models", self.models), ("shown", self.shown)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must be distinct")
        if max(self.shown) >= self.images:
            raise ValueError(f"shown: should be below images ({self.images}; got {max(self.shown)})")
        return self


def _reported(attack: str, attacks: list[str]) -> None:
    if attack not in attacks:
        raise ValueError(f"attack: {attack!r} is not one of attacks ({', '.join(attacks)})")


# Published tables that ours can be put beside, and what the data are called that they are about.
PUBLISHED = {
    "table-a": "CIFAR-10",
    "table-b": "CIFAR-10",
    "rice-preactresnet18": "CIFAR-10",
    "authors-cifar100": "CIFAR-100",
    "authors-svhn": "SVHN",
}


class Comparison(Section):
    """The comparison table."""

    reference: MethodName = Field(description="method the others are paired with")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(description="level of the intervals")
    resamples: Annotated[int, Field(ge=100)] = Field(description="resamples of the bootstrap")
    seed: Seed = Field(description="seed of the bootstrap")
    published: Literal["table-a", "table-b", "rice-preactresnet18", "authors-cifar100", "authors-svhn"] | None = Field(
        None, description="the published table that ours is put beside, about the same data; none: null"
    )
