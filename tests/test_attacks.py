"""What the loop promises of any attack, and each family of the catalogue against its formula."""

import importlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline import params
from pipeline.ascent import Inner
from pipeline.attacks import loop, suite
from pipeline.attacks.catalogue import Perturb, compose
from pipeline.attacks.spsa import Spsa
from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.losses import margin
from pipeline.perturbation import Linf, PerturbationSet
from pipeline.seeding import Stream
from pipeline.verdicts import Column

FAMILIES = {
    "fgsm": params.Attack(family="fgsm"),
    "pgd": params.Attack(family="pgd", steps=6, step_size=0.1),
    "mim": params.Attack(family="mim", steps=6, step_size=0.1, momentum=1.0),
    "cw": params.Attack(family="cw", steps=6, step_size=0.1, confidence=50.0),
    "fea": params.Attack(family="fea", steps=4, step_size=0.1, targets=3),
    "adt_exp": params.Attack(family="adt_exp", steps=3, step_size=0.3, samples=2, lam=0.01, draws=4),
    "spsa": params.Attack(family="spsa", steps=8, step_size=0.05, samples=16, sigma=0.01),
    "autoattack": params.Attack(family="autoattack", steps=8, queries=20),
}
GRADIENTS = ["fgsm", "pgd", "mim", "cw"]  # the families that climb exact gradients

STREAM = Stream.of(0, "attack", "test")
BATCH = 4
POOL = 30  # images whose features FeaAttack may seek


@pytest.fixture
def classes() -> int:
    return 4  # the fewest that AutoAttack's targeted loss takes


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def attack(family: str, perturbations: PerturbationSet, make_examples) -> Perturb:
    return compose(FAMILIES[family], perturbations.eps, make_examples(POOL))


def run(attack, model: nn.Module, data: Split, perturbations: PerturbationSet, batch_size: int = BATCH) -> Column:
    return loop.run(attack, model, data, perturbations, STREAM, batch_size)


def assert_same_columns(one: Column, other: Column, tolerance: float) -> None:
    assert np.array_equal(one.broken, other.broken)
    np.testing.assert_allclose(one.margin, other.margin, rtol=0, atol=tolerance)
    np.testing.assert_allclose(one.norm, other.norm, rtol=0, atol=tolerance)


# Verdicts


def test_verdicts_are_those_of_the_attacked_images(attack, perturbations, make_model, make_examples) -> None:
    model, data = make_model().eval(), make_examples()
    column = run(attack, model, data, perturbations, batch_size=len(data.x))
    images = attack(model, data.x, data.y, perturbations, STREAM.at(data.index))
    logits = model(images).detach()
    np.testing.assert_allclose(column.margin, margin(logits, data.y), atol=1e-5)
    np.testing.assert_allclose(column.norm, perturbations.norm(images - data.x), atol=1e-5)
    assert np.array_equal(column.broken, (logits.argmax(1) != data.y).numpy())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_in_low_precision_leave_attacks_valid_and_verdicts_in_float32(
    attack, precision: str, perturbations, make_model, make_examples
) -> None:
    model, data, judged = make_model(), make_examples(40), []
    model.head.register_forward_hook(
        lambda layer, inputs, output: judged.append(output.dtype) if not torch.is_grad_enabled() else None
    )
    inner = Inner(precision=precision)
    column = loop.run(attack, model, data, perturbations, STREAM, 40, inner)  # which checks set and image range
    reference = run(attack, model, data, perturbations)
    assert judged[-1] == torch.float32
    assert (column.broken != reference.broken).mean() <= 0.1


