"""The section `methods`: every training method and its own parameters.

A key without a default is a hyper-parameter. A key that may be left out is a switch,
something on which a released code and its paper differ: the word `as` fills in the
switches left out, from the table in pipeline/adversaries/profiles.py.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.params.base import Count, NonNegative, Positive, Section, Share

GradientInput = Literal["raw", "sign", "normalized"]


class Method(Section):
    """What every method has."""

    profile: Literal["released", "paper"] | None = Field(
        None, alias="as", description="fills in the switches that are not stated"
    )

    def open_switches(self) -> list[str]:
        """The switches that are not stated."""
        fields = type(self).model_fields
        return [n for n in fields if n != "profile" and not fields[n].is_required() and getattr(self, n) is None]

    @model_validator(mode="after")
    def _decided(self) -> "Method":
        if self.profile is None and self.open_switches():
            raise ValueError(f"needs `as: released` or `as: paper`, or every switch: {', '.join(self.open_switches())}")
        return self


class Standard(Method):
    """Training on the images themselves."""


class ProjectedGradient(Method):
    """AT_PGD."""

    steps: Count
    step_size: Positive


class FastGradientSign(Method):
    """AT_FGSM: one step of length eps."""

    target: Literal["label", "least_likely"] | None = Field(
        None, description="climb the loss of the label, or descend that of the least likely class"
    )
    random_start: bool | None = Field(None, description="true: from a random point of the set, then projected")
    clean_weight: Share | None = Field(None, description="share of the loss on the clean images")


class Trades(Method):
    """TRADES."""

    beta: NonNegative = Field(description="weight of the divergence between clean and perturbed predictions")
    steps: Count
    step_size: Positive
    start_scale: NonNegative = Field(description="standard deviation of the normal start around the image")


class FeatureScatter(Method):
    """Feature scattering (FeaScatter)."""

    steps: Count
    step_size: Positive
    label_smoothing: Share = Field(description="probability moved from the label to the other classes together")
    regularization: Positive = Field(description="entropic regularisation of the transport plan")
    iterations: Count = Field(description="most Sinkhorn iterations")
    plan_gradient: bool | None = Field(None, description="true: the gradient runs through the Sinkhorn iterations too")


class Distributional(Method):
    """What the ADT methods share."""

    lam: NonNegative = Field(description="lambda, the weight of the entropy per dimension")
    outer_samples: Count | None = Field(None, description="samples an image that the classifier trains on")


class Explicit(Distributional):
    """ADT_EXP."""

    steps: Count = Field(description="T, steps of the inner optimisation")
    samples: Count = Field(description="k, Monte-Carlo samples a step")
    inner_lr: Positive = Field(description="learning rate of the inner Adam(0, 0)")
    initial_rho: float | None = Field(None, description="sigma starts at softplus(initial_rho)")
    accumulate: bool | None = Field(None, description="true: gradients add up over the steps, as released")
    damping: Positive | None = Field(None, description="Adam's epsilon, for the gradient of one image's objective")


class Amortized(Distributional):
    """ADT_EXP-AM."""

    width: Count = Field(description="ngf, the generator's base width (released: 256)")
    generator_lr: Positive = Field(description="Adam's learning rate (released: 2e-4)")
    gradient_input: GradientInput | None = Field(None, description="what becomes of the input gradients")


class AmortizedImplicit(Amortized):
    """ADT_IMP-AM."""

    latent: Count = Field(description="dimensions of z")
    encoder_width: Count = Field(description="base width of the encoder (released: 32)")
    hinge: bool | None = Field(None, description="true: the code length counts only above tau, as released")
    tau: float | None = Field(None, description="code length above which the entropy term acts, nats a dimension of z")

    def open_switches(self) -> list[str]:
        """Without the hinge there is no threshold to state."""
        return [name for name in super().open_switches() if name != "tau" or self.hinge is not False]

    @model_validator(mode="after")
    def _hinge_has_threshold(self) -> "AmortizedImplicit":
        if self.hinge and self.tau is None and self.profile == "paper":
            raise ValueError("hinge: true needs tau; the paper has none")
        return self


class Methods(Section):
    """The training methods and their own parameters."""

    standard: Standard
    at_fgsm: FastGradientSign
    at_pgd: ProjectedGradient
    trades: Trades
    feature_scatter: FeatureScatter
    adt_exp: Explicit
    adt_exp_am: Amortized
    adt_imp_am: AmortizedImplicit


def _known_method(name: str) -> str:
    if name not in Methods.model_fields:
        raise ValueError(f"unknown method; there are: {', '.join(Methods.model_fields)}")
    return name


MethodName = Annotated[str, AfterValidator(_known_method)]
