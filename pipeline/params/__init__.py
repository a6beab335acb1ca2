"""The schema of params.yaml: every key, its type, its range and its meaning.

params.yaml is the only place a number lives. Reading it either gives a `Params` or
raises a `UserError` of one line that names the file, the key and what is allowed.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.errors import UserError
from pipeline.params.ablation import Ablation
from pipeline.params.attack import FAMILIES, NORM_FAMILIES, REPEATABLE, Attack
from pipeline.params.base import Count, Key, Positive, Section, Seed
from pipeline.params.data import Data, Split
from pipeline.params.evaluation import Evaluation, Health, Transfer
from pipeline.params.methods import (
    Amortized,
    AmortizedImplicit,
    Explicit,
    FastGradientSign,
    FeatureScatter,
    Method,
    MethodName,
    Methods,
    ProjectedGradient,
    Standard,
    Trades,
)
from pipeline.params.protocol import fill_in
from pipeline.params.search import Pruning, Range, Search
from pipeline.params.studies import PUBLISHED, Comparison, Degeneracy, Diversity, Landscape
from pipeline.params.training import Augmentation, Model, Optimizer, Schedule, Selection, Train
from pipeline.yaml_files import read_yaml

__all__ = [
    "Ablation",
    "Amortized",
    "AmortizedImplicit",
    "Attack",
    "Augmentation",
    "Comparison",
    "Data",
    "Degeneracy",
    "Diversity",
    "Evaluation",
    "Explicit",
    "FAMILIES",
    "FastGradientSign",
    "FeatureScatter",
    "Health",
    "Landscape",
    "Method",
    "MethodName",
    "Methods",
    "Model",
    "Optimizer",
    "Params",
    "Runtime",
    "ProjectedGradient",
    "Pruning",
    "REPEATABLE",
    "Range",
    "Schedule",
    "Search",
    "Selection",
    "Split",
    "Standard",
    "Threat",
    "Trades",
    "Train",
    "Transfer",
    "keys_at",
    "load",
    "parse",
]

PARAMS_FILE = Path("params.yaml")


class Threat(Section):
    """The perturbation set of training and evaluation."""

    set: str = Field(description="linf, l2, or package.module:Class of your own")
    eps: Positive = Field(description="radius, in units of the image range [0, 1]")

    @field_validator("set")
    @classmethod
    def _known_or_importable(cls, name: str) -> str:
        if not re.fullmatch(r"linf|l2|[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
            raise ValueError("should be linf, l2, or the import path package.module:Class of your own set")
        return name


class Matrix(Section):
    """Which cells are trained and attacked: every method with every seed."""

    methods: Annotated[list[MethodName], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> "Matrix":
        for name, values in (("methods", self.methods), ("seeds", self.seeds)):
            twice = sorted({str(value) for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{name} must be distinct, but {', '.join(twice)} stands there twice")
        return self


class Verification(Section):
    """How far a reproduction on another kind of machine may lie from the recorded one."""

    accuracy_tolerance: Positive = Field(description="allowed difference of a mean accuracy over the seeds")


class Runtime(Section):
    """What decides the last bits and the speed, but not the experiment."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count = Field(description="torch threads a process")


class Cluster(Section):
    """What a cell asks of a cluster, beside its devices; no number depends on it."""

    memory_gib: Positive = Field(description="main memory for each device that a cell takes, in GiB")


