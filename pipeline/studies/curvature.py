"""How curved the loss is around single images: input Hessian, local linearity error, range in the set.

The loss is the cross-entropy L of one image, in nats, so no value depends on how many images are
looked at together. Eigenvalues are in nats per square of the image range [0, 1] and need no
perturbation set; the other two are in nats and belong to the set, whose radius is in the same unit as images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from pipeline.ascent import frozen, input_gradient
from pipeline.losses import cross_entropy
from pipeline.perturbation import PerturbationSet, onto_images
from pipeline.seeding import Noise

NUMBERS = ("largest_eigenvalue", "residual", "linearity_error", "loss_range")  # what `measure` gives
Products = Callable[[Tensor], Callable[[Tensor], Tensor]]
# Hessian-vector products that share one graph; after as many, converged images leave the batch.
_ROUND = 10


def largest_eigenvalue(
    model: nn.Module, x: Tensor, labels: Tensor, noise: Noise, *, tolerance: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """The algebraically largest eigenvalue of each image's Hessian d2 L / dx dx, and how exact it is: (N,), (N,).

    It is what the authors' "dominant eigenvalue" is, max(eigvalsh); they differentiated the mean loss of
    100 images, so theirs are 1/100 of ours. Power iteration finds the eigenvalue of largest magnitude.
    Where that is negative, or not found, it is repeated on H + shift with shift the largest
    magnitude, which makes the algebraically largest eigenvalue the dominant one. A network of ReLUs is linear around
    almost every image, so its Hessian comes from the softmax alone, J' (diag(p) - p p') J, and has no
    negative eigenvalue.

    Every value is a Rayleigh quotient v'Hv, so up to rounding never above the true one. Its residual is
    |Hv - value v| in units of the largest magnitude of an eigenvalue that was met: some eigenvalue
    lies within it. An image is done when that is at most `tolerance`, or after `iterations` of
    each kind. v starts at normal numbers of `noise`. The caller freezes the model, in evaluation mode.
    """

    def products(chosen: Tensor) -> Callable[[Tensor], Tensor]:
        return _hessian_products(model, x[chosen], labels[chosen])

    start = noise.normal(*x.shape[1:]).to(x.dtype)
    value, residual = power_iteration(products, start, torch.zeros_like(start[:, 0, 0, 0]), tolerance, iterations)
    magnitude = torch.hypot(value, residual)
    again = ((value < 0) | (residual > tolerance * magnitude)).nonzero()[:, 0]
    if len(again):
        shift = magnitude[again]
        found = power_iteration(lambda chosen: products(again[chosen]), start[again], shift, tolerance, iterations)
        higher = found[0] > value[again]
        value[again] = torch.where(higher, found[0], value[again])
        residual[again] = torch.where(higher, found[1], residual[again])
    scale = torch.maximum(magnitude, value.abs())
    return value, residual / scale.clamp_min(torch.finfo(scale.dtype).tiny)


def power_iteration(
    products: Products, start: Tensor, shift: Tensor, tolerance: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """An eigenvalue of each symmetric H_n by power iteration on H_n + shift_n, and |Hv - value v|: (N,), (N,).

    `products(chosen)` gives v -> Hv for some of the rows (an index), v (M, C, H, W). A row is done when its
    residual is at most `tolerance` times the larger of |value| and shift; at the latest after `iterations`.
    """
    vectors = _unit(start)
    value, residual = torch.zeros_like(shift), torch.full_like(shift, torch.inf)
    active = torch.arange(len(start), device=start.device)
    for done in range(0, iterations, _ROUND):
        product, v, move = products(active), vectors[active], shift[active].view(-1, 1, 1, 1)
        for _ in range(min(_ROUND, iterations - done)):
            image = product(v)
            quotient = (v * image).flatten(1).sum(1)
            rest = _length(image - quotient.view(-1, 1, 1, 1) * v)
            v = _unit(image + move * v)
        vectors[active], value[active], residual[active] = v, quotient, rest
        active = active[rest > tolerance * torch.maximum(quotient.abs(), shift[active])]
        if not len(active):
            break
    return value, residual


def _hessian_products(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """v -> H_n v_n for each image, by differentiating the gradient's product with v."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(model(x), labels).sum(), x, create_graph=True)[0]
    return lambda v: torch.autograd.grad(gradient, x, v, retain_graph=True)[0]


