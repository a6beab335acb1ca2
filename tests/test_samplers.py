"""Where perturbations come from: every source obeys the same law, and each is what it says."""

import math

import pytest
import torch
from scipy import integrate, stats
from small_settings import METHODS
from torch import nn

from pipeline import adversaries
from pipeline.adversaries.explicit import Explicit
from pipeline.ascent import frozen
from pipeline.losses import cross_entropy
from pipeline.perturbation import L2, Linf
from pipeline.samplers import Drawn, FromGenerator, Learned, Restarts, Uniform, generator_maps, of_adversary
from pipeline.seeding import Stream
from pipeline.studies.diversity import describe

STREAM = Stream.of(0, "samplers")
SETS = {"linf": Linf(0.2), "l2": L2(0.8)}
NAMES = ["learned", "explicit generator", "implicit generator", "restarts", "uniform"]


def adversary(method: str, perturbations=SETS["linf"]) -> adversaries.Adversary:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return adversaries.build(method, METHODS[method], perturbations, 1, 6)


def source(name: str, perturbations):
    method = {"learned": "adt_exp", "explicit generator": "adt_exp_am", "implicit generator": "adt_imp_am"}.get(name)
    if method:
        return of_adversary(adversary(method, perturbations), 12)
    return Restarts(4, 0.08) if name == "restarts" else Uniform()


def draw(sampler, model: nn.Module, data, perturbations, count: int, rows=slice(None)) -> Drawn:
    index = torch.arange(len(data.x))[rows]
    with frozen(model) as fast:
        return sampler(fast, data.x[rows], data.y[rows], perturbations, STREAM.at(index), count)


