"""Adversaries: the contract all share, and each method's samples against its equations."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_settings import METHODS, train_settings
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn.functional import cross_entropy, softplus

from pipeline import adversaries, params
from pipeline.adversaries.amortized import generator_input
from pipeline.adversaries.explicit import Explicit
from pipeline.adversaries.profiles import PROFILES, resolve
from pipeline.perturbation import Linf, PerturbationSet, onto_images
from pipeline.seeding import Noise, Stream, seeded_globals
from pipeline.training.loop import Trainer

AMORTIZED = {"adt_exp_am", "adt_imp_am"}
DISTRIBUTIONAL = AMORTIZED | {"adt_exp"}
# The methods that search anew for each image, without looking at the others of its batch.
INNER = {"at_fgsm", "at_pgd", "trades", "adt_exp"}
NOISE = Stream.of(0, "adversary", 1)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(perturbations: PerturbationSet) -> Callable[..., adversaries.Adversary]:
    """The adversary of a method for images of 6x6, with changed settings; equal calls give equal weights."""

    def make(name: str, **changes) -> adversaries.Adversary:
        with seeded_globals(Stream.of(0, "test adversary")):
            return adversaries.build(name, METHODS[name].model_copy(update=changes), perturbations, 1, 6)

    return make


def explicit(perturbations: PerturbationSet, **changes) -> Explicit:
    return Explicit(METHODS["adt_exp"].model_copy(update=changes), perturbations, 1, 6)


def without_preference(model: nn.Module) -> nn.Module:
    """A classifier whose loss is the same for every image."""
    nn.init.zeros_(model.head.weight)
    return model


def test_every_method_of_the_parameters_has_an_adversary() -> None:
    assert set(adversaries.METHODS) == set(params.Methods.model_fields)


def test_samples_stay_in_the_set_and_in_the_image_range(method, make, make_model, make_examples) -> None:
    data, adversary = make_examples(), make(method)
    samples = adversary(make_model(), data.x, data.y, NOISE.at(data.index))
    assert samples.x.shape == data.x.shape
    assert samples.x.min() >= 0 and samples.x.max() <= 1
    assert (adversary.perturbations.norm(samples.x - data.x) <= adversary.perturbations.eps + 1e-6).all()
    assert torch.equal(samples.x, data.x) == (method == "standard")


@pytest.mark.parametrize("method", sorted(DISTRIBUTIONAL), indirect=True)
def test_several_samples_of_an_image_stand_beside_each_other_and_differ(
    method, make, make_model, make_examples
) -> None:
    data, adversary = make_examples(), make(method, outer_samples=3)
    samples = adversary(make_model(), data.x, data.y, NOISE.at(data.index)).x.detach()
    assert len(samples) == 3 * len(data.x) and adversary.training_evaluations == 3
    deltas = samples - data.x.repeat_interleave(3, 0)
    assert (adversary.perturbations.norm(deltas) <= adversary.perturbations.eps + 1e-6).all()
    assert (deltas[::3] != deltas[1::3]).flatten(1).any(1).all()


@pytest.mark.usefixtures("untouched_random_state")
def test_an_adversary_leaves_the_model_and_global_random_states_as_they_were(
    method, make, make_model, make_examples
) -> None:
    model, data, adversary = make_model().train(), make_examples(), make(method)
    model.features[1].eval()
    model.head.bias.requires_grad_(False)
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adversary(model, data.x, data.y, NOISE.at(data.index))
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_same_noise_gives_the_same_samples_and_other_noise_others(method, make, make_model, make_examples) -> None:
    model, data = make_model(), make_examples()
    first, again = (make(method)(model, data.x, data.y, NOISE.at(data.index)).x for _ in range(2))
    other = make(method)(model, data.x, data.y, Stream.of(0, "adversary", 2).at(data.index)).x
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (method in ("standard", "at_fgsm"))  # these do not draw


@pytest.mark.usefixtures("double_noise")
@pytest.mark.parametrize("method", sorted(INNER), indirect=True)
def test_an_examples_inner_search_does_not_depend_on_its_batch(method, make, make_model, make_examples) -> None:
    model, data, adversary = make_model(torch.float64), make_examples(dtype=torch.float64), make(method)
    together = adversary(model, data.x, data.y, NOISE.at(data.index)).x
    parts = [adversary(model, data.x[p], data.y[p], NOISE.at(data.index[p])).x for p in ([7], [0, 1, 2])]
    torch.testing.assert_close(torch.cat(parts), together[[7, 0, 1, 2]], rtol=0, atol=1e-9)


def test_gradient_evaluations_count_the_images_through_the_classifier(method, make, make_model, make_examples) -> None:
    model, data, adversary = make_model(), make_examples(), make(method)
    images = []

    def count(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        if torch.is_grad_enabled():  # predictions alone are not counted
            images.append(len(output))

    model.head.register_forward_hook(count)
    adversary(model, data.x, data.y, NOISE.at(data.index))
    assert sum(images) == adversary.gradient_evaluations * len(data.x)


def test_only_amortised_samples_carry_a_graph_and_a_penalty(method, make, make_model, make_examples) -> None:
    data = make_examples()
    samples = make(method)(make_model(), data.x, data.y, NOISE.at(data.index))
    assert samples.x.requires_grad == (samples.penalty is not None) == (method in AMORTIZED)
    assert not any(value.requires_grad for value in samples.stats.values())


def test_what_can_be_learnt_is_what_the_optimiser_has(method, make) -> None:
    adversary = make(method)
    optimizer = adversary.optimizer()
    stepped = [] if optimizer is None else [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in stepped} == {id(p) for p in adversary.parameters()}


def test_generator_and_encoder_have_their_released_betas(make) -> None:
    assert [group["betas"] for group in make("adt_exp_am").optimizer().param_groups] == [(0.5, 0.999)]
    assert [group["betas"] for group in make("adt_imp_am").optimizer().param_groups] == [(0.5, 0.999), (0.9, 0.999)]


# ADT_EXP


def entropy_term(perturbations: PerturbationSet, mean: Tensor, sigma: Tensor, draw: Tensor) -> Tensor:
    """-log p(delta / eps) / d of delta = squash(mean + sigma draw), one value a row."""
    d = draw[0].numel()
    u = mean + sigma * draw
    if isinstance(perturbations, Linf):
        tanh = TanhTransform(cache_size=1)
        squashed = tanh(u)
        return -TransformedDistribution(Normal(mean, sigma), tanh).log_prob(squashed).flatten(1).mean(1)
    # The radial map's log-determinant: one direction along u, d - 1 across it.
    length = u.flatten(1).norm(dim=1)
    radius = torch.tanh(length / d**0.5)
    log_det = torch.log((1 - radius**2) / d**0.5) + (d - 1) * torch.log(radius / length)
    return (-Normal(mean, sigma).log_prob(u).flatten(1).sum(1) + log_det) / d


def squash(perturbations: PerturbationSet, u: Tensor) -> Tensor:
    if isinstance(perturbations, Linf):
        return perturbations.eps * torch.tanh(u)
    length = u.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return perturbations.eps * torch.tanh(length / u[0].numel() ** 0.5) * u / length


def fit_as_released(
    model: nn.Module, x: Tensor, y: Tensor, noise: Noise, perturbations: PerturbationSet, settings: params.Explicit
) -> tuple[Tensor, Tensor]:
    """Algorithm EXP: Adam(betas=(0, 0)) on (mu, rho), `samples` backward passes a step, gradients kept or zeroed."""
    mean = torch.zeros_like(x, requires_grad=True)
    rho = torch.full_like(x, settings.initial_rho).requires_grad_()
    adam = torch.optim.Adam([mean, rho], lr=settings.inner_lr, betas=(0.0, 0.0), eps=settings.damping, maximize=True)
    for step in range(settings.steps):
        if not settings.accumulate:
            adam.zero_grad()
        draws = noise.normal(settings.samples, *x.shape[1:], draw=step)
        for s in range(settings.samples):
            u = mean + softplus(rho) * draws[:, s]
            images = (x + squash(perturbations, u)).clamp(0, 1)
            loss = cross_entropy(model(images), y, reduction="none")
            entropy = entropy_term(perturbations, mean, softplus(rho), draws[:, s])
            ((loss + settings.lam * entropy) / settings.samples).sum().backward()
        adam.step()
    return mean.detach(), rho.detach()


@pytest.mark.usefixtures("double_noise")
@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_the_explicit_distribution_is_the_one_torchs_adam_finds(
    make_model, make_examples, perturbations, accumulate: bool, lam: float
) -> None:
    adversary = explicit(perturbations, accumulate=accumulate, lam=lam, steps=4, initial_rho=-0.5)
    model, data = make_model(torch.float64).eval(), make_examples(dtype=torch.float64)
    noise = NOISE.at(data.index)
    got = adversary.fit(model, data.x, data.y, noise)
    expected = fit_as_released(model, data.x, data.y, noise, perturbations, adversary.settings)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("double_noise")
def test_the_training_sample_is_a_fresh_draw_from_the_distribution_found(
    make_model, make_examples, perturbations
) -> None:
    adversary, model, data = explicit(perturbations), make_model(torch.float64), make_examples(dtype=torch.float64)
    noise = NOISE.at(data.index)
    mean, rho = adversary.fit(model, data.x, data.y, noise)
    draw = noise.normal(1, 6, 6, draw=adversary.settings.steps)
    expected = (data.x + squash(perturbations, mean + softplus(rho) * draw)).clamp(0, 1)
    samples = adversary(model, data.x, data.y, noise)
    torch.testing.assert_close(samples.x, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        samples.stats["entropy"], entropy_term(perturbations, mean, softplus(rho), draw).mean(), rtol=0, atol=1e-9
    )


def test_without_lambda_only_the_loss_moves_the_distribution(make_model, make_examples, perturbations) -> None:
    data = make_examples()
    model = without_preference(make_model())
    mean, rho = explicit(perturbations, lam=0.0).fit(model, data.x, data.y, NOISE.at(data.index))
    assert not mean.any() and not rho.any()


def test_lambda_alone_widens_a_narrow_distribution(make_model, make_examples, perturbations) -> None:
    data = make_examples()
    model = without_preference(make_model())
    adversary = explicit(perturbations, lam=1.0, initial_rho=-3.0)
    _, rho = adversary.fit(model, data.x, data.y, NOISE.at(data.index))
    assert (rho > -3).all()


def test_entropy_grows_with_lambda(make_model, make_examples, perturbations) -> None:
    data, model = make_examples(30), make_model()
    entropies = [
        float(explicit(perturbations, lam=lam, steps=7)(model, data.x, data.y, NOISE.at(data.index)).stats["entropy"])
        for lam in (0.0, 0.01, 0.1, 1.0)
    ]
    assert (np.diff(entropies) > 0).all(), entropies


def test_the_distribution_found_is_more_harmful_than_the_first(make_model, make_examples, perturbations) -> None:
    data, model = make_examples(30), make_model().eval()
    adversary = explicit(perturbations, lam=0.0, steps=7, initial_rho=0.0)
    noise = NOISE.at(data.index)
    mean, rho = adversary.fit(model, data.x, data.y, noise)
    draw = noise.normal(1, 6, 6, draw=99)
    found, first = (
        onto_images(data.x, squash(perturbations, m + softplus(r) * draw))
        for m, r in ((mean, rho), (0 * mean, 0 * rho))
    )
    assert cross_entropy(model(found), data.y) > cross_entropy(model(first), data.y)


# The amortised methods


def maps_by_hand(model: nn.Module, x: Tensor, y: Tensor, perturbations: PerturbationSet, mode: str) -> Tensor:
    """[x, g1, g2]: the image, its gradient, and the gradient at its FGSM example, of the batch mean as released."""

    def gradient_at(images: Tensor) -> Tensor:
        images = images.clone().requires_grad_()
        return torch.autograd.grad(cross_entropy(model(images), y), images)[0]

    first = gradient_at(x)
    step = first.sign() if isinstance(perturbations, Linf) else first / first.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    second = gradient_at((x + perturbations.eps * step).clamp(0, 1))
    rescale = {
        "raw": lambda g: g,
        "sign": torch.sign,
        "normalized": lambda g: g / g.abs().mean((1, 2, 3), keepdim=True),
    }[mode]
    return torch.cat([x, rescale(first), rescale(second)], 1)


@pytest.mark.parametrize("mode", ["raw", "sign", "normalized"])
def test_the_generator_sees_the_image_its_gradient_and_the_one_at_its_fgsm_example(
    make_model, make_examples, perturbations, mode: str
) -> None:
    model, data = make_model(torch.float64), make_examples(dtype=torch.float64)
    got = generator_input(model.train(), data.x, data.y, perturbations, mode)
    expected = maps_by_hand(model.eval(), data.x, data.y, perturbations, mode)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


# One training step of each method, through the training loop, against the equations


def divergence(p: Tensor, logits: Tensor) -> Tensor:
    """KL(p || softmax(logits)) = sum p (log p - log softmax), one value a row."""
    return (p * (p.log() - logits.log_softmax(1))).sum(1)


def transported(clean: Tensor, logits: Tensor, s: params.FeatureScatter) -> Tensor:
    """Sinkhorn by scaling a kernel: the transport cost between two batches of logits, as the released loop iterates."""
    n = len(clean)
    unit = [v / v.norm(dim=1, keepdim=True) for v in (clean, logits)]
    cost = (1 - unit[0] @ unit[1].T).clamp_min(0)
    kernel, left, right = torch.exp(-cost / s.regularization), torch.ones(n).double(), torch.ones(n).double()
    for _ in range(s.iterations):
        before = left
        # The released code adds 1e-6 to each sum of exponentials; it then stops on small changes of the potential.
        left = left / n / (left * (kernel @ right) + 1e-6)
        right = right / n / (right * (kernel.T @ left) + 1e-6)
        if s.regularization * (left.log() - before.log()).abs().sum() < 0.1:
            break
    plan = left[:, None] * kernel * right
    return ((plan if s.plan_gradient else plan.detach()) * cost).sum()


def gaussian_images(
    x: Tensor, mean: Tensor, rho: Tensor, draws: Tensor, perturbations: PerturbationSet
) -> tuple[Tensor, Tensor]:
    """Perturbed images and entropy terms of every draw (N, M, C, H, W): (N M, C, H, W) and (N, M)."""
    images, entropies = [], []
    for draw in draws.unbind(1):
        images.append((x + squash(perturbations, mean + softplus(rho) * draw)).clamp(0, 1))
        entropies.append(entropy_term(perturbations, mean, softplus(rho), draw))
    return torch.stack(images, 1).flatten(0, 1), torch.stack(entropies, 1)


def samples_by_hand(
    climb, adversary, method: str, model: nn.Module, x: Tensor, y: Tensor, noise: Noise
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(adversarial images, penalty, reported statistics) of a batch; the model comes in evaluation mode."""
    s, perturbations = adversary.settings, adversary.perturbations
    nothing = torch.zeros((), dtype=x.dtype)
    if method == "standard":
        return x, nothing, {}
    if method == "at_fgsm":
        least = s.target == "least_likely"
        start = perturbations.start(x, noise) if s.random_start else 0 * x
        target = model(x).argmin(1) if least else y
        sign = -1 if least else 1
        loss = lambda z, t: sign * cross_entropy(z, t, reduction="none")  # noqa: E731
        return climb(model, x, target, start, loss, perturbations, 1, perturbations.eps), nothing, {}
    if method in ("at_pgd", "trades", "feature_scatter"):
        clean = model(x).detach()
        start = perturbations.start(x, noise) if method != "trades" else s.start_scale * noise.normal(*x.shape[1:])
        loss = {
            "at_pgd": partial(cross_entropy, reduction="none"),
            "trades": lambda z, _: divergence(clean.softmax(1), z),
            "feature_scatter": lambda z, _: transported(clean, z, s),
        }[method]
        return climb(model, x, y, start, loss, perturbations, s.steps, s.step_size), nothing, {}
    count = s.outer_samples
    if method == "adt_exp":
        mean, rho = fit_as_released(model, x, y, noise, perturbations, s)
        images, entropy = gaussian_images(x, mean, rho, noise.normal(count, *x.shape[1:], draw=s.steps), perturbations)
        return images, nothing, {"entropy": entropy.mean()}
    maps = maps_by_hand(model, x, y, perturbations, s.gradient_input)
    if method == "adt_exp_am":
        mean, rho = adversary.generator(maps).split(x.shape[1], 1)
        images, entropy = gaussian_images(x, mean, rho, noise.normal(count, *x.shape[1:]), perturbations)
        return images, -s.lam * entropy.mean(), {"entropy": entropy.mean()}
    z = (2 * noise.uniform(count, s.latent) - 1).flatten(0, 1)
    delta = squash(perturbations, adversary.generator(maps.repeat_interleave(count, 0), z))
    m, v = adversary.encoder(delta / perturbations.eps)
    length = -Normal(m, v.sqrt()).log_prob(z).mean()
    excess = (length - s.tau).clamp_min(0) if s.hinge else length
    active = (length > s.tau).double() if s.hinge else torch.ones(())
    return (
        (x.repeat_interleave(count, 0) + delta).clamp(0, 1),
        s.lam * excess,
        {"code_length": length, "hinge_active": active},
    )


