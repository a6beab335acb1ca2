"""The attacks of `evaluation` in params.yaml, by name: what the attack stage and the studies run."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.ascent import Inner
from pipeline.attacks import loop
from pipeline.attacks.catalogue import GRADIENT_FAMILIES, Perturb, compose, source
from pipeline.data.store import Split
from pipeline.errors import VerdictError
from pipeline.files import digest_file
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Noise, Stream
from pipeline.verdicts import NATURAL, Column, Verdicts

if TYPE_CHECKING:
    from pipeline.params import Attack, Evaluation


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
    return [chosen, evaluation.model_dump(exclude={"attacks"})]


def column(
    name: str, evaluation: "Evaluation", model: nn.Module, examples: Split, perturbations: PerturbationSet
) -> Column:
    """The verdicts of one attack of `evaluation` on one model."""
    return judged(name, attacks(evaluation)[name], evaluation, model, examples, perturbations)


def judged(
    name: str,
    settings: "Attack | None",
    evaluation: "Evaluation",
    model: nn.Module,
    examples: Split,
    perturbations: PerturbationSet,
    keep: Callable[[Tensor], None] | None = None,
) -> Column:
    """The verdicts of any attack (none: of the images themselves), judged as `evaluation` says.

    Random numbers come from a stream named after the attack. `keep` receives the attacked
    images of every batch, in the order of `examples`. `VerdictError` names attack and example.
    """
    attack = loop.identity if settings is None else compose(settings, perturbations.eps, examples)
    try:
        return loop.run(
            attack if keep is None else _kept(attack, keep),
            model,
            examples,
            perturbations,
            stream(name, evaluation),
            evaluation.batch_size,
            _inner(settings, evaluation.precision),
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
    chosen = dict.fromkeys([NATURAL, *names])
    columns = {name: column(name, evaluation, model, examples, perturbations) for name in chosen}
    return Verdicts.join(columns, examples.y.cpu().numpy(), examples.index.cpu().numpy(), "")