@pytest.mark.usefixtures("untouched_random_state")
@pytest.mark.parametrize("name", NAMES)
def test_samples_lie_in_the_set_and_differ_and_fewer_are_the_first_of_more(
    name: str, perturbations, make_model, make_examples
) -> None:
    data, model = make_examples(), make_model()
    drawn = draw(source(name, perturbations), model, data, perturbations, 4)
    assert drawn.deltas.shape == (10, 4, 1, 6, 6) and not drawn.deltas.requires_grad
    assert perturbations.norm(drawn.deltas.flatten(0, 1)).max() <= perturbations.eps * (1 + 1e-5)
    assert all(not torch.equal(drawn.deltas[:, 0], drawn.deltas[:, s]) for s in (1, 2, 3))
    fewer = draw(source(name, perturbations), model, data, perturbations, 2)
    torch.testing.assert_close(fewer.deltas, drawn.deltas[:, :2], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_s_samples_do_not_depend_on_the_other_images(name: str, make_model, make_examples) -> None:
    data, model, perturbations = make_examples(), make_model(), SETS["linf"]
    whole = draw(source(name, perturbations), model, data, perturbations, 2)
    rows = torch.tensor([7, 2, 5])
    part = draw(source(name, perturbations), model, data, perturbations, 2, rows)
    torch.testing.assert_close(part.deltas, whole.deltas[rows], rtol=1e-4, atol=1e-5)
    assert (whole.entropy is None) == (name not in ("learned", "explicit generator"))
    if whole.entropy is not None:
        torch.testing.assert_close(part.entropy, whole.entropy[rows], rtol=1e-4, atol=1e-4)


def test_the_generator_s_samples_are_those_it_makes_in_evaluation_and_its_mode_returns(
    make_model, make_examples
) -> None:
    data, model = make_examples(), make_model()
    noise = STREAM.at(torch.arange(10))
    for method in ("adt_exp_am", "adt_imp_am"):
        own = adversary(method).train()
        drawn = draw(FromGenerator(own, 12), model, data, SETS["linf"], 2)
        assert own.training
        maps = adversaries.amortized.generator_input(model, data.x, data.y, SETS["linf"], "sign")
        with torch.no_grad():
            singles = [own.eval().perturb(maps, noise.branch(s), 1) for s in range(2)]
        torch.testing.assert_close(drawn.deltas, torch.stack([s[0] for s in singles], 1), rtol=1e-4, atol=1e-5)
        if drawn.entropy is not None:
            mean = sum(float(stats["entropy"]) for _, _, stats in singles) / 2
            assert float(drawn.entropy.mean()) == pytest.approx(mean, abs=1e-4)


def test_a_generator_on_raw_gradients_is_fed_on_the_scale_of_its_training(make_model, make_examples) -> None:
    data, model, method = make_examples(), make_model(), "adt_exp_am"
    raw = METHODS[method].model_copy(update={"gradient_input": "raw"})
    own = adversaries.build(method, raw, SETS["linf"], 1, 6)
    maps = generator_maps(own, model, data.x, data.y, SETS["linf"], 40)
    fed = adversaries.amortized.generator_input(model, data.x.repeat(4, 1, 1, 1), data.y.repeat(4), SETS["linf"], "raw")
    torch.testing.assert_close(maps, fed[:10], rtol=1e-3, atol=1e-7)


def test_restarts_are_pgd_from_their_starts(perturbations, textbook_ascent, make_model, make_examples) -> None:
    data, model = make_examples(), make_model().eval()
    drawn = draw(Restarts(4, 0.08), model, data, perturbations, 2)
    for s in range(2):
        start = perturbations.start(data.x, STREAM.at(torch.arange(10)).branch(s))
        images = textbook_ascent(model, data.x, data.y, start, cross_entropy, perturbations, 4, 0.08)
        off = (data.x + drawn.deltas[:, s] - images).abs().flatten(1).amax(1)
        assert (off < 1e-4).float().mean() >= 0.9  # where a gradient is nearly 0, rounding turns its sign


@pytest.mark.parametrize("rho", [-2.0, 0.0, 1.5])
def test_a_distribution_left_at_its_start_has_the_moments_of_the_squashed_gaussian(
    rho: float, make_model, make_examples
) -> None:
    data, sigma, model = make_examples(40), math.log1p(math.exp(rho)), make_model()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    settings = METHODS["adt_exp"].model_copy(update={"lam": 0.0, "steps": 1, "accumulate": False, "initial_rho": rho})
    described = describe(Learned.with_settings(settings), model, data.x, data.y, SETS["linf"], STREAM, 20).means()
    gaussian = stats.norm(0, sigma)
    variance = integrate.quad(lambda u: gaussian.pdf(u) * math.tanh(u) ** 2, -10, 10)[0]  # the mean is 0
    volume = integrate.quad(lambda u: gaussian.pdf(u) * -2 * math.log(math.cosh(u)), -10, 10)[0]
    assert described["diversity"] == pytest.approx(variance, rel=0.03)
    assert described["entropy"] == pytest.approx(gaussian.entropy() + volume, abs=0.02)
    assert described["adversarial_loss"] == pytest.approx(math.log(3), rel=1e-5)


def test_the_learned_distribution_is_the_one_that_the_method_trains_on(make_model, make_examples) -> None:
    data, model = make_examples(), make_model()
    own = adversary("adt_exp")
    assert isinstance(own, Explicit)
    drawn = draw(of_adversary(own, 12), model, data, SETS["linf"], 1)
    noise = STREAM.at(torch.arange(10))
    images, entropy = own.draw(data.x, *own.fit(model, data.x, data.y, noise), noise)
    torch.testing.assert_close((data.x + drawn.deltas[:, 0]).clamp(0, 1), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drawn.entropy, entropy, rtol=1e-4, atol=1e-4)


def test_adversaries_without_samples_are_refused() -> None:
    assert of_adversary(adversary("at_pgd"), 12) == Restarts(4, 0.08)
    with pytest.raises(TypeError, match="Trades draws no samples"):
        of_adversary(adversary("trades"), 12)
