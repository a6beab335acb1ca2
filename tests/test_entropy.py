"""Entropy terms against quadrature, SciPy's densities and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor

from pipeline.adversaries.entropy import latent_code_length, reverse_gradient
from pipeline.distribution import squashed_gaussian
from pipeline.perturbation import L2, Linf, PerturbationSet

# Equally likely quantiles of N(0, 1) instead of random draws: the mean converges much faster.
QUANTILES = torch.from_numpy(stats.norm.ppf((np.arange(4000) + 0.5) / 4000)).view(-1, 1, 1, 1)


def entropy_by_quadrature(mean: float, sigma: float) -> float:
    """Differential entropy of tanh(N(mean, sigma^2)) from its density on (-1, 1)."""

    def integrand(y: float) -> float:
        density = stats.norm.pdf(math.atanh(y), mean, sigma) / (1 - y * y)
        return -density * math.log(density) if density > 0 else 0.0

    limit = 1 - 1e-12
    return integrate.quad(integrand, -limit, limit, limit=500, points=[math.tanh(mean)])[0]


def mean_term(threat: PerturbationSet, mean: float, sigma: float) -> float:
    """Mean of the entropy term over one-pixel images, one a quantile."""
    scale = torch.full_like(QUANTILES, sigma)
    _, log_det = threat.squash(mean + scale * QUANTILES)
    return float(squashed_gaussian(QUANTILES, scale, log_det, threat.eps).mean())


@pytest.mark.parametrize("threat", [Linf(0.03), Linf(1.0), L2(0.5)], ids=["linf small", "linf", "l2"])
@pytest.mark.parametrize("mean, sigma", [(0.0, math.log(2)), (0.0, 0.0067), (2.1, 0.69), (-0.5, 2.2), (1.0, 0.1155)])
def test_mean_term_is_the_differential_entropy_in_units_of_eps(
    threat: PerturbationSet, mean: float, sigma: float
) -> None:
    assert mean_term(threat, mean, sigma) == pytest.approx(entropy_by_quadrature(mean, sigma), abs=3e-3)


@pytest.mark.parametrize(
    "mean, sigma, released", [(0.0, math.log(2), -0.271), (0.0, 0.0067, -4.50), (2.1, 0.69, -2.75)]
)
def test_values_of_the_released_code_without_its_dropped_constants(mean: float, sigma: float, released: float) -> None:
    # The released term leaves out log(2 pi) / 2 and log eps.
    assert mean_term(Linf(0.2), mean, sigma) - math.log(2 * math.pi) / 2 == pytest.approx(released, abs=0.01)


@given(st.floats(-3, 3), st.floats(0.01, 3))
def test_no_distribution_has_more_entropy_than_the_uniform_one(mean: float, sigma: float) -> None:
    assert mean_term(Linf(0.2), mean, sigma) < math.log(2)


def test_the_best_squashed_gaussian_comes_close_to_uniform() -> None:
    assert mean_term(Linf(0.2), 0, 0.88) == pytest.approx(math.log(2), abs=0.01)


def test_the_term_of_an_image_is_the_mean_over_its_pixels() -> None:
    noise, sigma = (torch.linspace(low, 2, 24, dtype=torch.float64).view(3, 2, 2, 2) for low in (-2, 0.1))
    threat = Linf(0.2)

    def term(noise: Tensor, sigma: Tensor) -> Tensor:
        return squashed_gaussian(noise, sigma, threat.squash(0.3 + sigma * noise)[1], threat.eps)

    pixels = term(noise.reshape(24, 1, 1, 1), sigma.reshape(24, 1, 1, 1)).view(3, 8)
    torch.testing.assert_close(term(noise, sigma), pixels.mean(1))


def test_code_length_is_scipys_negative_log_density() -> None:
    generator = np.random.default_rng(0)
    z, mean, variance = generator.uniform(-1, 1, (5, 7)), generator.normal(size=(5, 7)), generator.gamma(2, 1, (5, 7))
    expected = -stats.norm.logpdf(z, mean, np.sqrt(variance)).mean(1)
    np.testing.assert_allclose(latent_code_length(*map(torch.from_numpy, (z, mean, variance))).numpy(), expected)


def length_of_an_unread_code(variance: float) -> float:
    """Mean code length of z ~ U(-1, 1) under q = N(0, variance), over equally likely points."""
    z = ((torch.arange(10_000, dtype=torch.float64) + 0.5) / 5000 - 1)[:, None]
    return float(latent_code_length(z, torch.zeros_like(z), torch.full_like(z, variance)).mean())


# The released tau of 0.9 is slack for any variance in [0.240, 0.483].
@pytest.mark.parametrize("variance, length", [(1 / 3, 0.8696), (0.240, 0.9), (0.483, 0.9)])
def test_a_code_that_ignores_delta_has_the_known_length(variance: float, length: float) -> None:
    assert length_of_an_unread_code(variance) == pytest.approx(length, abs=1e-3)


@given(st.floats(0.01, 10))
def test_no_code_that_ignores_delta_is_shorter_than_0_8696(variance: float) -> None:
    assert length_of_an_unread_code(variance) > 0.8695


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_the_bound_is_tight_for_the_true_posterior_and_for_no_other_code(scale: float) -> None:
    """z and the error of delta = z + error normal: H(z | delta) is known, and no q describes z in fewer nats."""
    generator = torch.Generator().manual_seed(0)
    z, error = (torch.randn(200_000, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    delta, share = z + scale * error, 1 / (1 + scale**2)
    posterior = share * delta, torch.full_like(z, share * scale**2)
    known = math.log(2 * math.pi * math.e * share * scale**2) / 2
    assert float(latent_code_length(z, *posterior).mean()) == pytest.approx(known, abs=0.01)
    for mean, variance in ((0.9 * posterior[0], posterior[1]), (posterior[0], 1.3 * posterior[1])):
        assert float(latent_code_length(z, mean, variance).mean()) > known + 0.005


def test_reversal_is_the_identity_with_its_gradient_negated() -> None:
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    assert torch.equal(reverse_gradient(x), x)
    outputs = reverse_gradient(x), reverse_gradient(reverse_gradient(x))
    once, twice = (torch.autograd.grad((y * weight).sum(), x)[0] for y in outputs)
    assert torch.equal(once, -weight) and torch.equal(twice, weight)
