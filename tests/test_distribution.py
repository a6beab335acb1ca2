"""The explicit adversarial distribution as an attack: the one that ADT_EXP trains on, judged by its samples."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline import distribution, params
from pipeline.adversaries.explicit import Explicit
from pipeline.adversaries.profiles import resolve
from pipeline.ascent import Inner, frozen
from pipeline.attacks import loop
from pipeline.attacks.distribution import ExplicitDistribution
from pipeline.data.store import Split
from pipeline.distribution import Search, sample, spread
from pipeline.losses import margin
from pipeline.perturbation import Linf, PerturbationSet
from pipeline.seeding import Noise, Stream

STREAM = Stream.of(0, "attack", "distribution")
STEPS, SAMPLES, STEP_SIZE, LAM = 4, 3, 0.3, 0.01


class Sine:
    """A user's set: the l-infinity ball filled through a sine, with nothing but the operations that sets must have."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        return Linf(self.eps).start(like, noise)

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.eps, self.eps)

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).amax(1)

    def squash(self, u: Tensor) -> tuple[Tensor, Tensor]:
        angle = math.pi / 2 * torch.tanh(u)
        slope = self.eps * torch.cos(angle) * math.pi / 2 * (1 - torch.tanh(u) ** 2)
        return self.eps * torch.sin(angle), slope.clamp_min(1e-30).log().flatten(1).sum(1)


def attack_of(draws: int, **changes) -> ExplicitDistribution:
    settings = {"steps": STEPS, "samples": SAMPLES, "step_size": STEP_SIZE, "lam": LAM} | changes
    return ExplicitDistribution(**settings, draws=draws)


def adversary_of(threat: PerturbationSet) -> Explicit:
    """ADT_EXP as released, with the numbers of the attack."""
    stated = params.Explicit.model_validate(
        {"as": "released", "steps": STEPS, "samples": SAMPLES, "inner_lr": STEP_SIZE, "lam": LAM}
    )
    return Explicit(resolve("adt_exp", stated), threat, 1, 6)


def run(attack: ExplicitDistribution, model: nn.Module, data: Split, threat: PerturbationSet) -> Tensor:
    with frozen(model) as view:
        return attack(view, data.x, data.y, threat, STREAM.at(data.index))


def labelled(model: nn.Module, data: Split) -> Split:
    """The images under the labels that the model gives them: no example is broken to begin with."""
    with torch.no_grad():
        return Split(data.x, model.eval()(data.x).argmax(1), data.index)


def without_preference(model: nn.Module) -> nn.Module:
    """A classifier that says class 0 of every image."""
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([1.0, *[0.0] * (len(model.head.bias) - 1)])
    return model


# The distribution that ADT_EXP trains on


def test_the_search_is_that_of_the_released_profile() -> None:
    switches = resolve("adt_exp", adversary_of(Linf(0.2)).settings)
    search = Search(LAM, STEPS, SAMPLES, STEP_SIZE)
    assert (search.initial_rho, search.accumulate, search.damping) == (
        switches.initial_rho,
        switches.accumulate,
        switches.damping,
    )


def test_its_first_sample_is_the_one_that_training_takes(perturbations, make_model, make_examples) -> None:
    model, data = make_model().eval(), make_examples()
    images = run(attack_of(draws=1), model, data, perturbations)
    assert torch.equal(images, adversary_of(perturbations)(model, data.x, data.y, STREAM.at(data.index)).x)


def by_hand(
    draws: int, model: nn.Module, data: Split, threat: PerturbationSet
) -> tuple[list[Tensor], list[list[float]]]:
    """Image by image: samples of ADT_EXP's distribution up to the first broken one, and their margins."""
    noise = STREAM.at(data.index)
    mean, rho = adversary_of(threat).fit(model, data.x, data.y, noise)
    normals = torch.stack([noise.normal(1, 6, 6, draw=STEPS + draw) for draw in range(draws)], 1)
    chosen, table = [], []
    for x, y, m, r, rows in zip(data.x, data.y, mean, rho, normals, strict=True):
        images, margins = [], []
        for normal in rows:
            u = m + softplus(r) * normal
            if isinstance(threat, Linf):
                delta = threat.eps * u.tanh()
            else:
                delta = threat.eps * torch.tanh(u.norm() / u.numel() ** 0.5) * u / u.norm()
            images.append((x + delta).clip(0, 1))
            logits = model(images[-1][None])[0].tolist()
            margins.append(logits.pop(y) - max(logits))
            if margins[-1] <= 0:
                break
        chosen.append(images[margins.index(min(margins))])
        table.append(margins)
    return chosen, table


