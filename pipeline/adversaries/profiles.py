"""`as: released` and `as: paper`: what the two words stand for, switch by switch.

Only what a released code and its paper's equations do differently, or what only one
of them states, is a switch; numbers such as steps and lambda are hyper-parameters and
always stand in params.yaml. A switch stated there wins over its profile.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.params import Method

# Released ADT: github dongyp13/Adversarial-Distributional-Training, be5464a. Its equations: arXiv 2002.05999.
_ADT_EXP = {
    # adt_exp.py starts from rho = 0; the equations leave the start open.
    "initial_rho": {"released": 0.0, "paper": 0.0},
    # adt_exp.py never zeroes the gradients of (mu, rho); gradient ascent on eq. (10) has a new one each step.
    "accumulate": {"released": True, "paper": False},
    # Adam's 1e-8 meets the gradient of a mean over 64 images and a sum over 5 samples in adt_exp.py (see Explicit).
    "damping": {"released": 1e-8 * 64 / 5, "paper": 1e-8},
    # The classifier descends an expectation; the released code estimates it by one sample, here by k = 5.
    "outer_samples": {"released": 1, "paper": 5},
}
_AMORTIZED = {
    # adt_expam.py, adt_impam.py feed raw gradients of the batch-mean loss; the paper states no scaling.
    "gradient_input": {"released": "raw", "paper": "raw"},
    "outer_samples": {"released": 1, "paper": 5},
}
_IMPLICIT = {
    # adt_impam.py counts the variational bound only above 0.9; the bound itself has no threshold.
    "hinge": {"released": True, "paper": False},
    "tau": {"released": 0.9, "paper": None},
}
_FGSM = {
    # The ADT authors' development code (github thudzj/ADT, af3529d): least-likely class, half clean images
    # (Kurakin et al. 2017). Goodfellow et al. 2015: the label, half clean images.
    "target": {"released": "least_likely", "paper": "label"},
    "random_start": {"released": False, "paper": False},
    "clean_weight": {"released": 0.5, "paper": 0.5},
}
_FEATURE_SCATTER = {
    # github Haichao-Zhang/FeatureScatter, 77e9140, differentiates through Sinkhorn; at the optimum of the
    # transport problem (Zhang, Wang 2019, eq. 5) the plan is a constant of the gradient.
    "plan_gradient": {"released": True, "paper": False},
}

PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "standard": {},
    "at_fgsm": _FGSM,
    "at_pgd": {},
    "trades": {},
    "feature_scatter": _FEATURE_SCATTER,
    "adt_exp": _ADT_EXP,
    "adt_exp_am": _AMORTIZED,
    "adt_imp_am": _AMORTIZED | _IMPLICIT,
}


def resolve(method: str, settings: "Method") -> "Method":
    """The settings with every open switch filled in from their profile."""
    switches = PROFILES.get(method, {})
    filled = {name: switches[name][settings.profile] for name in settings.open_switches()}
    return settings.model_copy(update=filled)
