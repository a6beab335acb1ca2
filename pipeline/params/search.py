"""The section `search`: which hyper-parameters Optuna tries, in which ranges, and by which objective."""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pipeline.params.base import Count, Key, Section, Seed
from pipeline.params.methods import MethodName, Methods
from pipeline.params.training import Optimizer, Schedule, Train

# What the training loop lets a search change, under the names that trackers show; the rest is the method's own.
_LOOP: dict[str, tuple[str, FieldInfo]] = {
    "lr": ("train.optimizer.lr", Optimizer.model_fields["lr"]),
    "momentum": ("train.optimizer.momentum", Optimizer.model_fields["momentum"]),
    "weight_decay": ("train.optimizer.weight_decay", Optimizer.model_fields["weight_decay"]),
    "batch_size": ("train.batch_size", Train.model_fields["batch_size"]),
    "epochs": ("train.epochs", Train.model_fields["epochs"]),
    "ema": ("train.ema", Train.model_fields["ema"]),
}
SCHEDULE = "schedule"
SCHEDULE_PATH = "train.schedule"


class Range(Section):
    """The values of one hyper-parameter, both ends included."""

    low: float
    high: float
    log: bool = Field(False, description="true: logarithms are uniform, not the values")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, but {self.low:g} > {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0, not {self.low:g}")
        return self


class Pruning(Section):
    """When a trial of objective `robust` is given up, from its validation robust accuracy epoch by epoch."""

    name: Literal["median", "halving"] = Field(
        description="below the median of earlier trials at that epoch, or not in the best share of them"
    )
    warmup: Count = Field(description="epochs that every trial trains")
    startup: Annotated[int, Field(ge=0)] | None = Field(
        None, description="for median: trials that must be complete before one is given up"
    )
    reduction: Annotated[int, Field(ge=2)] | None = Field(
        None, description="for halving: one in this many goes on, at `warmup` epochs, that many times as many, ..."
    )

    @model_validator(mode="after")
    def _fits_name(self) -> "Pruning":
        for key, owner in (("startup", "median"), ("reduction", "halving")):
            if (getattr(self, key) is not None) != (self.name == owner):
                raise ValueError(f"{self.name} {'needs' if self.name == owner else 'takes no'} {key}")
        return self


class Search(Section):
    """A search over the hyper-parameters of one method and of the training loop."""

    method: MethodName
    trials: Count = Field(description="the budget; a larger one continues, and repeats nothing")
    startup: Count = Field(description="trials drawn at random before the sampler learns from them")
    seed: Seed = Field(description="seed of the sampler")
    training_seed: Seed = Field(description="seed of every training")
    objective: Literal["pareto", "robust"] = Field(
        description="validation robust accuracy: against gradient evaluations, or alone"
    )
    pruning: Pruning | None = Field(None, description="for robust; none: every trial trains to its end")
    space: Annotated[dict[Key, Range], Field(min_length=1)] = Field(
        description=f"ranges of {', '.join(_LOOP)} and of the method's own numbers"
    )
    schedules: list[Schedule] = Field([], description="learning-rate schedules to choose from; none: that of `train`")

    @model_validator(mode="after")
    def _checked(self) -> "Search":
        if self.method == "standard":
            raise ValueError("method: standard is selected by natural accuracy, and a search goes by robust accuracy")
        if self.pruning is not None and self.objective != "robust":
            raise ValueError("pruning: only objective robust gives trials up; with two objectives there is no order")
        names = [schedule.name for schedule in self.schedules]
        if len(set(names)) != len(names):
            raise ValueError("schedules: names must be distinct, they are what the table calls them")
        for name, limits in self.space.items():
            _check(self.method, name, limits)
        return self

    def is_whole(self, name: str) -> bool:
        """Whether the parameter `name` of the space counts something."""
        return _kind(searchable(self.method)[name][1]) is int

    def paths(self) -> dict[str, str]:
        """Where in params.yaml each searched parameter stands, by its name, in the order of the table."""
        known = searchable(self.method)
        chosen = {SCHEDULE: SCHEDULE_PATH} if self.schedules else {}
        return {name: known[name][0] for name in self.space} | chosen


def searchable(method: str) -> dict[str, tuple[str, FieldInfo]]:
    """Every parameter that a search over `method` can have: name -> (its place in params.yaml, its field)."""
    own = Methods.model_fields[method].annotation.model_fields
    numbers = {name: (f"methods.{method}.{name}", field) for name, field in own.items() if _kind(field)}
    return numbers | _LOOP


def _check(method: str, name: str, limits: Range) -> None:
    """`ValueError` unless the method has the parameter and its schema accepts both ends of the range."""
    known = searchable(method)
    if name not in known:
        raise ValueError(f"space: {method} has no {name!r}; there are {', '.join(known)}")
    field = known[name][1]
    kind = TypeAdapter(Annotated[field.annotation, field], config=ConfigDict(strict=True))
    for end in ("low", "high"):
        value = getattr(limits, end)
        if _kind(field) is int and not value.is_integer():
            raise ValueError(f"space.{name}.{end}: should be a whole number, not {value:g}")
        try:
            kind.validate_python(_kind(field)(value))
        except ValidationError as error:
            told = error.errors(include_url=False)[0]["msg"]
            raise ValueError(f"space.{name}.{end}: {told[0].lower()}{told[1:]}, not {value:g}") from None


def _kind(field: FieldInfo) -> type[int] | type[float] | None:
    """int or float for a field that holds such a number, or none instead of it; None for any other."""

    def kinds(annotation: Any) -> list[Any]:
        if get_origin(annotation) is Annotated:
            return kinds(get_args(annotation)[0])
        if get_origin(annotation) in (Union, UnionType):
            return [kind for part in get_args(annotation) for kind in kinds(part)]
        return [annotation]

    return next((kind for kind in kinds(field.annotation) if kind in (int, float)), None)
