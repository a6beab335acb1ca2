"""The section `ablation`: training against lambda, for one method or for all that have one."""

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.params.base import Count, Key, NonNegative, Section, Seed


class Lambdas(Section):
    """Values of lambda at which a method is trained; 0, which turns the entropy term off, is always one of them."""

    lam: Annotated[list[NonNegative], Field(min_length=2)]

    @model_validator(mode="after")
    def _checked(self) -> "Lambdas":
        _distinct("lam", self.lam)
        if 0 not in self.lam:
            raise ValueError("lam must contain 0, the point that degenerates to adversarial training")
        return self


class LambdasAndThresholds(Lambdas):
    """The same for ADT_IMP-AM: every lambda above 0 with every threshold of the code length."""

    tau: Annotated[list[float], Field(min_length=1)] | None = Field(
        None, description="thresholds tried; left out: that of methods.adt_imp_am alone"
    )

    @model_validator(mode="after")
    def _distinct_thresholds(self) -> "LambdasAndThresholds":
        _distinct("tau", self.tau or [])
        return self


class Grid(Section):
    """Which methods are trained at which points; a method that is left out is not in the study."""

    adt_exp: Lambdas | None = None
    adt_exp_am: Lambdas | None = None
    adt_imp_am: LambdasAndThresholds | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> "Grid":
        if not self.methods():
            raise ValueError(f"needs at least one method: {', '.join(type(self).model_fields)}")
        return self

    def methods(self) -> dict[str, Lambdas]:
        """The methods of the grid and their points."""
        return {name: axes for name in type(self).model_fields if (axes := getattr(self, name)) is not None}


class Ablation(Section):
    """The lambda study: every point of a grid with every seed, beside AT_PGD with the same epochs and seeds."""

    grid: Key = Field(description="the one of `grids` that runs")
    grids: Annotated[dict[Key, Grid], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    epochs: Count
    attacks: Annotated[list[Key], Field(min_length=1)] = Field(
        description="attacks of `evaluation.attacks` that make the worst case"
    )
    attack: Key = Field(description="the one of them that is reported beside it")
    samples: Annotated[int, Field(ge=2)] = Field(description="draws an image of a method's own adversary")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(description="level of the intervals over seeds")

    @model_validator(mode="after")
    def _checked(self) -> "Ablation":
        if self.grid not in self.grids:
            raise ValueError(f"grid: {self.grid!r} is not one of grids ({', '.join(self.grids)})")
        if self.attack not in self.attacks:
            raise ValueError(f"attack: {self.attack!r} is not one of attacks ({', '.join(self.attacks)})")
        _distinct("seeds", self.seeds)
        return self

    @property
    def chosen(self) -> Grid:
        """The grid that runs."""
        return self.grids[self.grid]


def _distinct(name: str, values: list[float] | list[int]) -> None:
    if len(set(values)) != len(values):
        raise ValueError(f"{name} must be distinct")