@pytest.mark.parametrize(
    "settings, expected",
    [
        (FAMILIES["pgd"], "bf16"),
        (FAMILIES["cw"], "bf16"),
        (FAMILIES["spsa"], "fp32"),
        (FAMILIES["fea"], "fp32"),
        (FAMILIES["autoattack"], "fp32"),
        (params.Attack(family="pipeline.attacks.loop:identity"), "fp32"),
        (FAMILIES["pgd"].model_copy(update={"rule": "any"}), "fp32"),
        (FAMILIES["pgd"].model_copy(update={"restarts": 2}), "fp32"),
    ],
    ids=str,
)
def test_low_precision_is_for_gradients_alone(
    settings: params.Attack, expected: str, perturbations, make_model, make_examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where bfloat16 decides when an example is broken, or tells losses apart, robustness would be overstated."""
    used: list[str] = []
    monkeypatch.setattr(loop, "run", lambda *arguments: used.append(arguments[6].precision))
    evaluation = params.Evaluation(batch_size=4, seed=0, precision="bf16", devices=1, attacks={"one": settings})
    for name in ("natural", "one"):
        suite.column(name, evaluation, make_model(), make_examples(), perturbations)
    assert used == ["fp32", expected]


# What the loop promises of any attack


def test_costs_are_the_images_that_went_through_the_model(perturbations, make_model, make_examples) -> None:
    """PGD asks for a gradient a step; each further restart first asks which images hold."""
    model, data = make_model(), make_examples(9)
    plain = params.Attack(family="pgd", steps=5, step_size=1e-9)
    column = run(compose(plain, perturbations.eps, data), model, data, perturbations)
    assert (column.gradient_evaluations, column.forward_passes) == (9 * 5, 0)
    again = run(compose(plain.model_copy(update={"restarts": 2}), perturbations.eps, data), model, data, perturbations)
    assert 9 * 5 < again.gradient_evaluations <= 2 * 9 * 5 and again.forward_passes == 9
    assert run(loop.identity, model, data, perturbations).forward_passes == 0


def test_images_that_were_judged_before_are_not_judged_again(perturbations, make_model, make_examples) -> None:
    """Also by an attack that mends: it lowers the label's loss, so the images themselves count where it does."""
    model, data, judged = make_model(), make_examples(30), []
    ascent = compose(FAMILIES["pgd"], perturbations.eps, data)

    def mending(fast: nn.Module, x: Tensor, labels: Tensor, *rest) -> Tensor:
        return ascent(fast, x, (labels + 1) % 3, *rest)

    model.register_forward_hook(lambda *_: judged.append(1))
    natural = run(loop.identity, model, data, perturbations)
    spared = len(judged) // 2  # it judged the images twice, once as what the attack made
    for attack in (ascent, mending):
        judged.clear()
        once = loop.run(attack, model, data, perturbations, STREAM, BATCH)
        passes = len(judged)
        judged.clear()
        assert_same_columns(loop.run(attack, model, data, perturbations, STREAM, BATCH, natural=natural), once, 0)
        assert len(judged) == passes - spared > 0


class Fickle(nn.Module):
    """A model whose logits depend on the place in the batch: the first image's own class gets `lead` logits more."""

    def __init__(self, model: nn.Module, lead: float) -> None:
        super().__init__()
        self.model, self.lead = model, lead

    def forward(self, x: Tensor) -> Tensor:
        logits = 0 * self.model(x)
        logits[0, 0] += self.lead
        return logits


def test_a_model_that_says_two_things_of_one_image_is_refused_by_example(make_model, make_examples) -> None:
    data = make_examples(4)
    data.y.zero_()
    data.x.fill_(0.5)
    with pytest.raises(ValueError, match=f"example {int(data.index[0])}: the model says two things of one image"):
        run(loop.identity, Fickle(make_model(), 1.0), data, Linf(0.1))


def test_a_verdict_that_hangs_on_rounding_goes_to_the_attack(make_model, make_examples) -> None:
    data = make_examples(4)
    data.y.zero_()
    assert run(loop.identity, Fickle(make_model(), 1e-6), data, Linf(0.1)).broken.all()


@pytest.mark.parametrize("pixel", [-0.001, 1.001, float("nan")])
def test_an_image_out_of_range_is_refused_before_it_is_attacked(pixel: float, make_model, make_examples) -> None:
    data = make_examples()
    data.x[3, 0, 2, 2] = pixel
    with pytest.raises(ValueError, match=f"example {int(data.index[3])}: the image to attack leaves"):
        run(lambda *_: pytest.fail("attacked"), make_model(), data, Linf(0.1))


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


def test_images_of_another_shape_are_refused(make_model, make_examples) -> None:
    with pytest.raises(UserError, match=r"returns \(4, 1, 6, 3\) for images of \(4, 1, 6, 6\)"):
        run(lambda model, x, *_: x[..., :3], make_model(), make_examples(4), Linf(0.1))


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
    images = compose(FAMILIES["fgsm"], threat.eps, data)(model, data.x, data.y, threat, STREAM.at(data.index))
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
    relaxed = compose(FAMILIES["cw"].model_copy(update={"confidence": 0.0, "steps": 1}), perturbations.eps, data)
    start = perturbations.start(data.x, STREAM.at(data.index))
    logits = model.eval()((data.x + start).clamp(0, 1)).detach()
    settled = margin(logits, data.y).numpy() < -0.01  # broken by the start alone: no gradient, no step
    column = run(relaxed, model, data, perturbations)
    assert settled.any() and not natural.broken.all()
    np.testing.assert_allclose(column.margin[settled], margin(logits, data.y).numpy()[settled], atol=1e-5)


@pytest.mark.parametrize("threat_eps", [0.02, 0.1])
@pytest.mark.parametrize("family", GRADIENTS, indirect=True)
def test_every_gradient_family_finds_the_least_margins_of_a_linear_model(
    family, perturbations, linear_problem, threat_eps: float
) -> None:
    model, data, least_margins = linear_problem
    threat = type(perturbations)(threat_eps)
    changes = {} if family == "fgsm" else {"steps": 40, "step_size": threat_eps / 4}
    attack = compose(FAMILIES[family].model_copy(update=changes), threat.eps, data)
    column = run(attack, model, data, threat, batch_size=30)
    np.testing.assert_allclose(column.margin, least_margins(threat).numpy(), atol=2e-3 * threat_eps)
    np.testing.assert_allclose(column.norm, threat_eps, rtol=1e-6)


def test_spsa_comes_near_the_least_margins_of_a_linear_model(perturbations, linear_problem) -> None:
    model, data, least_margins = linear_problem
    threat = type(perturbations)(perturbations.eps / 8)
    natural, least = run(loop.identity, model, data, threat), least_margins(threat).numpy()
    attack = Spsa(steps=60, step_size=threat.eps / 10, samples=256, sigma=1e-3)
    column, most = run(attack, model, data, threat, batch_size=30), natural.margin - least
    assert (column.broken & ~natural.broken).any() and not column.broken.all()
    taken = ((natural.margin - column.margin) / most)[~column.broken]
    assert (taken > 0.9).all() and (taken < 1 + 1e-5).all()  # Adam's steps are not steepest in the L2 ball
    assert column.broken[least < -0.1 * most].all() and not column.norm[natural.broken].any()


# SPSA


def released_spsa(model, x: Tensor, y: Tensor, perturbations: PerturbationSet, noise, settings) -> Tensor:
    """ADT's spsa.py written out for one image x (C, H, W): torch's Adam, and C&W with confidence 50."""
    if model(x[None]).argmax() != y:
        return x
    image = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=settings.step_size)
    for step in range(settings.steps):
        signs = noise.signs(settings.samples // 2, *x.shape, draw=step)[0].double()
        signs = torch.cat([signs, -signs])
        with torch.no_grad():
            logits = model(image + settings.sigma * signs)
        others = logits.clone()
        others[:, y] = float("-inf")
        losses = -(logits[:, y] - others.amax(1) + 50).clamp(0)
        image.grad = -(losses.view(-1, 1, 1, 1) * signs).mean(0) / settings.sigma
        optimizer.step()
        delta = image.data - x
        if isinstance(perturbations, Linf):
            delta = delta.clip(-perturbations.eps, perturbations.eps)
        else:
            delta = delta * min(1.0, perturbations.eps / float(delta.norm()))
        image.data = (x + delta).clip(0, 1)
        if model(image[None]).argmax() != y:
            break
    return image.detach()


@pytest.mark.parametrize("eps_share", [0.1, 1.0])
def test_spsa_is_the_released_loop_image_by_image(perturbations, make_model, make_examples, eps_share: float) -> None:
    model, data = make_model(torch.float64).eval(), make_examples(12, dtype=torch.float64)
    threat = type(perturbations)(eps_share * perturbations.eps)
    settings = params.Attack(family="spsa", steps=3, step_size=0.05, samples=16, sigma=0.01)
    images = compose(settings, threat.eps, data)(model, data.x, data.y, threat, STREAM.at(data.index))
    rows = zip(data.x, data.y, data.index[:, None], strict=True)
    expected = [released_spsa(model, x, y, threat, STREAM.at(index), settings) for x, y, index in rows]
    torch.testing.assert_close(images, torch.stack(expected), rtol=0, atol=1e-9)


def test_the_estimate_of_spsa_is_the_gradient_of_the_margin(make_model, make_examples) -> None:
    model, data = make_model(torch.float64).eval(), make_examples(dtype=torch.float64)
    x = data.x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(margin(model(x), data.y).sum(), x)
    with torch.no_grad():
        estimate = Spsa(1, 0.01, samples=4000, sigma=1e-4).estimate(model, data.x, data.y, STREAM.at(data.index), 0)
    assert (torch.cosine_similarity(estimate.flatten(1), exact.flatten(1)) > 0.95).all()
    torch.testing.assert_close(estimate.flatten(1).norm(dim=1), exact.flatten(1).norm(dim=1), rtol=0.1, atol=0)


@pytest.mark.parametrize("group", [1, 7, 40])
def test_spsa_asks_for_logits_alone_a_group_at_a_time_and_only_about_examples_that_hold(
    group: int, perturbations, make_model, make_examples
) -> None:
    model, data, seen = make_model().eval(), make_examples(), []
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([1.0, 0.0, 0.0, 0.0])  # label 0 holds whatever the image
    data.y[:] = torch.arange(len(data.y)) % 2
    model.register_forward_hook(lambda layer, inputs, logits: seen.append((inputs[0], logits)))
    attack = Spsa(steps=3, step_size=0.05, samples=16, sigma=0.01, group=group)
    images = attack(model, data.x, data.y, perturbations, STREAM.at(data.index))
    assert not any(tensor.requires_grad for pair in seen for tensor in pair) and not images.requires_grad
    assert max(len(inputs) for inputs, _ in seen) <= group
    holding, wrong = int((data.y == 0).sum()), int((data.y == 1).sum())
    checks = 3 * holding + wrong  # one a step, of the label
    assert sum(len(inputs) for inputs, _ in seen) == holding * attack.queries_per_example + checks
    assert attack.queries_per_example == 3 * 16


def test_the_group_of_spsa_does_not_change_its_images(perturbations, make_model, make_examples) -> None:
    model, data = make_model(torch.float64).eval(), make_examples(dtype=torch.float64)
    one, *others = (
        Spsa(8, 0.05, 16, 0.01, group)(model, data.x, data.y, perturbations, STREAM.at(data.index))
        for group in (1024, 1, 7, 40)
    )
    for other in others:
        torch.testing.assert_close(other, one, rtol=0, atol=1e-9)


# Restarts, iterates, and a user's own attack


@pytest.mark.parametrize("stronger", [{"restarts": 4}, {"rule": "any"}, {"restarts": 4, "rule": "any"}], ids=str)
def test_restarts_and_any_iterate_break_all_that_the_plain_attack_breaks_and_more(
    stronger: dict, make_model, make_examples
) -> None:
    model, data, threat = make_model(), make_examples(200), Linf(0.09)
    plain = params.Attack(family="pgd", steps=2, step_size=2.5 * threat.eps)  # steps that overshoot
    first = run(compose(plain, threat.eps, data), model, data, threat).broken
    second = run(compose(plain.model_copy(update=stronger), threat.eps, data), model, data, threat).broken
    assert (second >= first).all() and second.sum() > first.sum()


def test_each_restart_begins_elsewhere(perturbations, make_model, make_examples) -> None:
    data, starts = make_examples(), []
    model = make_model().eval()
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([0.0, 0.0, 0.0, 0.0])
    data.y[:] = 0
    model.head.bias.data[0] = 1.0  # every example holds, so all restarts are made
    model.register_forward_pre_hook(lambda layer, inputs: starts.append(inputs[0]) if inputs[0].requires_grad else None)
    attack = compose(params.Attack(family="pgd", steps=1, step_size=0.01, restarts=3), perturbations.eps, data)
    attack(model, data.x, data.y, perturbations, STREAM.at(data.index))
    assert len(starts) == 3
    assert all((one != other).flatten(1).any(1).all() for one, other in itertools.combinations(starts, 2))


@pytest.mark.parametrize(
    "family, said",
    [
        ("no_such_module:attack", "cannot be imported: No module named 'no_such_module'"),
        ("pipeline.losses:nothing", "cannot be imported: module 'pipeline.losses' has no attribute 'nothing'"),
        ("math:pi", "math:pi: is no function"),
    ],
)
def test_an_attack_that_is_none_is_refused_in_one_line(family: str, said: str, make_examples) -> None:
    with pytest.raises(UserError) as caught:
        compose(params.Attack(family=family), 0.1, make_examples())
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_readmes_attack_breaks_more_with_more_draws(
    perturbations, make_model, make_examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (Path(__file__).parents[1] / "README.md").read_text().split("## Add an attack")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    (tmp_path / "readme_attack.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    model, data, broken = make_model(), make_examples(100), []
    for draws in (1, 30):
        own = params.Attack(family="readme_attack:random_search", options={"draws": draws})
        broken.append(run(compose(own, perturbations.eps, data), model, data, perturbations).broken)
    assert (broken[1] >= broken[0]).all() and broken[1].sum() > broken[0].sum()