@pytest.mark.usefixtures("double_noise")
def test_the_first_misclassified_sample_is_returned_else_the_one_of_least_margin(
    perturbations, make_model, make_examples
) -> None:
    model, threat = make_model(torch.float64), type(perturbations)(0.3 * perturbations.eps)
    data = labelled(model, make_examples(60, dtype=torch.float64))
    expected, table = by_hand(5, model, data, threat)
    broken = [margins[-1] <= 0 for margins in table]
    assert any(broken) and not all(broken)
    assert any(broken and len(margins) > 1 for broken, margins in zip(broken, table, strict=True))
    assert any(margins.index(min(margins)) < 4 for margins in table if len(margins) == 5)  # not always the last
    images = run(attack_of(draws=5), model, data, threat)
    torch.testing.assert_close(images, torch.stack(expected), rtol=0, atol=1e-9)


@pytest.mark.usefixtures("double_noise")
def test_where_nothing_breaks_the_sample_of_least_margin_is_returned(perturbations, make_model, make_examples) -> None:
    model, data = make_model(torch.float64).eval(), make_examples(dtype=torch.float64)
    model.head.bias.data[0] += 100
    data.y[:] = 0
    expected, table = by_hand(5, model, data, perturbations)
    assert {len(margins) for margins in table} == {5}
    images = run(attack_of(draws=5), model, data, perturbations)
    torch.testing.assert_close(images, torch.stack(expected), rtol=0, atol=1e-9)


@pytest.mark.usefixtures("double_noise")
def test_more_draws_break_no_less(perturbations, make_model, make_examples) -> None:
    model, threat = make_model(torch.float64), type(perturbations)(0.2 * perturbations.eps)
    data = labelled(model, make_examples(100, dtype=torch.float64))
    few, some, many = (loop.run(attack_of(draws), model, data, threat, STREAM, 50) for draws in (1, 3, 30))
    assert (some.broken >= few.broken).all() and (many.broken >= some.broken).all()
    assert 0 < few.broken.sum() < many.broken.sum() < len(data.x)
    hold = ~many.broken
    assert (some.margin[hold] <= few.margin[hold]).all() and (many.margin[hold] <= some.margin[hold]).all()


def test_the_search_makes_samples_more_harmful(perturbations, make_model, make_examples) -> None:
    model, threat = make_model(), type(perturbations)(0.3 * perturbations.eps)
    data = labelled(model, make_examples(60))
    margins = [
        loop.run(attack_of(4, steps=steps, lam=0.0), model, data, threat, STREAM, 60).margin.mean() for steps in (1, 7)
    ]
    assert margins[1] < margins[0]


def test_batch_statistics_are_those_of_single_samples(perturbations, make_model, make_examples) -> None:
    """With batch norm training, as in adt_exp.py's loop over samples: no pass has two samples of an image."""
    model, data, seen = make_model(), make_examples(), []
    model.head.register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    settings = adversary_of(perturbations).settings
    for mode, passes in (("train", [10] * STEPS * SAMPLES), ("eval", [10 * SAMPLES] * STEPS)):
        seen.clear()
        Explicit(settings, perturbations, 1, 6, Inner(mode)).fit(model, data.x, data.y, STREAM.at(data.index))
        assert seen == passes


# Sets, cost and memory


@pytest.mark.parametrize("far", [False, True], ids=["as found", "far from the origin"])
def test_samples_stay_in_the_set_and_in_the_image_range(far: bool, perturbations, make_model, make_examples) -> None:
    model, data = make_model(), make_examples(30)
    for threat in (perturbations, Sine(0.2)):
        images = run(attack_of(3, step_size=5.0 if far else STEP_SIZE), model, data, threat)
        assert images.min() >= 0 and images.max() <= 1
        assert (threat.norm(images - data.x) <= threat.eps + 1e-6).all()
        assert (images != data.x).flatten(1).any(1).all()


def test_a_broken_example_leaves_and_the_others_take_every_draw(perturbations, make_model, make_examples) -> None:
    model, data, seen = without_preference(make_model()).eval(), make_examples(), []
    data.y[:] = torch.arange(len(data.y)) % 2
    model.head.register_forward_hook(
        lambda layer, inputs, output: None if torch.is_grad_enabled() else seen.append(len(output))
    )
    run(attack_of(draws=4), model, data, perturbations)
    assert seen == [len(data.x), *[int((data.y == 0).sum())] * 3]


