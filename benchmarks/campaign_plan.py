"""The cells of a campaign, in the order in which they are worth a rented GPU's minutes: what is made at home."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import bare, params
from pipeline.errors import UserError
from pipeline.params import Params

MAIN = "main"
WIDE = "wrn_28_10"
CHECKPOINT_SECONDS = 30  # what a stop at the end of the budget costs at most, a process
ABSENT = ("autoattack",)  # families that need more than torch and numpy


@dataclass(frozen=True)
class Part:
    """Cells with the same parameters but for method and seed; `job` is what a node reads."""

    name: str
    job: dict[str, Any]


def parts(p: Params, lambdas: Sequence[float], wide: bool, attacks: Sequence[str] | None) -> list[Part]:
    """The preset's own cells; ADT_EXP at other lambdas with the first seed; the wide network with the first seed.

    `attacks`: those of the evaluation that are run; None: all that need no package beside torch.
    """
    first = p.matrix.seeds[0]
    found = [Part(MAIN, _job(p, p.matrix.methods, p.matrix.seeds, attacks))]
    own = p.methods.adt_exp.lam
    for lam in dict.fromkeys(lam for lam in lambdas if lam != own):
        changed = _changed(p, ("methods", "adt_exp", "lam"), float(lam))
        found.append(Part(f"lambda-{lam:g}", _job(changed, ["adt_exp"], [first], attacks)))
    if wide and p.model.name != WIDE:
        changed = _changed(p, ("model",), {"name": WIDE, "mean": p.model.mean, "std": p.model.std})
        found.append(Part("wrn-28-10", _job(changed, p.matrix.methods, [first], attacks)))
    return found


def cells(found: Sequence[Part]) -> list[dict[str, Any]]:
    """Every cell as {part, method, seed}: one seed of each method first, then the other seeds, then the other parts."""
    return [
        {"part": part.name, "method": method, "seed": seed}
        for part in found
        for seed in part.job["matrix"]["seeds"]
        for method in part.job["matrix"]["methods"]
    ]


def _changed(p: Params, path: Sequence[str], value: Any) -> Params:
    values = p.model_dump(by_alias=True)
    section = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return params.parse(values, f"preset {p.preset} with {'.'.join(path)}={value}")


def _job(p: Params, methods: Sequence[str], seeds: Sequence[int], attacks: Sequence[str] | None) -> dict[str, Any]:
    job = copy.deepcopy(bare.job(p))
    there = job["evaluation"]["attacks"]
    if unknown := [name for name in attacks or [] if name not in there]:
        raise UserError(f"--attacks {unknown[0]}: not one of evaluation.attacks ({', '.join(there)})")
    wanted = attacks or [name for name, attack in there.items() if attack["family"] not in ABSENT]
    job["evaluation"]["attacks"] = {name: there[name] for name in there if name in wanted}
    job["left_out"] = [*job["left_out"], *(name for name in there if name not in wanted)]
    job["matrix"] = {"methods": list(methods), "seeds": list(seeds)}
    job["methods"] = {name: job["methods"][name] for name in methods}
    job["train"]["checkpoint_seconds"] = CHECKPOINT_SECONDS
    job["runtime"] = {"device": "auto", "threads": 1}
    return job