def _length(v: Tensor) -> Tensor:
    return vector_norm(v.flatten(1), dim=1)


def _unit(v: Tensor) -> Tensor:
    """Rows of length 1, however small; a row of zeros stays one."""
    tiny = torch.finfo(v.dtype).tiny
    v = v / v.abs().flatten(1).amax(1).clamp_min(tiny).view(-1, 1, 1, 1)
    return v / _length(v).clamp_min(tiny).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Climb:
    """The search for the highest value of a function of the perturbation, by PGD from random points of the set.

    `restarts` starts, `steps` steps of `step_size` (unit of the set's radius) each. `clip`: whether perturbed
    images must lie in [0, 1], too. What it finds is a lower bound of the maximum.
    """

    perturbations: PerturbationSet
    steps: int
    step_size: float
    restarts: int
    clip: bool

    def highest(self, value: Callable[[Tensor], Tensor], x: Tensor, noise: Noise, at_zero: Tensor) -> Tensor:
        """The highest value met: (N,), never below `at_zero`, the value without a perturbation.

        `value` maps perturbations like x (N, C, H, W) to (N,), differentiably, a row a row. Every start, every
        iterate and every end counts.
        """
        best = at_zero
        for restart in range(self.restarts):
            delta = self._allowed(x, self.perturbations.start(x, noise.branch(restart)).to(x.dtype))
            for _ in range(self.steps):
                with torch.enable_grad():
                    values = value(delta.requires_grad_())
                    gradient = torch.autograd.grad(values.sum(), delta)[0]
                best = torch.maximum(best, values.detach())
                step = self.step_size * self.perturbations.direction(gradient)
                delta = self._allowed(x, self.perturbations.project(delta.detach() + step))
            with torch.no_grad():
                best = torch.maximum(best, value(delta))
        return best

    def _allowed(self, x: Tensor, delta: Tensor) -> Tensor:
        return onto_images(x, delta) - x if self.clip else delta


def linearity_error(model: nn.Module, x: Tensor, labels: Tensor, noise: Noise, climb: Climb) -> Tensor:
    """Local linearity error (Qin et al. 2019): (N,), max over the set of |L(x + d) - L(x) - d' grad L(x)|.

    The maximum is searched for by `climb`, so it is a lower bound. The caller freezes the model.
    """
    gradient = input_gradient(model, x, labels, cross_entropy)
    centre = _losses(model, x, labels)

    def error(delta: Tensor) -> Tensor:
        linear = centre + (delta * gradient).flatten(1).sum(1)
        return (cross_entropy(model(x + delta), labels) - linear).abs()

    return climb.highest(error, x, noise, torch.zeros_like(centre))


def loss_range(model: nn.Module, x: Tensor, labels: Tensor, noise: Noise, climb: Climb) -> Tensor:
    """The highest loss in the set minus the lowest: (N,), both searched for by `climb`, so a lower bound.

    The caller freezes the model.
    """
    centre = _losses(model, x, labels)
    highest = climb.highest(lambda delta: cross_entropy(model(x + delta), labels), x, noise, centre)
    return highest + climb.highest(lambda delta: -cross_entropy(model(x + delta), labels), x, noise, -centre)


def _losses(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return cross_entropy(model(x), labels)


def measure(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    noise: Noise,
    climb: Climb,
    *,
    tolerance: float,
    iterations: int,
    batch_size: int,
) -> dict[str, Tensor]:
    """Everything above of images x (N, C, H, W) in [0, 1], `batch_size` at a time: values (N,) by name.

    An image's random numbers do not depend on its batch. The model is as before afterwards.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in NUMBERS}
    with frozen(model) as fast:
        for rows in torch.arange(len(x), device=x.device).split(batch_size):
            part = fast, x[rows], labels[rows]
            starts, eigen = noise.rows(rows).branch("set"), noise.rows(rows).branch("eigenvector")
            value, residual = largest_eigenvalue(*part, eigen, tolerance=tolerance, iterations=iterations)
            error, width = linearity_error(*part, starts, climb), loss_range(*part, starts, climb)
            for values, new in zip(found.values(), (value, residual, error, width), strict=True):
                values.append(new)
    return {name: torch.cat(values) for name, values in found.items()}
