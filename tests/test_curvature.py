"""Curvature: eigenvalues against the exact Hessian, and extremes where they are known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.ascent import frozen
from pipeline.perturbation import L2, Linf, PerturbationSet
from pipeline.seeding import Noise, Stream, seeded_globals
from pipeline.studies import curvature_table
from pipeline.studies.curvature import (
    NUMBERS,
    Climb,
    largest_eigenvalue,
    linearity_error,
    loss_range,
    measure,
    power_iteration,
)

COUNT, SIDE = 6, 4
EXACT = {"tolerance": 1e-6, "iterations": 3000}


def noise(count: int = COUNT) -> Noise:
    return Stream.of(0, "curvature").at(torch.arange(count))


def images(count: int = COUNT) -> tuple[Tensor, Tensor]:
    rows = Stream.of(1, "test").at(torch.arange(count))
    return rows.uniform(1, SIDE, SIDE).double(), torch.arange(count) % 3


def network(activation: nn.Module) -> nn.Module:
    with seeded_globals(Stream.of(0, "tiny network")):
        layers = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 12), activation, nn.Linear(12, 3)).double().eval()
        for layer in layers[1], layers[3]:
            layer.weight.data *= 3
    return layers


def spectra(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """All eigenvalues of every image's Hessian, ascending: (N, d)."""
    found = []
    for image, label in zip(x, labels, strict=True):
        loss = lambda flat: cross_entropy(model(flat.view(1, 1, SIDE, SIDE)), label[None])  # noqa: B023, E731
        found.append(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, image.flatten())))
    return torch.stack(found)


# The largest eigenvalue


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Softplus(), nn.Tanh()], ids=["relu", "softplus", "tanh"])
def test_the_eigenvalue_is_the_largest_of_the_exact_hessian(activation: nn.Module) -> None:
    model, (x, labels) = network(activation), images()
    exact = spectra(model, x, labels)
    value, residual = largest_eigenvalue(model, x, labels, noise(), **EXACT)
    torch.testing.assert_close(value, exact[:, -1], rtol=1e-6, atol=1e-9)
    assert residual.max() <= 1e-6


def test_the_largest_eigenvalue_is_not_the_dominant_one_where_that_is_negative() -> None:
    model, (x, labels) = network(nn.Tanh()), images(40)
    exact = spectra(model, x, labels)
    concave = exact[:, 0].abs() > exact[:, -1]
    assert 3 < concave.sum() < 37
    value, _ = largest_eigenvalue(model, x, labels, noise(40), **EXACT)
    torch.testing.assert_close(value, exact[:, -1], rtol=1e-5, atol=1e-9)


def test_a_network_of_relus_has_no_negative_eigenvalue() -> None:
    model, (x, labels) = network(nn.ReLU()), images(20)
    assert spectra(model, x, labels).min() > -1e-9


def test_a_linear_model_has_the_eigenvalue_of_its_softmax(linear_problem) -> None:
    """Two classes: H = p (1 - p) w w', with w the difference of the weights."""
    model, data, _ = linear_problem
    with torch.no_grad():
        p = model(data.x).softmax(1)
        w = model[1].weight[1] - model[1].weight[0]
    value, _ = largest_eigenvalue(model, data.x, data.y, noise(len(data.x)), **EXACT)
    torch.testing.assert_close(value, p.prod(1) * w.square().sum(), rtol=1e-6, atol=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=SIDE**2, max_size=SIDE**2), st.integers(0, 5))
def test_no_quotient_lies_outside_the_spectrum_and_an_eigenvalue_lies_within_the_residual(
    diagonal: list[float], shift: int
) -> None:
    exact = torch.tensor(diagonal, dtype=torch.float64)
    value, residual = power_iteration(
        lambda chosen: lambda v: v * exact.view(1, 1, SIDE, SIDE),
        noise(1).normal(1, SIDE, SIDE).double(),
        torch.tensor([float(shift)], dtype=torch.float64),
        tolerance=1e-3,
        iterations=25,
    )
    assert exact.min() - 1e-9 <= value[0] <= exact.max() + 1e-9
    assert (exact - value[0]).abs().min() <= residual[0] + 1e-9


