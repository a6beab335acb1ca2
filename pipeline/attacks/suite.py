"""The attacks of `evaluation` in params.yaml, by name: what the attack stage and the studies run."""

from typing import TYPE_CHECKING

from torch import nn

from pipeline.ascent import Inner
from pipeline.attacks import loop
from pipeline.attacks.catalogue import GRADIENT_FAMILIES, compose, source
from pipeline.data.store import Split
from pipeline.files import digest_file
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Stream
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


def column(
    name: str, evaluation: "Evaluation", model: nn.Module, examples: Split, perturbations: PerturbationSet
) -> Column:
    """The verdicts of one attack on one model; random starts come from a stream named after the attack."""
    settings = attacks(evaluation)[name]
    return loop.run(
        loop.identity if settings is None else compose(settings, perturbations.eps),
        model,
        examples,
        perturbations,
        Stream.of(evaluation.seed, "attack", name),
        evaluation.batch_size,
        _inner(settings, evaluation.precision),
    )


def _inner(settings: "Attack | None", precision: str) -> Inner:
    """The precision is that of gradients alone; what compares losses, or decides when an example is done, is float32.

    An example that leaves at its first broken iterate in bfloat16 sits on the decision boundary and may hold
    in float32: robustness would be overstated. So would it by differences of losses (spsa).
    """
    low = settings is not None and settings.family in GRADIENT_FAMILIES
    return Inner(precision=precision if low and settings.rule == "last" and settings.restarts == 1 else "fp32")


def verdicts(evaluation: "Evaluation", model: nn.Module, examples: Split, perturbations: PerturbationSet) -> Verdicts:
    """The table of every attack on a model that is in no file."""
    columns = {name: column(name, evaluation, model, examples, perturbations) for name in attacks(evaluation)}
    return Verdicts.join(columns, examples.y.cpu().numpy(), examples.index.cpu().numpy(), "")
