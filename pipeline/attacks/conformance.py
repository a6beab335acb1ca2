"""What every attack must do, whoever wrote it: one suite for the catalogue's families and for plug-ins.

Each function of `SUITE` puts one question to an attack and raises `Nonconformity` where the answer is wrong.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import perturbation
from pipeline.attacks import suite
from pipeline.attacks.catalogue import compose
from pipeline.data.store import Split
from pipeline.errors import UserError, VerdictError
from pipeline.verdicts import Column

if TYPE_CHECKING:
    from pipeline.params import Attack, Evaluation, Threat

# Batched arithmetic rounds differently in another split; an attack may carry that through its steps.
ROUNDING = 1e-4


class Nonconformity(Exception):
    """An attack does what no attack may do; the message says what, in one line."""


@dataclass(frozen=True)
class Trial:
    """An attack with what it is tried on: a model, some images with their labels, a threat, how it is judged."""

    name: str
    settings: "Attack"
    evaluation: "Evaluation"
    threat: "Threat"
    model: nn.Module
    examples: Split

    @property
    def perturbations(self) -> perturbation.PerturbationSet:
        """The set of the threat."""
        return perturbation.build(self.threat.set, self.threat.eps)

    def column(self) -> Column:
        """The attack's verdicts."""
        return suite.judged(self.name, self.settings, self.evaluation, self.model, self.examples, self.perturbations)

    def on(self, examples: Split) -> "Trial":
        """The same attack on other images."""
        return replace(self, examples=examples)

    def judged_with(self, **changes: object) -> "Trial":
        """The same attack, judged otherwise."""
        return replace(self, evaluation=self.evaluation.model_copy(update=changes))


def stays_in_the_set_and_the_image_range(trial: Trial) -> None:
    """The attacked images lie in [0, 1] and in the set, to 1e-6: of this radius and of a twentieth of it."""
    for share in (1.0, 0.05):
        smaller = trial.threat.model_copy(update={"eps": share * trial.threat.eps})
        try:
            replace(trial, threat=smaller).column()
        except VerdictError as error:
            raise Nonconformity(str(error)) from error


def gives_the_same_bits_twice(trial: Trial) -> None:
    """Verdicts, margins and norms of two runs are equal."""
    _require_equal(trial.column(), trial.column(), 0.0, "two runs differ")


def ignores_the_batch_size(trial: Trial) -> None:
    """One by one, in threes, or all at once: the same verdicts."""
    together = trial.judged_with(batch_size=len(trial.examples.x)).column()
    for size in (1, 3):
        _require_equal(trial.judged_with(batch_size=size).column(), together, ROUNDING, f"batches of {size} differ")


def ignores_the_order(trial: Trial) -> None:
    """Verdicts belong to the example, not to its place."""
    e = trial.examples
    back = torch.arange(len(e.x) - 1, -1, -1, device=e.x.device)
    turned, column = trial.on(Split(e.x[back], e.y[back], e.index[back])).column(), trial.column()
    order = back.cpu().numpy()
    expected = Column(column.broken[order], column.margin[order], column.norm[order])
    _require_equal(turned, expected, ROUNDING, "another order of the examples gives other verdicts")


def leaves_no_trace(trial: Trial) -> None:
    """Modes, parameters, gradients, hooks and all random states are as before, also of a model that was training."""
    model = trial.model
    was_training = model.training
    model.train()
    next(model.children(), model).eval()
    before = _state(model)
    try:
        trial.column()
        changed = [name for (name, one), (_, other) in zip(before, _state(model), strict=True) if not _same(one, other)]
    finally:
        model.train(was_training)
    if changed:
        raise Nonconformity(f"changes {', '.join(changed)}")


def never_mends(trial: Trial) -> None:
    """What the model gets wrong by itself stays broken."""
    natural = suite.judged("natural", None, trial.evaluation, trial.model, trial.examples, trial.perturbations)
    if not trial.column().broken[natural.broken].all():
        raise Nonconformity("an example that is misclassified by itself holds under attack")


def does_nothing_on_an_empty_batch(trial: Trial) -> None:
    """No example in, none out, and the model is not even asked."""
    e = trial.examples
    attack = compose(trial.settings, trial.threat.eps, e)
    noise = suite.stream(trial.name, trial.evaluation).at(e.index[:0])
    with torch.no_grad():
        images = attack(trial.model.eval(), e.x[:0], e.y[:0], trial.perturbations, noise)
    if images.shape != e.x[:0].shape:
        raise Nonconformity(f"turns an empty batch into {tuple(images.shape)}")


