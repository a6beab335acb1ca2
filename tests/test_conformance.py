"""The conformance suite on every family and on plug-ins; and that it catches attacks which do not conform."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline import params
from pipeline.attacks import conformance
from pipeline.attacks.conformance import SUITE, Nonconformity, Question, Trial
from pipeline.perturbation import L2, PerturbationSet, onto_images
from pipeline.seeding import Noise
from pipeline.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
# Every family, the options of the loop, each part of AutoAttack, and a plug-in.
ATTACKS = {
    "fgsm": params.Attack(family="fgsm"),
    "pgd": params.Attack(family="pgd", steps=6, step_size=0.1),
    "pgd, restarts": params.Attack(family="pgd", steps=4, step_size=0.1, restarts=3),
    "pgd, any iterate": params.Attack(family="pgd", steps=6, step_size=0.1, rule="any"),
    "mim": params.Attack(family="mim", steps=6, step_size=0.1, momentum=1.0),
    "mim, any iterate, restarts": params.Attack(
        family="mim", steps=4, step_size=0.1, momentum=1.0, rule="any", restarts=2
    ),
    "cw": params.Attack(family="cw", steps=6, step_size=0.1, confidence=50.0),
    "fea": params.Attack(family="fea", steps=8, step_size=0.1, targets=3),
    "adt_exp": params.Attack(family="adt_exp", steps=4, step_size=0.3, samples=2, lam=0.01, draws=4),
    "spsa": params.Attack(family="spsa", steps=8, step_size=0.05, samples=16, sigma=0.01),
    "autoattack": params.Attack(family="autoattack", steps=8, queries=20),
    "apgd-t": params.Attack(family="autoattack", steps=8, queries=1, parts=["apgd-t"]),
    "square": params.Attack(family="autoattack", steps=1, queries=30, parts=["square"]),
    "plug-in": params.Attack(family="test_conformance:corner", options={"draws": 3}),
}


def corner(
    model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise, draws: int
) -> Tensor:
    """A plug-in: of some random directions of full length, the one with the greatest loss."""
    worst, images = torch.full((len(x),), -torch.inf, dtype=x.dtype), x
    for draw in range(draws):
        far = perturbations.direction(noise.normal(*x.shape[1:], draw=draw).to(x.dtype))
        candidate = onto_images(x, perturbations.project(perturbations.eps * far))
        with torch.no_grad():
            loss = cross_entropy(model(candidate), labels, reduction="none")
        images = torch.where((loss > worst).view(-1, 1, 1, 1), candidate, images)
        worst = torch.maximum(worst, loss)
    return images


@pytest.fixture
def classes() -> int:
    return 4  # the fewest that AutoAttack's targeted loss takes


@pytest.fixture
def make_trial(perturbations: PerturbationSet, make_model, make_examples) -> Callable[[params.Attack], Trial]:
    """A trial on a small network and random images, of which it gets some wrong and some right."""

    def make(settings: params.Attack) -> Trial:
        evaluation = params.Evaluation(batch_size=4, seed=0, precision="fp32", devices=1, attacks={"one": settings})
        name = "l2" if isinstance(perturbations, L2) else "linf"
        threat = params.Threat(set=name, eps=perturbations.eps)
        return Trial("one", settings, evaluation, threat, make_model(), make_examples(16))

    return make


def test_the_suite_is_put_to_every_family_of_the_parameters() -> None:
    assert {attack.family for attack in ATTACKS.values()} >= set(params.FAMILIES)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("question", SUITE, ids=lambda question: question.__name__)
def test_an_attack(question: Question, name: str, make_trial) -> None:
    question(make_trial(ATTACKS[name]))


@pytest.mark.parametrize("question", SUITE, ids=lambda question: question.__name__)
def test_a_users_own_attacks_of_the_committed_parameters(question: Question, make_trial) -> None:
    """None are committed; who names one in params.yaml has it tried here."""
    named = params.parse(read_yaml(ROOT / "params.yaml"), "params.yaml").evaluation.attacks.values()
    for settings in named:
        if ":" in settings.family:
            question(make_trial(settings))


# Attacks that do not conform


def too_far(model, x, labels, perturbations, noise):
    return onto_images(x, 3 * perturbations.start(x, noise))


def from_global_state(model, x, labels, perturbations, noise):
    return onto_images(x, perturbations.project(torch.randn_like(x)))


def by_place(model, x, labels, perturbations, noise):
    first = perturbations.start(x, Noise(1, torch.arange(len(x))))
    return onto_images(x, first)


def training(model, x, labels, perturbations, noise):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 1
    random.random()
    return corner(model, x, labels, perturbations, noise, 2)


def forgetting_the_shape(model, x, labels, perturbations, noise):
    return x if len(x) else x.flatten(1)


def idle(model, x, labels, perturbations, noise):
    return x


@pytest.mark.parametrize(
    "name, question",
    [
        ("too_far", conformance.stays_in_the_set_and_the_image_range),
        ("from_global_state", conformance.gives_the_same_bits_twice),
        ("by_place", conformance.ignores_the_batch_size),
        ("by_place", conformance.ignores_the_order),
        ("from_global_state", conformance.leaves_no_trace),
        ("training", conformance.leaves_no_trace),
        ("forgetting_the_shape", conformance.does_nothing_on_an_empty_batch),
        ("idle", conformance.raises_the_loss),
    ],
)
def test_what_does_not_conform_is_caught(name: str, question: Question, make_trial) -> None:
    with pytest.raises(Nonconformity) as caught:
        question(make_trial(params.Attack(family=f"test_conformance:{name}")))
    assert "\n" not in str(caught.value)


def test_a_loop_that_loses_its_way_is_caught(make_trial, monkeypatch: pytest.MonkeyPatch) -> None:
    climb = conformance.suite.compose

    def weaker(settings: params.Attack, eps: float, pool):
        return climb(settings.model_copy(update={"steps": 9 - settings.steps}), eps, pool)

    monkeypatch.setattr(conformance.suite, "compose", weaker)
    with pytest.raises(Nonconformity, match="8 steps are weaker than one"):
        conformance.is_stronger_with_more_steps(make_trial(params.Attack(family="pgd", steps=8, step_size=0.05)))


def test_examine_puts_every_question_and_says_what_is_wrong(make_trial) -> None:
    answers = dict(conformance.examine(make_trial(params.Attack(family="test_conformance:idle"))))
    assert len(answers) == len(SUITE)
    assert [question for question, problem in answers.items() if problem] == ["raises the loss"]


def test_examine_goes_on_after_an_attack_that_cannot_be_judged(make_trial) -> None:
    answers = dict(conformance.examine(make_trial(params.Attack(family="test_conformance:too_far"))))
    assert len(answers) == len(SUITE) and "leaves [0, 1] or the perturbation set" in answers["never mends"]


def test_a_trial_keeps_what_it_is_not_told_to_change(make_trial) -> None:
    trial = make_trial(ATTACKS["pgd"])
    assert replace(trial, name="other").examples is trial.examples
    assert trial.judged_with(batch_size=7).evaluation.batch_size == 7
    assert np.array_equal(trial.column().broken, trial.judged_with(batch_size=7).column().broken)