def test_without_enough_iterations_the_residual_says_so() -> None:
    model, (x, labels) = network(nn.Softplus()), images()
    exact = spectra(model, x, labels)[:, -1]
    value, residual = largest_eigenvalue(model, x, labels, noise(), tolerance=1e-9, iterations=1)
    assert residual.min() > 1e-9 and (value <= exact + 1e-9).all()


def test_a_hessian_of_zeros_has_the_eigenvalue_zero() -> None:
    with seeded_globals(Stream.of(0, "constant")):
        model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 3)).double()
    model[1].weight.data.zero_()
    value, residual = largest_eigenvalue(model, *images(), noise(), tolerance=1e-3, iterations=5)
    assert not value.any() and not residual.any()


# Extremes in the set


def exact_range(linear_problem: tuple, perturbations: PerturbationSet) -> Tensor:
    """Losses of a linear model of two classes are those of the least and the greatest margin."""
    model, data, least_margins = linear_problem
    with torch.no_grad():
        logits = model(data.x)
        centre = logits.gather(1, data.y[:, None])[:, 0] - logits.gather(1, 1 - data.y[:, None])[:, 0]
    least = least_margins(perturbations).detach()
    return nn.functional.softplus(-least) - nn.functional.softplus(least - 2 * centre)


def climb(perturbations: PerturbationSet, clip: bool = False, restarts: int = 2) -> Climb:
    return Climb(perturbations, 60, perturbations.eps / 5, restarts, clip)


@pytest.mark.parametrize("clip", [False, True])
def test_the_range_of_a_linear_models_loss_is_found(linear_problem, perturbations: PerturbationSet, clip: bool) -> None:
    model, data, _ = linear_problem
    small = type(perturbations)(perturbations.eps / 4)  # which cannot leave [0, 1]
    found = loss_range(model, data.x, data.y, noise(100), climb(small, clip))
    torch.testing.assert_close(found, exact_range(linear_problem, small), rtol=1e-4, atol=1e-6)


def test_the_linearity_error_of_a_convex_loss_is_at_an_end_of_the_gradients_line() -> None:
    """A linear model's loss, softplus(-m), hangs on the margin alone: the error is greatest at an end of its range."""
    with seeded_globals(Stream.of(0, "linear")):
        model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2)).double()
    x, labels, eps = images()[0], torch.zeros(COUNT, dtype=torch.int64), 0.1
    with torch.no_grad():
        w = model[1].weight[0] - model[1].weight[1]
        logits = model(x)
        m = (logits[:, 0] - logits[:, 1])[:, None] + eps * w.abs().sum() * torch.tensor([0.0, -1.0, 1.0])
        losses = nn.functional.softplus(-m)
        linear = losses[:, :1] - torch.sigmoid(-m[:, :1]) * (m - m[:, :1])
        expected = (losses - linear).abs().amax(1)
    found = linearity_error(model, x, labels, noise(), climb(Linf(eps), restarts=20))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("clip", [False, True])
def test_what_is_found_is_reached_inside_the_set_and_no_sampled_point_beats_it_by_much(
    perturbations: PerturbationSet, clip: bool
) -> None:
    model, (x, labels) = network(nn.Softplus()), images()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    width = loss_range(model, x, labels, noise(), climb(perturbations, clip))
    for moved in seen:
        assert (perturbations.norm(moved - x) <= perturbations.eps * (1 + 1e-6)).all()
        assert not clip or (moved.min() >= 0 and moved.max() <= 1)
    losses = []
    for draw in range(300):
        point = x + perturbations.start(x, noise().branch(f"sampled {draw}"))
        losses.append(cross_entropy(model(point.clamp(0, 1) if clip else point), labels, reduction="none"))
    sampled = torch.stack(losses)
    assert (width >= sampled.amax(0) - sampled.amin(0) - 1e-6).all()


def test_more_restarts_find_no_less(perturbations: PerturbationSet) -> None:
    model, (x, labels) = network(nn.ReLU()), images()
    few, many = (linearity_error(model, x, labels, noise(), climb(perturbations, restarts=count)) for count in (1, 4))
    assert (many >= few).all() and (few >= 0).all()


