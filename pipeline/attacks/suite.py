"""The attacks of `evaluation` in params.yaml, by name: what the attack stage and the studies run."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline import memory
from pipeline.ascent import Inner
from pipeline.attacks import loop
from pipeline.attacks.catalogue import GRADIENT_FAMILIES, Perturb, compose, source
from pipeline.data.store import Split
from pipeline.errors import VerdictError
from pipeline.files import digest_file
from pipeline.parallel import ALONE, World
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Noise, Stream
from pipeline.verdicts import NATURAL, Column, Verdicts

if TYPE_CHECKING:
    from pipeline.params import Attack, Evaluation, Params


def attacks(evaluation: "Evaluation") -> "dict[str, Attack | None]":
    """Every attack's settings; `natural`, which has none, comes first."""
    return {NATURAL: None} | dict(evaluation.attacks)


def own_code(evaluation: "Evaluation") -> dict[str, str]:
    """The hash of the file of every attack that is a user's own, by the attack's name."""
    files = {name: source(settings.family) for name, settings in evaluation.attacks.items()}
    return {name: digest_file(file) for name, file in files.items() if file is not None}


def description(evaluation: "Evaluation", names: Sequence[str]) -> list[Any]:
    """What the verdicts of the named attacks depend on: their settings and code, and how they are judged."""
    code = own_code(evaluation)
    chosen = [[name, evaluation.attacks[name].model_dump(), code.get(name)] for name in names]
    return [chosen, evaluation.model_dump(exclude={"attacks", "devices"})]


def column(
    name: str,
    evaluation: "Evaluation",
    model: nn.Module,
    examples: Split,
    perturbations: PerturbationSet,
    natural: Column | None = None,
    world: World = ALONE,
) -> Column:
    """The verdicts of one attack of `evaluation` on one model; `natural` and `world` as in `judged`."""
    settings = attacks(evaluation)[name]
    return judged(name, settings, evaluation, model, examples, perturbations, natural=natural, world=world)


def judged(
    name: str,
    settings: "Attack | None",
    evaluation: "Evaluation",
    model: nn.Module,
    examples: Split,
    perturbations: PerturbationSet,
    keep: Callable[[Tensor], None] | None = None,
    natural: Column | None = None,
    world: World = ALONE,
) -> Column:
    """The verdicts of any attack (none: of the images themselves), judged as `evaluation` says.

    Random numbers come from a stream named after the attack. `keep` receives the attacked
    images of every batch, in the order of `examples`. `natural`: the model's column of that name on
    the same examples, which spares judging the images themselves again. `world`: the processes that share
    out the batches. `VerdictError` names attack and example.
    """
    attack = loop.identity if settings is None else compose(settings, perturbations.eps, examples)

    def run(perturb: Perturb, part: Split, known: Column | None) -> Column:
        inner, batch = _inner(settings, evaluation.precision), evaluation.batch_size
        return loop.run(perturb, model, part, perturbations, stream(name, evaluation), batch, inner, known, world)

    whole = attack if keep is None else _kept(attack, keep)
    key, size = "evaluation.batch_size", min(evaluation.batch_size, len(examples.x))
    try:
        if world.size > 1:
            with memory.told(key, size, "lower it"):
                return run(whole, examples, natural)
        return memory.bounded(
            lambda: run(whole, examples, natural),
            key,
            size,
            lambda count: run(attack, examples.head(count), None),
        )
    except VerdictError as error:
        raise VerdictError(f"attack {name}: {error}") from error


def stream(name: str, evaluation: "Evaluation") -> Stream:
    """The random numbers of an attack, the same for every model."""
    return Stream.of(evaluation.seed, "attack", name)


def images(
    name: str, evaluation: "Evaluation", model: nn.Module, examples: Split, perturbations: PerturbationSet
) -> Tensor:
    """The attacked images on which `column` is judged: (N, C, H, W) in the order of `examples`."""
    parts: list[Tensor] = []
    judged(name, attacks(evaluation)[name], evaluation, model, examples, perturbations, parts.append)
    return torch.cat(parts)


def _kept(attack: Perturb, keep: Callable[[Tensor], None]) -> Perturb:
    """The attack, which also hands its images to `keep`."""

    def kept(model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise) -> Tensor:
        attacked = attack(model, x, labels, perturbations, noise)
        keep(attacked)
        return attacked

    return kept


def _inner(settings: "Attack | None", precision: str) -> Inner:
    """The precision is that of gradients alone; what compares losses, or decides when an example is done, is float32.

    An example that leaves at its first broken iterate in bfloat16 sits on the decision boundary and may hold
    in float32: robustness would be overstated. So would it by differences of losses (spsa).
    """
    low = settings is not None and settings.family in GRADIENT_FAMILIES
    return Inner(precision=precision if low and settings.rule == "last" and settings.restarts == 1 else "fp32")


def verdicts(
    evaluation: "Evaluation", names: Sequence[str], model: nn.Module, examples: Split, perturbations: PerturbationSet
) -> Verdicts:
    """The table of `natural` and the named attacks on a model that is in no file."""
    chosen = columns(evaluation, names, model, examples, perturbations)
    return Verdicts.join(chosen, examples.y.cpu().numpy(), examples.index.cpu().numpy(), "")


def columns(
    evaluation: "Evaluation", names: Sequence[str], model: nn.Module, examples: Split, perturbations: PerturbationSet
) -> dict[str, Column]:
    """The columns of `natural`, which comes first, and of the named attacks."""
    found: dict[str, Column] = {}
    for name in dict.fromkeys([NATURAL, *names]):
        found[name] = column(name, evaluation, model, examples, perturbations, found.get(NATURAL))
    return found


def said(p: "Params", name: str) -> str:
    """An attack's parameters as verdict tables keep them: JSON; `{}` for `natural`, which has none.

    The hash of a user's own attack is among them. Batch size stays out: it decides no verdict.
    """
    settings = attacks(p.evaluation)[name]
    if settings is None:
        return "{}"
    code = own_code(p.evaluation).get(name)
    told = settings.model_dump(exclude_none=True) | ({"code": code} if code else {})
    how = {"seed": p.evaluation.seed, "precision": p.evaluation.precision}
    return json.dumps(told | {"set": p.threat.set, "eps": p.threat.eps} | how, sort_keys=True)
