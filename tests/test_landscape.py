"""Loss surfaces: exactly orthogonal directions, and losses at the points they say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline import params
from pipeline.errors import UserError
from pipeline.seeding import Noise, Stream
from pipeline.studies.landscape import rademacher_orthogonal, surface
from pipeline.yaml_files import read_yaml

EPS, POINTS, RADIUS = 0.1, 5, 2.0
GRID = {"eps": EPS, "points": POINTS, "radius": RADIUS, "batch_size": 32}


def noise(index: Tensor) -> Noise:
    return Stream.of(0, "landscape").at(index)


def signs_of(seed: int, count: int, pixels: int) -> Tensor:
    """Random gradient signs, zeros among them: (count, 1, 1, pixels)."""
    return (Stream.of(seed, "test").at(torch.arange(count)).uniform(1, 1, pixels) * 3).floor() - 1


@given(st.integers(0, 100), st.integers(1, 20))
def test_the_second_direction_is_orthogonal_and_of_unit_entries(seed: int, pixels: int) -> None:
    signs = signs_of(seed, 3, pixels)
    direction = rademacher_orthogonal(signs, noise(torch.arange(3)))
    own = torch.where(signs >= 0, 1.0, -1.0)
    assert direction.shape == signs.shape
    assert not (direction * own).sum((1, 2, 3)).any()
    zeros = (direction == 0).sum((1, 2, 3))
    assert (zeros == pixels % 2).all() and set(direction.abs().unique().tolist()) <= {0.0, 1.0}


def test_every_half_agrees_equally_often() -> None:
    ones = torch.ones(6000, 1, 1, 4)
    drawn = rademacher_orthogonal(ones, noise(torch.arange(6000))).flatten(1)
    _, counts = np.unique(drawn.numpy(), axis=0, return_counts=True)
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > 0.01


@pytest.fixture
def landscape(make_model, make_examples):
    """(model, data, coordinates, losses) on a small grid, in float64."""
    model, data = make_model(torch.float64).eval(), make_examples(dtype=torch.float64)
    grid = surface(model, data.x, data.y, noise(data.index), **GRID)
    return model, data, *grid


def test_the_grid_spans_the_radius_evenly(landscape) -> None:
    _, data, coordinates, losses = landscape
    assert coordinates.tolist() == pytest.approx([-2, -1, 0, 1, 2])
    assert losses.shape == (len(data.x), POINTS, POINTS)


@pytest.mark.parametrize("i, j", [(2, 2), (4, 1), (0, 3), (2, 4), (3, 2)])
def test_a_loss_is_taken_where_the_coordinates_say_and_not_clipped(landscape, i: int, j: int) -> None:
    model, data, _, losses = landscape
    x = data.x.clone().requires_grad_()
    cross_entropy(model(x), data.y).backward()
    first = torch.where(x.grad >= 0, 1.0, -1.0)
    second = rademacher_orthogonal(first, noise(data.index))
    images = data.x + EPS * ((i - 2) * first + (j - 2) * second)
    assert (i, j) == (2, 2) or images.min() < 0 or images.max() > 1
    expected = cross_entropy(model(images), data.y, reduction="none").detach()
    torch.testing.assert_close(losses[:, i, j].double(), expected, rtol=0, atol=1e-5)


def test_the_loss_climbs_along_the_first_direction(landscape) -> None:
    _, _, _, losses = landscape
    along = losses[:, :, 2].mean(0)
    assert along[1] < along[2] < along[3]


def test_an_images_surface_does_not_depend_on_its_batch(landscape) -> None:
    model, data, _, losses = landscape
    part = data.head(3)
    _, alone = surface(model, part.x, part.y, noise(part.index), **GRID)
    torch.testing.assert_close(alone, losses[:3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_a_surface_does_not_depend_on_how_many_points_share_a_pass(landscape, batch_size: int) -> None:
    model, data, _, losses = landscape
    _, other = surface(model, data.x, data.y, noise(data.index), **GRID | {"batch_size": batch_size})
    torch.testing.assert_close(other, losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_no_pass_has_more_images_than_the_batch_size(make_model, make_examples, batch_size: int) -> None:
    model, data = make_model().eval(), make_examples()
    passes: list[int] = []
    model.head.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    surface(model, data.x, data.y, noise(data.index), **GRID | {"batch_size": batch_size})
    assert max(passes) <= batch_size and sum(passes) == len(data.x) * (POINTS**2 + 1)


@pytest.mark.parametrize("i, j", [(2, 2), (4, 1), (0, 3)])
def test_points_are_clipped_to_images_where_that_is_asked_for(landscape, i: int, j: int) -> None:
    model, data, _, free = landscape
    _, losses = surface(model, data.x, data.y, noise(data.index), **GRID, clip=True)
    x = data.x.clone().requires_grad_()
    cross_entropy(model(x), data.y).backward()
    first = torch.where(x.grad >= 0, 1.0, -1.0)
    images = data.x + EPS * ((i - 2) * first + (j - 2) * rademacher_orthogonal(first, noise(data.index)))
    expected = cross_entropy(model(images.clip(0, 1)), data.y, reduction="none").detach()
    torch.testing.assert_close(losses[:, i, j].double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(losses[:, i, j], free[:, i, j]) == ((i, j) == (2, 2))


@pytest.mark.usefixtures("untouched_random_state")
def test_drawing_a_surface_leaves_the_model_as_it_was(make_model, make_examples) -> None:
    model, data = make_model().train(), make_examples()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    surface(model, data.x, data.y, noise(data.index), **GRID)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_no_more_images_are_shown_than_there_are_surfaces() -> None:
    values = read_yaml(Path(__file__).parents[1] / "presets/digits.yaml")
    values["landscape"]["shown"] = values["landscape"]["images"] + 1
    with pytest.raises(UserError, match=r"^params.yaml: landscape: shown: should be at most images \(\d+\)"):
        params.parse(values, "params.yaml")
