"""One attack: its family, and the keys that each family must have."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.params.base import Count, NonNegative, Positive, Section

# The families of the catalogue, with the keys that each must have.
FAMILIES: dict[str, set[str]] = {
    "fgsm": set(),
    "pgd": {"step_size"},
    "mim": {"step_size", "momentum"},
    "cw": {"step_size", "confidence"},
    "fea": {"step_size", "targets"},
    "adt_exp": {"step_size", "samples", "lam", "draws"},
    "spsa": {"step_size", "samples", "sigma"},
    "autoattack": {"queries"},
}
# The families whose loop takes random starts again, and may judge any iterate.
REPEATABLE = ("pgd", "mim", "cw")
# The families that are defined by a norm, linf or l2, and so in no set of your own.
NORM_FAMILIES = ("autoattack",)


class Attack(Section):
    """One attack of the catalogue with its parameters, or one of your own."""

    family: str = Field(description=f"{', '.join(FAMILIES)}, or package.module:function of your own")
    steps: Count = Field(1, description="steps of the loop; of autoattack: iterations of APGD and FAB (standard: 100)")
    step_size: Positive | None = Field(None, description="for fgsm: none, it is eps; for adt_exp: of mu and rho")
    momentum: NonNegative | None = Field(None, description="decay of MIM's running gradient; others: none")
    confidence: NonNegative | None = Field(None, description="margin of cw in logits; others: none")
    targets: Count | None = Field(None, description="images of other classes whose features fea seeks (released: 200)")
    samples: Annotated[int, Field(ge=2)] | None = Field(
        None, description="model evaluations a step of spsa, in pairs; Monte-Carlo samples a step of adt_exp"
    )
    sigma: Positive | None = Field(None, description="finite-difference step of spsa a pixel; others: none")
    lam: NonNegative | None = Field(None, description="entropy weight of adt_exp's inner loop; others: none")
    draws: Count | None = Field(None, description="samples an image of adt_exp that are judged; others: none")
    queries: Count | None = Field(None, description="model evaluations of autoattack's Square (standard: 5000)")
    parts: Annotated[list[Literal["apgd-ce", "apgd-t", "fab-t", "square"]], Field(min_length=1)] | None = Field(
        None, description="the parts of autoattack that run, in this order (none: all four, which is its standard)"
    )
    restarts: Count = Field(1, description="random starts of pgd, mim, cw, tried on examples that still hold")
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
        for key in sorted(set.union(*FAMILIES.values())):
            if (getattr(self, key) is not None) != (key in needed):
                raise ValueError(f"family {self.family} {'needs' if key in needed else 'takes no'} {key}")
        if self.family == "fgsm" and self.steps != 1:
            raise ValueError("family fgsm takes one step from the image itself: no steps")
        if not own and self.family not in REPEATABLE and (self.restarts, self.rule) != (1, "last"):
            raise ValueError(f"family {self.family} takes no restarts or rule, which are for {', '.join(REPEATABLE)}")
        if self.family == "spsa" and self.samples is not None and self.samples % 2:
            raise ValueError(f"samples of family spsa come in pairs: an even number, not {self.samples}")
        self._check_parts()
        return self

    def _check_parts(self) -> None:
        if self.parts is None:
            return
        if self.family != "autoattack":
            raise ValueError(f"family {self.family} takes no parts")
        if len(set(self.parts)) != len(self.parts):
            raise ValueError("parts must be distinct")

    @property
    def is_black_box(self) -> bool:
        """Whether the attack sees logits only."""
        return self.family == "spsa" or self.parts == ["square"]
