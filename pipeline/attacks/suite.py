"""The attacks of `evaluation` in params.yaml, by name: what the attack stage and the studies run."""

from typing import TYPE_CHECKING

from torch import nn

from pipeline.attacks import loop
from pipeline.attacks.catalogue import compose
from pipeline.data.store import Split
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Stream
from pipeline.verdicts import NATURAL, Column, Verdicts

if TYPE_CHECKING:
    from pipeline.params import Attack, Evaluation


def attacks(evaluation: "Evaluation") -> "dict[str, Attack | None]":
    """Every attack's settings; `natural`, which has none, comes first."""
    return {NATURAL: None} | dict(evaluation.attacks)


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
    )


def verdicts(evaluation: "Evaluation", model: nn.Module, examples: Split, perturbations: PerturbationSet) -> Verdicts:
    """The table of every attack on a model that is in no file."""
    columns = {name: column(name, evaluation, model, examples, perturbations) for name in attacks(evaluation)}
    return Verdicts.join(columns, examples.y.cpu().numpy(), examples.index.cpu().numpy(), "")
