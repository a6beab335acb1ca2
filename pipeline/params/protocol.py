"""The attacks of ADT's released evaluation under their names, for any radius."""

from collections.abc import Mapping
from typing import Any

# dongyp13/Adversarial-Distributional-Training: evaluate_attacks.py, feature_attack.py, spsa.py. Steps are in units of
# eps: 2/255 and, for FeaAttack, 1/255 of 8/255 there. SPSA's rate and finite difference are in units of the image.
_STEPS: dict[str, dict[str, Any]] = {
    "fgsm": {"family": "fgsm"},
    "pgd-20": {"family": "pgd", "steps": 20, "step_size": 0.25},
    "pgd-100": {"family": "pgd", "steps": 100, "step_size": 0.25},
    "mim-20": {"family": "mim", "steps": 20, "step_size": 0.25, "momentum": 1.0},
    "cw-30": {"family": "cw", "steps": 30, "step_size": 0.25, "confidence": 50.0},
    "fea-50": {"family": "fea", "steps": 50, "step_size": 0.125, "targets": 200},
}
_ABSOLUTE: dict[str, dict[str, Any]] = {
    "spsa": {"family": "spsa", "steps": 100, "step_size": 0.01, "samples": 256, "sigma": 0.001},
    # Not in the released code: the standard of Croce and Hein 2020.
    "autoattack": {"family": "autoattack", "steps": 100, "queries": 5000},
}
NAMES = (*_STEPS, *_ABSOLUTE)


def fill_in(attacks: Mapping[str, Any], eps: float) -> dict[str, Any]:
    """`attacks` of params.yaml with every value that is the word `released` replaced by the attack of that name.

    Raises `ValueError` for a name that is not in `NAMES`; other values are left as they are.
    """
    return {name: _released(name, eps) if value == "released" else value for name, value in attacks.items()}


def _released(name: str, eps: float) -> dict[str, Any]:
    if name in _ABSOLUTE:
        return dict(_ABSOLUTE[name])
    if name not in _STEPS:
        raise ValueError(f"attacks: {name!r} is not in the released evaluation; there are {', '.join(NAMES)}")
    attack = dict(_STEPS[name])
    return attack | ({"step_size": eps * attack["step_size"]} if "step_size" in attack else {})
