"""One conformance suite for every attack of the catalogue, and each family against its formula."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline import params
from pipeline.attacks import loop
from pipeline.attacks.catalogue import Attack, compose
from pipeline.data.store import Split
from pipeline.losses import margin
from pipeline.perturbation import Linf, PerturbationSet
from pipeline.seeding import Stream
from pipeline.verdicts import Column

FAMILIES = {
    "fgsm": params.Attack(family="fgsm"),
    "pgd": params.Attack(family="pgd", steps=6, step_size=0.1),
    "mim": params.Attack(family="mim", steps=6, step_size=0.1, momentum=1.0),
    "cw": params.Attack(family="cw", steps=6, step_size=0.1, confidence=50.0),
}
STREAM = Stream.of(0, "attack", "test")
BATCH = 4


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def attack(family: str, perturbations: PerturbationSet) -> Attack:
    return compose(FAMILIES[family], perturbations.eps)


def run(attack, model: nn.Module, data: Split, perturbations: PerturbationSet, batch_size: int = BATCH) -> Column:
    return loop.run(attack, model, data, perturbations, STREAM, batch_size)


def assert_same_columns(one: Column, other: Column, tolerance: float) -> None:
    assert np.array_equal(one.broken, other.broken)
    np.testing.assert_allclose(one.margin, other.margin, rtol=0, atol=tolerance)
    np.testing.assert_allclose(one.norm, other.norm, rtol=0, atol=tolerance)


def test_the_suite_covers_every_family_of_the_parameters() -> None:
    assert set(FAMILIES) == set(params.Attack.model_fields["family"].annotation.__args__)


# Conformance


def test_attacked_images_stay_in_the_set_and_in_the_image_range(
    attack, perturbations, make_model, make_examples
) -> None:
    data = make_examples()
    images = attack(make_model().eval(), data.x, data.y, perturbations, STREAM.at(data.index))
    assert images.shape == data.x.shape and images.min() >= 0 and images.max() <= 1
    assert (perturbations.norm(images - data.x) <= perturbations.eps + 1e-6).all()


def test_verdicts_are_those_of_the_attacked_images(attack, perturbations, make_model, make_examples) -> None:
    model, data = make_model().eval(), make_examples()
    column = run(attack, model, data, perturbations, batch_size=len(data.x))
    images = attack(model, data.x, data.y, perturbations, STREAM.at(data.index))
    logits = model(images).detach()
    np.testing.assert_allclose(column.margin, margin(logits, data.y), atol=1e-5)
    np.testing.assert_allclose(column.norm, perturbations.norm(images - data.x), atol=1e-5)
    assert np.array_equal(column.broken, (logits.argmax(1) != data.y).numpy())


def test_an_attack_run_twice_gives_the_same_bits(attack, perturbations, make_model, make_examples) -> None:
    first, second = (run(attack, make_model(), make_examples(), perturbations) for _ in range(2))
    assert_same_columns(first, second, tolerance=0)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_verdicts_do_not_depend_on_the_batch_size(attack, perturbations, make_model, make_examples, batch_size) -> None:
    model, data = make_model(), make_examples()
    assert_same_columns(
        run(attack, model, data, perturbations, batch_size), run(attack, model, data, perturbations), tolerance=1e-5
    )


def test_verdicts_belong_to_the_example_not_to_its_place(attack, perturbations, make_model, make_examples) -> None:
    model, data = make_model(), make_examples()
    back = torch.arange(len(data.x) - 1, -1, -1)
    turned = run(attack, model, Split(data.x[back], data.y[back], data.index[back]), perturbations)
    column = run(attack, model, data, perturbations)
    back = back.numpy()
    assert_same_columns(Column(column.broken[back], column.margin[back], column.norm[back]), turned, tolerance=1e-5)


@pytest.mark.usefixtures("untouched_random_state")
def test_an_attack_leaves_the_model_as_it_was(attack, perturbations, make_model, make_examples) -> None:
    model = make_model().train()
    model.features[1].eval()
    model.head.weight.requires_grad_(False)
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(attack, model, make_examples(), perturbations)
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == flags
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_an_attack_raises_the_mean_loss(attack, perturbations, make_model, make_examples) -> None:
    model, data = make_model().eval(), make_examples(50)
    images = attack(model, data.x, data.y, perturbations, STREAM.at(data.index))
    with torch.no_grad():
        assert cross_entropy(model(images), data.y) > cross_entropy(model(data.x), data.y)


# What the loop promises of any attack


def test_the_natural_column_is_the_model_on_the_images_themselves(perturbations, make_model, make_examples) -> None:
    model, data = make_model().eval(), make_examples()
    column = run(loop.identity, model, data, perturbations)
    assert np.array_equal(column.broken, (model(data.x).argmax(1) != data.y).numpy())
    assert column.broken.any() and not column.broken.all()
    assert not column.norm.any()


def leaving(distance: float, example: int):
    """An "attack" that moves one example by `distance` in one pixel, towards the middle of the image range."""

    def attack(model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise) -> Tensor:
        moved = x.clone()
        inward = torch.where(x[:, 0, 0, 0] < 0.5, 1.0, -1.0)
        moved[:, 0, 0, 0] += torch.where(noise.index == example, distance * inward, 0.0)
        return moved

    return attack


def test_an_attack_that_leaves_the_set_is_refused_by_example(perturbations, make_model, make_examples) -> None:
    data = make_examples()
    example = int(data.index[6])
    within, beyond = perturbations.eps * 0.5, perturbations.eps + 1e-4
    data.x[6, 0, 0, 0] = 0.0
    run(leaving(within, example), make_model(), data, perturbations)
    with pytest.raises(ValueError, match=f"example {example}:"):
        run(leaving(beyond, example), make_model(), data, perturbations)


@pytest.mark.parametrize("pixel", [-0.001, 1.001, float("nan")])
def test_an_attack_that_leaves_the_image_range_is_refused_by_example(pixel: float, make_model, make_examples) -> None:
    data = make_examples()
    data.x.fill_(0.5)

    def attack(model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise) -> Tensor:
        return torch.where((noise.index == data.index[5]).view(-1, 1, 1, 1), pixel, x)

    with pytest.raises(ValueError, match=f"example {int(data.index[5])}:"):
        run(attack, make_model(), data, Linf(0.9))


def test_a_model_that_says_nothing_is_broken(perturbations, make_model, make_examples) -> None:
    model = make_model()
    nn.init.constant_(model.head.bias, float("nan"))
    assert run(loop.identity, model, make_examples(), perturbations).broken.all()


# Each family against its formula


def test_fgsm_is_one_step_of_eps_along_the_sign_of_the_gradient(make_model, make_examples) -> None:
    model, data, threat = make_model(torch.float64).eval(), make_examples(dtype=torch.float64), Linf(0.2)
    x = data.x.clone().requires_grad_()
    cross_entropy(model(x), data.y).backward()
    expected = (data.x + 0.2 * x.grad.sign()).clamp(0, 1)
    images = compose(FAMILIES["fgsm"], threat.eps)(model, data.x, data.y, threat, STREAM.at(data.index))
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize("family", ["pgd", "mim", "cw"], indirect=True)
def test_iterated_attacks_are_the_textbook_loop_from_a_random_start(
    attack, family, perturbations, make_model, make_examples, textbook_ascent
) -> None:
    def carlini_wagner(logits: Tensor, labels: Tensor) -> Tensor:
        own = logits[torch.arange(len(labels)), labels]
        others = logits.masked_fill(nn.functional.one_hot(labels, logits.shape[1]).bool(), float("-inf"))
        return -(own - others.max(1).values + 50).clamp_min(0)

    def entropy(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, reduction="none")

    model, data, s = make_model(torch.float64).eval(), make_examples(dtype=torch.float64), FAMILIES[family]
    images = attack(model, data.x, data.y, perturbations, STREAM.at(data.index))
    start = perturbations.start(data.x, STREAM.at(data.index)).double()
    loss = carlini_wagner if family == "cw" else entropy
    expected = textbook_ascent(model, data.x, data.y, start, loss, perturbations, s.steps, s.step_size, s.momentum)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-9)


def test_the_confidence_of_cw_is_where_it_stops_pushing(perturbations, make_model, make_examples) -> None:
    data, model = make_examples(30), make_model()
    natural = run(loop.identity, model, data, perturbations)
    relaxed = compose(FAMILIES["cw"].model_copy(update={"confidence": 0.0, "steps": 1}), perturbations.eps)
    start = perturbations.start(data.x, STREAM.at(data.index))
    logits = model.eval()((data.x + start).clamp(0, 1)).detach()
    settled = margin(logits, data.y).numpy() < -0.01  # broken by the start alone: no gradient, no step
    column = run(relaxed, model, data, perturbations)
    assert settled.any() and not natural.broken.all()
    np.testing.assert_allclose(column.margin[settled], margin(logits, data.y).numpy()[settled], atol=1e-5)


@pytest.mark.parametrize("threat_eps", [0.02, 0.1])
def test_every_family_finds_the_least_margins_of_a_linear_model(
    family, perturbations, linear_problem, threat_eps: float
) -> None:
    model, data, least_margins = linear_problem
    threat = type(perturbations)(threat_eps)
    changes = {} if family == "fgsm" else {"steps": 40, "step_size": threat_eps / 4}
    attack = compose(FAMILIES[family].model_copy(update=changes), threat.eps)
    column = run(attack, model, data, threat, batch_size=30)
    np.testing.assert_allclose(column.margin, least_margins(threat).numpy(), atol=2e-3 * threat_eps)
    np.testing.assert_allclose(column.norm, threat_eps, rtol=1e-6)


def test_more_steps_never_help_the_defender_on_average(perturbations, make_model, make_examples) -> None:
    model, data = make_model().eval(), make_examples(60)

    def mean_loss(steps: int) -> float:
        attack = Attack(
            lambda logits, labels: cross_entropy(logits, labels, reduction="none"), steps, 0.05, random_start=True
        )
        images = attack(model, data.x, data.y, perturbations, STREAM.at(data.index))
        with torch.no_grad():
            return float(cross_entropy(model(images), data.y))

    losses = [mean_loss(steps) for steps in (0, 1, 5, 20)]
    assert losses == sorted(losses)