class Params(Section):
    """All of params.yaml."""

    preset: Key
    data: Data
    threat: Threat
    model: Model
    train: Train
    methods: Methods
    matrix: Matrix
    evaluation: Evaluation
    transfer: Transfer
    health: Health
    landscape: Landscape
    ablation: Ablation
    search: Search
    degeneracy: Degeneracy
    diversity: Diversity
    comparison: Comparison
    verification: Verification
    runtime: Runtime
    cluster: Cluster
    _left_out: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _named_attacks(cls, values: Any) -> Any:
        """`released` in the place of an attack's parameters stands for those of the released evaluation."""
        eps = values.get("threat", {}).get("eps") if isinstance(values.get("threat"), dict) else None
        if not isinstance(eps, int | float):
            return values  # what is wrong with it is said below
        filled = dict(values)
        for name in ("evaluation", "health"):
            section = filled.get(name)
            if isinstance(section, dict) and isinstance(section.get("attacks"), dict):
                filled[name] = section | {"attacks": fill_in(section["attacks"], eps)}
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> "Params":
        if self.comparison.reference not in self.matrix.methods:
            raise ValueError(
                f"comparison.reference: {self.comparison.reference!r} is not one of matrix.methods"
                f" ({', '.join(self.matrix.methods)})"
            )
        if self.train.devices > 1 and "feature_scatter" in self.matrix.methods:
            raise ValueError(
                "train.devices: must be 1 with feature_scatter in matrix.methods, whose perturbations depend on the"
                " whole batch"
            )
        about = PUBLISHED.get(self.comparison.published or "", self.data.called)
        if about != self.data.called:
            raise ValueError(
                f"comparison.published: {self.comparison.published} is about {about}, and the data are"
                f" {self.data.called}"
            )
        for method in self.diversity.models:
            if method not in self.matrix.methods:
                raise ValueError(
                    f"diversity.models: {method!r} is not one of matrix.methods ({', '.join(self.matrix.methods)})"
                )
        named = [("health.base", self.health.base)]
        for section in ("ablation", "degeneracy", "transfer"):
            named += [(f"{section}.attacks", name) for name in getattr(self, section).attacks]
        for key, attack in named:
            if attack not in self.evaluation.attacks:
                raise ValueError(
                    f"{key}: {attack!r} is not one of evaluation.attacks ({', '.join(self.evaluation.attacks)})"
                )
        if self.evaluation.attacks[self.health.base].family != "pgd":
            raise ValueError(f"health.base: {self.health.base!r} is not of family pgd")
        for name in self.health.attacks:
            if name in self.evaluation.attacks:
                raise ValueError(f"health.attacks: {name!r} is one of evaluation.attacks already")
        return self

    @property
    def left_out(self) -> tuple[str, ...]:
        """The attacks that `defined` took away."""
        return self._left_out

    def defined(self) -> "Params":
        """The same parameters without the attacks that are not defined in a set of the user's own.

        `ValidationError` where a key that needs one of them names it.
        """
        attacks = {**self.evaluation.attacks, **self.health.attacks}
        left_out = tuple(name for name, attack in attacks.items() if attack.family in NORM_FAMILIES)
        if self.threat.set in ("linf", "l2") or not left_out:
            return self
        changes: dict[str, Any] = {}
        for name in ("evaluation", "health"):
            section = getattr(self, name)
            kept = {attack: settings for attack, settings in section.attacks.items() if attack not in left_out}
            changes[name] = section.model_copy(update={"attacks": kept})
        checked = type(self).model_validate(self.model_copy(update=changes).model_dump(by_alias=True))
        checked._left_out = left_out
        return checked

    def method(self, name: str) -> Method:
        """The parameters of one training method."""
        return getattr(self.methods, name)


def load(path: Path = PARAMS_FILE) -> Params:
    """Read and check a parameter file."""
    return parse(read_yaml(path), str(path))


def parse(values: Any, source: str) -> Params:
    """Check the content of a parameter file called `source`; attacks that are not defined in its set are left out."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected keys and values, found {type(values).__name__}")
    try:
        return Params.model_validate(values).defined()
    except ValidationError as error:
        raise UserError(f"{source}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """The first problem as `key: what is wrong`, with the allowed names for an unknown key."""
    problems = error.errors(include_url=False)
    # An unknown key explains a missing one beside it (a typo), so it goes first.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(_names(_section_at(problem["loc"][:-1])))
        return f"{place}: unknown key; allowed here: {allowed}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = f" (got {problem['input']!r})" if _is_plain(problem["input"]) else ""
    return f"{place}: {message}{shown}" if place else message


def keys_at(path: Sequence[str]) -> list[str]:
    """The keys that the section at `path` may hold; none where there is no section."""
    try:
        section = _section_at(tuple(path))
    except (KeyError, TypeError):
        return []
    return _names(section)


def _names(section: type[Section]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_at(location: tuple[int | str, ...]) -> type[Section]:
    """The section that a dotted key leads to; `KeyError` or `TypeError` where it leads to a value or nowhere."""
    section: type[Section] = Params
    parts = iter(location)
    for part in parts:
        section, named = _inside(section.model_fields[str(part)].annotation)
        if named:
            next(parts, None)
    return section


def _inside(annotation: Any) -> tuple[type[Section], bool]:
    """The section that a key holds, and whether it holds several (then the next part of the path says which)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    named = get_origin(annotation) in (dict, list)
    for inner in get_args(annotation):
        if isinstance(inner, type) and issubclass(inner, Section):
            return inner, named
    raise TypeError("no section")


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | list)
