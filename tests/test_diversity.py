"""Descriptions of explicit distributions against quadrature."""

import math

import pytest
import torch
from scipy import integrate, stats
from small_settings import METHODS
from torch import nn

from pipeline.adversaries.explicit import Explicit
from pipeline.diversity import describe
from pipeline.perturbation import Linf
from pipeline.seeding import Stream

STREAM = Stream.of(0, "diversity")


def explicit(**changes) -> Explicit:
    settings = METHODS["adt_exp"].model_copy(update={"lam": 0.0, "steps": 1, "accumulate": False})
    return Explicit(settings.model_copy(update=changes), Linf(0.2), 1, 6)


def without_preference(model: nn.Module) -> nn.Module:
    """Equal logits everywhere: no gradient, so with lambda 0 the distribution stays where it starts."""
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


@pytest.mark.parametrize("rho", [-2.0, 0.0, 1.5])
def test_a_distribution_left_at_its_start_has_the_moments_of_the_squashed_gaussian(
    rho: float, make_model, make_examples
) -> None:
    data, sigma = make_examples(40), math.log1p(math.exp(rho))
    described = describe(
        explicit(initial_rho=rho), without_preference(make_model()), data.x, data.y, samples=20, stream=STREAM
    )
    gaussian = stats.norm(0, sigma)
    variance = integrate.quad(lambda u: gaussian.pdf(u) * math.tanh(u) ** 2, -10, 10)[0]  # the mean is 0
    volume = integrate.quad(lambda u: gaussian.pdf(u) * -2 * math.log(math.cosh(u)), -10, 10)[0]
    assert described.diversity == pytest.approx(variance, rel=0.03)
    assert described.entropy == pytest.approx(gaussian.entropy() + volume, abs=0.02)
    assert described.adversarial_loss == pytest.approx(math.log(3), rel=1e-5)


def test_more_lambda_means_more_varied_and_less_harmful_samples(make_model, make_examples) -> None:
    data, model = make_examples(30), make_model()
    settings = {"steps": 7, "initial_rho": -1.0}
    weak, strong = (
        describe(explicit(lam=lam, **settings), model, data.x, data.y, samples=20, stream=STREAM) for lam in (0.0, 1.0)
    )
    assert weak.diversity < strong.diversity
    assert weak.entropy < strong.entropy
    assert weak.adversarial_loss > strong.adversarial_loss


@pytest.mark.usefixtures("untouched_random_state")
def test_describing_is_repeatable_and_leaves_the_model_as_it_was(make_model, make_examples) -> None:
    data, model = make_examples(), make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (describe(explicit(), model, data.x, data.y, samples=2, stream=STREAM) for _ in range(2))
    assert first == second
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