def test_evaluations_are_those_of_the_search_and_of_the_draws(perturbations, make_model, make_examples) -> None:
    data = make_examples(6)
    data.y[:] = 0
    column = loop.run(attack_of(4), without_preference(make_model()), data, perturbations, STREAM, 6)
    assert (column.gradient_evaluations, column.forward_passes) == (STEPS * SAMPLES * 6, 4 * 6)


@pytest.mark.usefixtures("double_noise")
@pytest.mark.parametrize("most, images", [(1, 10), (2 * 360, 20), (2**20, 30)])
def test_no_more_values_than_a_pass_takes_go_through_the_model_and_it_does_not_matter(
    most: int, images: int, perturbations, make_model, make_examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, seen = make_model(torch.float64).eval(), make_examples(10, dtype=torch.float64), []
    expected = run(attack_of(2), model, data, perturbations)
    monkeypatch.setattr(distribution, "_PASS", most)
    model.head.register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    torch.testing.assert_close(run(attack_of(2), model, data, perturbations), expected, rtol=0, atol=1e-9)
    assert max(seen) == images


@pytest.mark.usefixtures("double_noise")
def test_an_examples_samples_do_not_depend_on_its_batch(perturbations, make_model, make_examples) -> None:
    model, data, attack = make_model(torch.float64), make_examples(dtype=torch.float64), attack_of(3)
    together, some = run(attack, model, data, perturbations), torch.tensor([7, 2])
    apart = run(attack, model, Split(data.x[some], data.y[some], data.index[some]), perturbations)
    torch.testing.assert_close(apart, together[some], rtol=0, atol=1e-9)


class Silent(nn.Module):
    """A model that tells gradients, but whose logits are not numbers when it is asked for them alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if torch.is_grad_enabled() else torch.nan * self.model(x)


def test_a_sample_of_which_a_model_says_nothing_is_broken(perturbations, make_model, make_examples) -> None:
    model, data = make_model(), make_examples()
    column = loop.run(attack_of(3), Silent(model), data, perturbations, STREAM, 10)
    assert column.broken.all() and column.norm.all() and column.forward_passes == 10


def test_an_empty_batch_stays_empty(perturbations, make_model, make_examples) -> None:
    assert run(attack_of(3), make_model(), make_examples(0), perturbations).shape == (0, 1, 6, 6)


# Samples


@pytest.fixture
def parameters(make_examples: Callable[..., Split]) -> tuple[Tensor, Tensor, Tensor]:
    """(mu, rho) of five images (5, 1, 6, 6), and four draws of each (5, 4, 1, 6, 6)."""
    rows = STREAM.at(torch.arange(5))
    return rows.normal(1, 6, 6), rows.normal(1, 6, 6, draw=1), rows.normal(4, 1, 6, 6, draw=2)


def test_spread_is_a_sample_a_draw_with_those_of_an_image_beside_each_other(
    parameters, perturbations, make_examples
) -> None:
    x, (mean, raw_scale, draws) = make_examples(5).x, parameters
    images, entropy = spread(perturbations, x, mean, raw_scale, draws)
    assert images.shape == (20, 1, 6, 6) and entropy.shape == (20,)
    for place in range(4):
        delta, term = sample(perturbations, mean, raw_scale, draws[:, place])
        torch.testing.assert_close(images[place::4], (x + delta).clamp(0, 1))
        torch.testing.assert_close(entropy[place::4], term)


def test_the_delta_gradient_is_that_of_the_loss_and_nothing_where_the_image_is_clipped(
    make_model, make_examples
) -> None:
    model, data = make_model(torch.float64).eval(), make_examples(dtype=torch.float64)
    delta = (STREAM.at(data.index).normal(1, 6, 6).double() / 5).requires_grad_()
    images = (data.x + delta).clamp(0, 1)
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(model(images), data.y, reduction="sum"), delta)
    got = distribution.delta_gradient(model, data.x, data.y, delta.detach())
    clipped = (images == 0) | (images == 1)
    assert clipped.any() and not got[clipped & (data.x + delta != images)].any()
    inside = ~clipped
    torch.testing.assert_close(got[inside], expected[inside], rtol=0, atol=1e-12)


def test_margins_of_the_column_are_those_of_the_returned_samples(perturbations, make_model, make_examples) -> None:
    model, threat = make_model(), type(perturbations)(0.3 * perturbations.eps)
    data = labelled(model, make_examples(20))
    column = loop.run(attack_of(3), model, data, threat, STREAM, 20)
    with torch.no_grad():
        expected = margin(model.eval()(run(attack_of(3), model, data, threat)), data.y)
    torch.testing.assert_close(torch.from_numpy(column.margin), expected, rtol=0, atol=1e-5)
