"""Perturbation sets: every operation against its mathematical definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch import Tensor

from pipeline import perturbation
from pipeline.errors import UserError
from pipeline.perturbation import L2, Linf, PerturbationSet, log_one_minus_tanh_squared, onto_images, pull_back
from pipeline.seeding import Stream

SHAPE = (3, 1, 2, 3)  # three rows of six pixels
ORDER = {Linf: math.inf, L2: 2}  # of the set's norm
DUAL = {Linf: 1, L2: 2}
EACH_SET = pytest.mark.parametrize("threat", [Linf(0.25), L2(1.5)], ids=["linf", "l2"])


def tensors(bound: float) -> st.SearchStrategy[Tensor]:
    values = st.floats(-bound, bound, allow_subnormal=False)
    return hnp.arrays(np.float64, SHAPE, elements=values).map(torch.from_numpy)


def norms(delta: Tensor, order: float) -> Tensor:
    return torch.from_numpy(np.linalg.norm(delta.flatten(1).numpy(), ord=order, axis=1))


def points_inside(threat: PerturbationSet, anywhere: Tensor) -> Tensor:
    """Scale rows into the set, without using `project`."""
    longest = norms(anywhere, ORDER[type(threat)]).clamp_min(1)
    return threat.eps * anywhere / longest.view(-1, 1, 1, 1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@EACH_SET
@given(tensors(10))
def test_norm_is_numpys(threat: PerturbationSet, delta: Tensor) -> None:
    torch.testing.assert_close(threat.norm(delta), norms(delta, ORDER[type(threat)]))


@EACH_SET
@given(tensors(10), tensors(3))
def test_projection_is_the_nearest_point_of_the_set(threat: PerturbationSet, delta: Tensor, other: Tensor) -> None:
    projected = threat.project(delta)
    assert (norms(projected, ORDER[type(threat)]) <= threat.eps * (1 + 1e-12)).all()
    # The nearest point of a convex set is the one that sees all others at an obtuse angle.
    assert (inner(delta - projected, points_inside(threat, other) - projected) <= 1e-9).all()


@EACH_SET
@given(tensors(10))
def test_projection_is_idempotent(threat: PerturbationSet, delta: Tensor) -> None:
    once = threat.project(delta)
    torch.testing.assert_close(threat.project(once), once, rtol=1e-14, atol=0)


@EACH_SET
@given(tensors(3))
def test_points_inside_are_their_own_projection(threat: PerturbationSet, anywhere: Tensor) -> None:
    inside = points_inside(threat, anywhere) * 0.999
    assert torch.equal(threat.project(inside), inside)


@EACH_SET
@given(tensors(10), tensors(3))
def test_direction_has_unit_norm_and_the_largest_inner_product(
    threat: PerturbationSet, gradient: Tensor, other: Tensor
) -> None:
    assume(bool((norms(gradient, 2) > 1e-3).all()))
    direction = threat.direction(gradient)
    torch.testing.assert_close(norms(direction, ORDER[type(threat)]), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(inner(gradient, direction), norms(gradient, DUAL[type(threat)]))
    unit = points_inside(threat, other) / threat.eps
    assert (inner(gradient, unit) <= inner(gradient, direction) + 1e-9).all()


@EACH_SET
def test_a_zero_gradient_gives_no_direction(threat: PerturbationSet) -> None:
    assert not threat.direction(torch.zeros(SHAPE)).any()


@EACH_SET
def test_starts_are_inside_and_belong_to_their_example(threat: PerturbationSet) -> None:
    index = torch.tensor([5, 3, 11])
    stream, like = Stream.of(0, "test"), torch.empty(SHAPE)
    start = threat.start(like, stream.at(index))
    assert start.shape == SHAPE and (threat.norm(start) <= threat.eps * (1 + 1e-6)).all()
    assert torch.equal(threat.start(like[:1], stream.at(index[1:2])), start[1:2])


def test_linf_starts_are_uniform_in_every_coordinate() -> None:
    start = Linf(0.25).start(torch.empty(5000, 1, 2, 2), Stream.of(0, "test").at(torch.arange(5000)))
    for pixel in start.flatten(1).T:
        assert stats.kstest(pixel.numpy(), stats.uniform(-0.25, 0.5).cdf).pvalue > 0.01


def test_l2_starts_have_a_uniform_radius_and_a_uniform_angle() -> None:
    start = L2(1.5).start(torch.empty(5000, 1, 1, 2), Stream.of(0, "test").at(torch.arange(5000))).flatten(1).numpy()
    radius, angle = np.hypot(*start.T), np.arctan2(*start.T)
    assert stats.kstest(radius, stats.uniform(0, 1.5).cdf).pvalue > 0.01
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 0.01
    for coordinate in (np.cos(angle), np.sin(angle)):
        assert stats.spearmanr(radius, coordinate).pvalue > 0.01


@given(tensors(20))
def test_linf_squash_is_eps_tanh(u: Tensor) -> None:
    np.testing.assert_allclose(Linf(0.25).squash(u)[0].numpy(), 0.25 * np.tanh(u.numpy()))


@given(tensors(20))
def test_l2_squash_keeps_the_direction_and_squashes_the_length(u: Tensor) -> None:
    assume(bool((norms(u, 2) > 1e-6).all()))
    length = norms(u, 2).view(-1, 1, 1, 1)
    expected = 1.5 * torch.tanh(length / math.sqrt(6)) * u / length
    torch.testing.assert_close(L2(1.5).squash(u)[0], expected)


@EACH_SET
@given(tensors(1e6))
def test_squash_stays_inside_up_to_rounding(threat: PerturbationSet, u: Tensor) -> None:
    for dtype, rounding in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        delta, log_det = threat.squash(u.to(dtype))
        assert (threat.norm(delta) <= threat.eps * (1 + rounding)).all()
        assert log_det.isfinite().all()


@EACH_SET
@given(tensors(5))
def test_moderate_points_are_squashed_strictly_inside(threat: PerturbationSet, u: Tensor) -> None:
    assert (threat.norm(threat.squash(u)[0]) < threat.eps).all()


@EACH_SET
@given(tensors(4))
def test_log_determinant_is_the_jacobians(threat: PerturbationSet, u: Tensor) -> None:
    assume(bool((norms(u, 2) > 1e-3).all()))
    for row, log_det in zip(u, threat.squash(u)[1], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: threat.squash(v[None])[0][0], row).reshape(6, 6)
        sign, expected = torch.linalg.slogdet(jacobian)
        assert sign == 1
        torch.testing.assert_close(log_det, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("threat, slope", [(Linf(0.25), 0.25), (L2(1.5), 1.5 / math.sqrt(6))], ids=["linf", "l2"])
def test_squash_is_linear_at_zero(threat: PerturbationSet, slope: float) -> None:
    u = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    delta, log_det = threat.squash(u)
    assert not delta.any()
    torch.testing.assert_close(log_det, torch.full((3,), 6 * math.log(slope), dtype=torch.float64))
    delta.sum().backward()
    torch.testing.assert_close(u.grad, torch.full_like(u, slope))


def test_one_dimensional_l2_is_linf() -> None:
    u = torch.linspace(-4, 4, 50, dtype=torch.float64).view(-1, 1, 1, 1)
    torch.testing.assert_close(L2(0.3).squash(u), Linf(0.3).squash(u))


@given(st.floats(-1e5, 1e5))
def test_log_of_one_minus_tanh_squared_is_exact_far_out(u: float) -> None:
    # 1 - tanh^2 = 1 / cosh^2, and log(2 cosh u) = logaddexp(u, -u).
    expected = 2 * (math.log(2) - np.logaddexp(u, -u))
    assert float(log_one_minus_tanh_squared(torch.tensor(u, dtype=torch.float64))) == pytest.approx(
        expected, rel=1e-14, abs=1e-14
    )
    assert float(log_one_minus_tanh_squared(torch.tensor(u))) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(tensors(2), tensors(2))
def test_images_are_clipped_to_their_range(x: Tensor, delta: Tensor) -> None:
    assert np.array_equal(onto_images(x, delta).numpy(), np.clip(x.numpy() + delta.numpy(), 0, 1))


@pytest.mark.parametrize("name, kind", [("linf", Linf), ("l2", L2)])
def test_sets_are_built_by_name(name: str, kind: type) -> None:
    built = perturbation.build(name, 0.125)
    assert type(built) is kind and built.eps == 0.125


@pytest.mark.parametrize("scale", [1e-30, 2e-13, 1.0, 1e30])
def test_a_gradient_of_any_size_has_a_direction_of_unit_length(scale: float) -> None:
    gradient = scale * torch.tensor([[[[3.0, -4.0]]]])
    for threat in (Linf(0.1), L2(0.1)):
        assert threat.norm(threat.direction(gradient)).item() == pytest.approx(1)
    assert L2(0.1).direction(gradient).flatten().tolist() == pytest.approx([0.6, -0.8])


# Gradients through the map, and sets of a user's own


class Halved(Linf):
    """Half of the l-infinity ball: its `squash` is no longer the one that the inherited `pull_back` belongs to."""

    def squash(self, u: Tensor) -> tuple[Tensor, Tensor]:
        delta, log_det = super().squash(u)
        return delta / 2, log_det - u[0].numel() * math.log(2)


@pytest.mark.parametrize("threat", [Linf(0.25), L2(1.5), Halved(0.25)], ids=["linf", "l2", "a user's"])
@given(u=tensors(4), slope=tensors(2), weight=st.floats(-1, 3))
def test_the_pulled_back_gradient_is_that_of_the_whole_expression(
    threat: PerturbationSet, u: Tensor, slope: Tensor, weight: float
) -> None:
    assume((norms(u, 2) > 1e-3).all())
    leaf = u.clone().requires_grad_()
    delta, log_det = threat.squash(leaf)
    objective = (slope * delta + delta.pow(3)).sum() + weight * log_det.sum()
    expected = torch.autograd.grad(objective, leaf)[0]
    got = pull_back(threat, u, lambda d: slope + 3 * d.square(), weight)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name, said",
    [
        ("no_such_module:Set", "threat.set: no_such_module:Set: cannot be imported: No module named"),
        ("pipeline.perturbation:Linff", "cannot be imported: module 'pipeline.perturbation' has no attribute 'Linff'"),
        ("pathlib:Path", "threat.set: pathlib:Path: lacks start, direction, project, norm, squash (needs start"),
    ],
)
def test_a_set_that_is_none_is_refused_in_one_line(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        perturbation.build(name, 0.1)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_set_is_found_by_its_import_path() -> None:
    assert isinstance(perturbation.build("pipeline.perturbation:L2", 0.5), L2)
    assert perturbation.source("linf") is None
    assert perturbation.source("pipeline.perturbation:L2").name == "perturbation.py"