def raises_the_loss(trial: Trial) -> None:
    """The mean margin falls: an attack that does nothing, or the opposite, is none."""
    natural = suite.judged("natural", None, trial.evaluation, trial.model, trial.examples, trial.perturbations)
    if not trial.column().margin.mean() < natural.margin.mean():
        raise Nonconformity("the mean margin under attack is no lower than that of the images themselves")


def is_stronger_with_more_steps(trial: Trial) -> None:
    """All its steps (of one: four) break more than the first alone, or as many and push the rest further.

    What has no steps is not asked.
    """
    if trial.settings.family == "fgsm" or ":" in trial.settings.family or trial.settings.parts == ["square"]:
        return
    steps = trial.settings.steps if trial.settings.steps > 1 else 4
    one, all_ = (
        replace(trial, settings=trial.settings.model_copy(update={"steps": count})).column() for count in (1, steps)
    )
    holding = ~(one.broken | all_.broken)
    further = not holding.any() or all_.margin[holding].mean() < one.margin[holding].mean()
    if all_.broken.sum() < one.broken.sum() or (all_.broken.sum() == one.broken.sum() and not further):
        raise Nonconformity(f"{steps} steps are weaker than one")


def takes_gradients_in_low_precision(trial: Trial) -> None:
    """With bfloat16 gradients the images stay valid, and all but a tenth of the verdicts are the same."""
    try:
        low = trial.judged_with(precision="bf16").column()
    except VerdictError as error:
        raise Nonconformity(f"with bf16 gradients: {error}") from error
    if (low.broken != trial.column().broken).mean() > 0.1:
        raise Nonconformity("with bf16 gradients more than a tenth of the verdicts change")


def refuses_a_radius_that_is_none(trial: Trial) -> None:
    """A set of radius 0 or less is refused in one line."""
    for eps in (0.0, -0.1):
        try:
            replace(trial, threat=trial.threat.model_copy(update={"eps": eps})).column()
        except UserError:
            continue
        raise Nonconformity(f"eps {eps:g} is accepted")


def refuses_images_out_of_range(trial: Trial) -> None:
    """Images below 0, above 1 or not numbers are refused, and the example is named."""
    e = trial.examples
    for pixel in (-0.01, 1.01, float("nan")):
        x = e.x.clone()
        x[-1].view(-1)[0] = pixel
        try:
            trial.on(Split(x, e.y, e.index)).column()
        except VerdictError as error:
            if f"example {int(e.index[-1])}:" in str(error):
                continue
        raise Nonconformity(f"a pixel of {pixel:g} is not refused with the name of its example")


Question = Callable[[Trial], None]
SUITE: tuple[Question, ...] = (
    stays_in_the_set_and_the_image_range,
    gives_the_same_bits_twice,
    ignores_the_batch_size,
    ignores_the_order,
    leaves_no_trace,
    never_mends,
    does_nothing_on_an_empty_batch,
    raises_the_loss,
    is_stronger_with_more_steps,
    takes_gradients_in_low_precision,
    refuses_a_radius_that_is_none,
    refuses_images_out_of_range,
)


def examine(trial: Trial) -> Iterator[tuple[str, str | None]]:
    """Every question's name in words, and what is wrong (None where nothing is)."""
    for question in SUITE:
        problem = None
        try:
            question(trial)
        except (Nonconformity, VerdictError) as error:
            problem = str(error)
        yield question.__name__.replace("_", " "), problem


def _require_equal(one: Column, other: Column, tolerance: float, problem: str) -> None:
    """Margins and norms within `tolerance`, and verdicts equal but where a margin is within it of 0."""
    near = (np.abs(one.margin) <= tolerance) & (np.abs(other.margin) <= tolerance)
    far = np.abs(one.margin - other.margin).max(initial=0) > tolerance
    far |= np.abs(one.norm - other.norm).max(initial=0) > tolerance
    differing = int(((one.broken != other.broken) & ~near).sum())
    if differing or far:
        raise Nonconformity(f"{problem} ({differing} verdicts)")


def _state(model: nn.Module) -> list[tuple[str, object]]:
    """All that an attack must leave alone, by name."""
    named = [(f"parameter or buffer {name}", value.clone()) for name, value in model.state_dict().items()]
    named += [(f"gradient of {name}", p.grad) for name, p in model.named_parameters()]
    named += [(f"requires_grad of {name}", p.requires_grad) for name, p in model.named_parameters()]
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        named += [(f"mode of {name}", module.training), (f"hooks of {name}", hooks)]
    named += [("torch's random state", torch.get_rng_state()), ("Python's random state", random.getstate())]
    return [*named, ("NumPy's random state", torch.from_numpy(np.random.get_state()[1].astype(np.int64)))]


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return one == other