def loss_by_hand(
    s: params.Method, method: str, model: nn.Module, images: Tensor, x: Tensor, y: Tensor, smoothing: float
) -> Tensor:
    """What the classifier descends; the model comes in training mode, whose batch statistics tell passes apart."""
    smoothed = partial(cross_entropy, label_smoothing=smoothing)
    if method == "at_fgsm" and s.clean_weight:
        logits = model(torch.cat([images, x]))
        return (1 - s.clean_weight) * smoothed(logits[: len(x)], y) + s.clean_weight * smoothed(logits[len(x) :], y)
    if method == "trades":
        clean = model(x)
        return smoothed(clean, y) + s.beta * divergence(clean.softmax(1), model(images)).mean()
    if method == "feature_scatter":
        log_p = model(images).log_softmax(1)
        own = log_p.gather(1, y[:, None])[:, 0]
        others = (log_p.sum(1) - own) / (log_p.shape[1] - 1)
        return -((1 - s.label_smoothing) * own + s.label_smoothing * others).mean()
    return smoothed(model(images), y.repeat_interleave(len(images) // len(x)))


@pytest.mark.usefixtures("double_noise")
@pytest.mark.parametrize(
    "method, changes, smoothing",
    [
        ("standard", {}, 0.0),
        ("standard", {}, 0.1),
        ("at_fgsm", {}, 0.0),
        ("at_fgsm", {"target": "label", "random_start": True, "clean_weight": 0.0}, 0.1),
        ("at_pgd", {}, 0.0),
        ("at_pgd", {}, 0.1),
        ("trades", {}, 0.0),
        ("feature_scatter", {"plan_gradient": True}, 0.0),
        ("feature_scatter", {"plan_gradient": False}, 0.0),
        ("adt_exp", {"accumulate": True}, 0.0),
        ("adt_exp", {"accumulate": False, "outer_samples": 3, "initial_rho": -1.0}, 0.1),
        ("adt_exp_am", {"gradient_input": "normalized"}, 0.0),
        ("adt_exp_am", {"gradient_input": "raw", "outer_samples": 3}, 0.0),
        ("adt_imp_am", {"tau": 0.5}, 0.0),  # the hinge binds
        ("adt_imp_am", {"tau": 5.0}, 0.0),  # it does not
        ("adt_imp_am", {"hinge": False, "tau": None, "outer_samples": 2}, 0.0),
    ],
)
def test_one_training_step_is_the_one_of_the_equations(
    make, make_model, make_examples, textbook_ascent, method: str, changes: dict, smoothing: float, tmp_path: Path
) -> None:
    train, model, adversary = (
        make_examples(12, torch.float64),
        make_model(torch.float64),
        make(method, **changes).double(),
    )
    old_model, old_adversary = copy.deepcopy(model), copy.deepcopy(adversary)
    model.eval(), adversary.eval()  # the loop itself sees to it that batch norms learn
    lr, decay, seed = 0.1, 0.01, 5
    settings = train_settings(
        optimizer=params.Optimizer(lr=lr, momentum=0.9, weight_decay=decay), label_smoothing=smoothing
    )
    trainer = Trainer(model, adversary, adversary.perturbations, settings, seed, tmp_path / "state.pt", "fingerprint")
    (row,) = trainer.run(train, train).history

    order = Stream.of(seed, "order", 1).permutation(12)
    noise = Stream.of(seed, "adversary", 1).at(order)
    x, y = train.x[order], train.y[order]
    images, penalty, stats = samples_by_hand(textbook_ascent, old_adversary, method, old_model.eval(), x, y, noise)
    loss = loss_by_hand(adversary.settings, method, old_model.train(), images, x, y, smoothing)
    # The classifier descends the loss; the adversary ascends it and descends its penalty.
    weights, own = list(old_model.parameters()), list(old_adversary.parameters())
    descent = torch.autograd.grad(loss, weights, retain_graph=True)
    ascent = torch.autograd.grad(penalty - loss, own, allow_unused=True, materialize_grads=True) if own else ()

    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-9)
    close(tuple(p.grad for p in model.parameters()), descent)
    close(tuple(p.grad for p in adversary.parameters()), ascent)
    close(tuple(model.parameters()), tuple(w - lr * (g + decay * w) for w, g in zip(weights, descent, strict=True)))
    for parameter, gradient in zip(own, ascent, strict=True):
        parameter.grad = gradient
    if own:
        old_adversary.optimizer().step()
    close(adversary.state_dict(), old_adversary.state_dict(), atol=1e-6)
    close(dict(model.named_buffers()), dict(old_model.named_buffers()))
    reported = {"train_loss": loss} | stats
    assert {name: row[name] for name in reported} == pytest.approx({k: float(v.detach()) for k, v in reported.items()})


# `as: released` and `as: paper`


@pytest.mark.parametrize("profile", ["released", "paper"])
def test_one_word_decides_every_switch(method: str, profile: str, make_model, make_examples, perturbations) -> None:
    switches = PROFILES[method]
    open_ones = METHODS[method].model_dump(exclude={"profile", *switches})
    settings = type(METHODS[method]).model_validate(open_ones | {"as": profile})
    resolved = resolve(method, settings)
    assert {name: getattr(resolved, name) for name in switches} == {n: v[profile] for n, v in switches.items()}
    adversary, data = adversaries.build(method, settings, perturbations, 1, 6), make_examples()
    samples = adversary(make_model(), data.x, data.y, NOISE.at(data.index)).x
    assert len(samples) == len(data.x) * (switches.get("outer_samples") or {profile: 1})[profile]


def test_a_switch_that_is_stated_wins_over_the_word() -> None:
    stated = params.Explicit.model_validate(
        {"as": "released", "lam": 0.01, "steps": 7, "samples": 5, "inner_lr": 0.3, "accumulate": False}
    )
    resolved = resolve("adt_exp", stated)
    assert resolved.accumulate is False and resolved.outer_samples == 1


def test_the_table_of_switches_covers_exactly_the_keys_that_may_be_left_out(method: str) -> None:
    fields = params.Methods.model_fields[method].annotation.model_fields
    assert {name for name, field in fields.items() if not field.is_required()} - {"profile"} == set(PROFILES[method])
