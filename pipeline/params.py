"""The schema of params.yaml: every key, its type, its range and its meaning.

params.yaml is the only place a number lives. Reading it either gives a `Params` or
raises a `UserError` of one line that names the file, the key and what is allowed.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.yaml_files import read_yaml

PARAMS_FILE = Path("params.yaml")

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Key = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Section(BaseModel):
    """A group of keys: unknown keys and values of the wrong type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Split(Section):
    """How the source is split, stratified by class; the rest is the training set."""

    validation: Count = Field(description="images held out for selection")
    test: Count = Field(description="images for the final evaluation")
    seed: Seed = Field(description="seed of the split, independent of the training seeds")


class Data(Section):
    """Which data set, and its split."""

    name: Literal["digits"] = Field(description="data set")
    split: Split


class Threat(Section):
    """The perturbation set of training and evaluation."""

    set: Literal["linf", "l2"] = Field(description="norm of the perturbation set")
    eps: Positive = Field(description="radius, in units of the image range [0, 1]")


class Model(Section):
    """The classifier."""

    name: Literal["small_cnn"] = Field(description="architecture")
    widths: Annotated[list[Count], Field(min_length=1)] = Field(description="channels of each stage")
    unshuffle: Count = Field(description="fold blocks of this many pixels a side into channels; 1: no")


class Optimizer(Section):
    """SGD of the classifier."""

    lr: Positive = Field(description="peak learning rate")
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegative


class Selection(Section):
    """The PGD attack on validation images that selects the checkpoint."""

    steps: Count
    step_size: Positive
    batch_size: Count


class Train(Section):
    """The training loop, the same for every method."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Optimizer
    schedule: Literal["constant", "cosine", "piecewise"]
    selection: Selection
    checkpoint_seconds: NonNegative = Field(description="resumable state is saved at most this often")


class ProjectedGradient(Section):
    """AT_PGD."""

    steps: Count
    step_size: Positive


class Explicit(Section):
    """ADT_EXP."""

    lam: NonNegative = Field(description="lambda, the weight of the entropy per dimension")
    steps: Count = Field(description="T, steps of the inner optimisation")
    samples: Count = Field(description="k, Monte-Carlo samples a step")
    inner_lr: Positive = Field(description="learning rate of the inner Adam(0, 0)")
    initial_rho: float = Field(description="sigma starts at softplus(initial_rho)")
    accumulate: bool = Field(description="true: gradients add up over the steps, as released")


class Amortized(Section):
    """ADT_EXP-AM."""

    lam: NonNegative = Field(description="lambda, the weight of the entropy term")
    width: Count = Field(description="ngf, the generator's base width (released: 256)")
    gradient_input: Literal["raw", "sign", "normalized"] = Field(description="raw is as released")
    generator_lr: Positive = Field(description="Adam's learning rate (released: 2e-4)")


class AmortizedImplicit(Amortized):
    """ADT_IMP-AM."""

    tau: float = Field(description="code length above which the entropy term acts, nats a latent dimension")
    latent: Count = Field(description="dimensions of z")
    encoder_width: Count = Field(description="base width of the encoder (released: 32)")


Method = ProjectedGradient | Explicit | Amortized | AmortizedImplicit


class Methods(Section):
    """The training methods and their own parameters."""

    at_pgd: ProjectedGradient
    adt_exp: Explicit
    adt_exp_am: Amortized
    adt_imp_am: AmortizedImplicit


def _known_method(name: str) -> str:
    if name not in Methods.model_fields:
        raise ValueError(f"unknown method; there are: {', '.join(Methods.model_fields)}")
    return name


MethodName = Annotated[str, AfterValidator(_known_method)]


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


class Attack(Section):
    """One attack of the catalogue with its parameters."""

    family: Literal["fgsm", "pgd", "mim", "cw"]
    steps: Count = 1
    step_size: Positive | None = Field(None, description="for fgsm: none, it is eps")
    momentum: NonNegative | None = Field(None, description="decay of MIM's running gradient; others: none")
    confidence: NonNegative | None = Field(None, description="margin of cw in logits; others: none")

    @model_validator(mode="after")
    def _fits_family(self) -> "Attack":
        needed = {
            "fgsm": set(),
            "pgd": {"step_size"},
            "mim": {"step_size", "momentum"},
            "cw": {"step_size", "confidence"},
        }[self.family]
        for key in ("step_size", "momentum", "confidence"):
            if (getattr(self, key) is not None) != (key in needed):
                raise ValueError(f"family {self.family} {'needs' if key in needed else 'takes no'} {key}")
        if self.family == "fgsm" and self.steps != 1:
            raise ValueError("family fgsm takes one step")
        return self


class Evaluation(Section):
    """The attacks on the test set."""

    batch_size: Count
    seed: Seed = Field(description="seed of the attacks' random starts, the same for every checkpoint")
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


class Comparison(Section):
    """The comparison table."""

    reference: MethodName = Field(description="method the others are paired with")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(description="level of the intervals")


class Verification(Section):
    """How far a reproduction on another kind of machine may lie from the recorded one."""

    accuracy_tolerance: Positive = Field(description="allowed difference of a mean accuracy over the seeds")


class Runtime(Section):
    """What decides the last bits and the speed, but not the experiment."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count = Field(description="torch threads a process")


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
    landscape: Landscape
    ablation: Ablation
    comparison: Comparison
    verification: Verification
    runtime: Runtime

    @model_validator(mode="after")
    def _consistent(self) -> "Params":
        if self.comparison.reference not in self.matrix.methods:
            raise ValueError(
                f"comparison.reference: {self.comparison.reference!r} is not one of matrix.methods"
                f" ({', '.join(self.matrix.methods)})"
            )
        if self.ablation.attack not in self.evaluation.attacks:
            raise ValueError(
                f"ablation.attack: {self.ablation.attack!r} is not one of evaluation.attacks"
                f" ({', '.join(self.evaluation.attacks)})"
            )
        return self

    def method(self, name: str) -> Method:
        """The parameters of one training method."""
        return getattr(self.methods, name)


def load(path: Path = PARAMS_FILE) -> Params:
    """Read and check a parameter file."""
    return parse(read_yaml(path), str(path))


def parse(values: Any, source: str) -> Params:
    """Check the content of a parameter file called `source`."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected keys and values, found {type(values).__name__}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """The first problem as `key: what is wrong`, with the allowed names for an unknown key."""
    problems = error.errors(include_url=False)
    # An unknown key explains a missing one beside it (a typo), so it goes first.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(_section_at(problem["loc"][:-1]).model_fields)
        return f"{place}: unknown key; allowed here: {allowed}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = f" (got {problem['input']!r})" if _is_plain(problem["input"]) else ""
    return f"{place}: {message}{shown}" if place else message


def _section_at(location: tuple[int | str, ...]) -> type[Section]:
    section: type[Section] = Params
    for part in location:
        if section is Evaluation and part == "attacks":
            return Attack
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type) and issubclass(annotation, Section)
        section = annotation
    return section


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | list)
