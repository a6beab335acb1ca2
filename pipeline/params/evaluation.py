"""The sections that judge trained models: attacks, transfer between models, and whether to believe the verdicts."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.attack import Attack
from pipeline.params.base import Count, Key, Positive, Section, Seed


class Evaluation(Section):
    """The attacks on the test set."""

    batch_size: Count
    seed: Seed = Field(description="seed of the attacks' random starts, the same for every checkpoint")
    precision: Literal["fp32", "bf16"] = Field(
        description="of gradient attacks judged on their last iterate; all else: fp32"
    )
    devices: Count = Field(description="processes, one a GPU or core, that share out the batches; decides no verdict")
    attacks: Annotated[dict[Key, Attack], Field(min_length=1)]

    @model_validator(mode="after")
    def _reserved(self) -> "Evaluation":
        for name in ("natural", "worst-case"):
            if name in self.attacks:
                raise ValueError(f"attacks: {name!r} is always evaluated and cannot be redefined")
        return self


class Transfer(Section):
    """Every trained model attacks every other."""

    attacks: Annotated[list[Key], Field(min_length=1)] = Field(
        description="attacks of `evaluation.attacks` whose images, made on one model, are shown to the others"
    )
    draws: Count = Field(description="samples an image of the generators of adt_exp_am and adt_imp_am")


class Health(Section):
    """Probes of every checkpoint that tell robustness from hidden gradients, and what a failure does."""

    gate: Literal["warn", "stop"] = Field(description="what a failed check does to the pipeline")
    images: Count = Field(description="test images probed, the first of the test set")
    base: Key = Field(description="pgd attack of `evaluation.attacks` that the probes vary")
    steps: Annotated[list[Count], Field(min_length=2)] = Field(description="numbers of steps, rising")
    restarts: Annotated[list[Count], Field(min_length=2)] = Field(description="numbers of random starts, rising")
    radii: Annotated[list[Positive], Field(min_length=2)] = Field(
        description="radii, rising, in units of eps; the last should leave no image unbroken"
    )
    random_points: Count = Field(description="random points of the set tried an image")
    attacks: dict[Key, Attack] = Field(
        description="further attacks on these images; spsa and autoattack with parts [square] are the black boxes"
    )

    @model_validator(mode="after")
    def _checked(self) -> "Health":
        for name, values in (("steps", self.steps), ("restarts", self.restarts), ("radii", self.radii)):
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name} must rise")
        if not any(attack.is_black_box for attack in self.attacks.values()):
            raise ValueError("attacks: needs a black box: family spsa, or family autoattack with parts [square]")
        return self