def test_a_search_counts_the_image_itself() -> None:
    """A loss that falls in every direction has its highest value where the search starts from nothing."""
    search = Climb(L2(1.0), 3, 0.1, 1, False)
    x = torch.zeros(2, 1, 2, 2)
    found = search.highest(lambda delta: -delta.square().sum((1, 2, 3)), x, noise(2), torch.zeros(2))
    assert found.tolist() == [0, 0]


# All of it


@pytest.fixture
def look(make_model, make_examples) -> Callable[..., dict[str, Tensor]]:
    """The numbers of the first `count` test images."""
    model, data = make_model().eval(), make_examples()

    def numbers(count: int, batch_size: int) -> dict[str, Tensor]:
        part = data.head(count)
        search = Climb(Linf(0.2), 3, 0.1, 2, False)
        rows = Stream.of(0, "curvature").at(part.index)
        return measure(model, part.x, part.y, rows, search, tolerance=1e-3, iterations=50, batch_size=batch_size)

    return numbers


def test_an_images_numbers_depend_neither_on_its_batch_nor_on_the_other_images(look) -> None:
    everything = look(10, 10)
    assert tuple(everything) == NUMBERS
    for count, batch_size in ((10, 3), (4, 10)):
        for name, values in look(count, batch_size).items():
            if name != "residual":
                torch.testing.assert_close(values, everything[name][:count], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(look(10, 10), everything, rtol=0, atol=0)


@pytest.mark.usefixtures("untouched_random_state")
def test_measuring_leaves_the_model_as_it_was(make_model, make_examples) -> None:
    model, data = make_model().train(), make_examples()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    search = Climb(Linf(0.2), 2, 0.1, 1, True)
    rows = Stream.of(0, "curvature").at(data.index)
    measure(model, data.x, data.y, rows, search, tolerance=1e-2, iterations=5, batch_size=4)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_float32_is_enough_on_a_folded_network(make_model, make_examples) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        model, data = make_model(dtype), make_examples(dtype=dtype)
        with frozen(model) as fast:
            found.append(largest_eigenvalue(fast, data.x, data.y, noise(10), tolerance=1e-3, iterations=500)[0])
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-3, atol=1e-4)


# For people


def measured(seeds: int, images: int) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Values 0, 1, 2, ... of the images, plus the seed, times 10 for the second method."""
    return {
        (method, seed): {name: (np.arange(images) + seed) * factor for name in NUMBERS} | {"residual": np.zeros(images)}
        for method, factor in (("at_pgd", 1.0), ("adt_exp", 10.0))
        for seed in range(seeds)
    }


def test_a_row_a_model_has_means_and_deviations_over_images() -> None:
    first, *_, last = curvature_table.rows(measured(3, 5), 1e-3)
    assert first | {"method": "at_pgd", "seed": 0, "images": 5, "converged": 1.0, "residual": 0.0} == first
    assert (last["method"], last["seed"], last["loss_range"]) == ("adt_exp", 2, 40.0)
    assert last["loss_range_std"] == pytest.approx(10 * np.std([0, 1, 2, 3, 4], ddof=1))
    assert set(first) == set(curvature_table.COLUMNS)


def test_the_share_of_converged_images_is_told() -> None:
    values = measured(1, 4)
    values["at_pgd", 0]["residual"] = np.array([0.0, 1e-3, 2e-3, 0.5])
    first, second = curvature_table.rows(values, 1e-3)
    assert (first["converged"], first["residual"], second["converged"]) == (0.5, 0.5, 1.0)
    assert "75 % of the images" in page(values)


def page(values: dict) -> str:
    table = curvature_table.rows(values, 1e-3)
    return curvature_table.markdown(table, where="digits, linf eps 0.2", clip=False, tolerance=1e-3, iterations=50)


def test_the_page_has_mean_deviation_over_seeds_and_over_images() -> None:
    text = page(measured(3, 5))
    assert "| adt_exp | 30.000 ± 10.000 (15.811) |" in text
    assert "5 test images and seeds 0, 1, 2" in text and "not clipped" in text


def test_too_few_seeds_or_images_have_no_deviation() -> None:
    assert "±" not in page(measured(2, 5))
    assert "| at_pgd | 0.500 | 0.500 | 0.500 |" in page(measured(2, 1))
