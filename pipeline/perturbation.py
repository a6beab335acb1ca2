"""Perturbation sets: what an adversary may add to an image.

Every set is an object with the same operations, so that adversaries and
attacks never ask which set they work in. Images and perturbations are float32
(N, C, H, W); images live in [0, 1]. Clipping x + delta to [0, 1] is not part of
a set: it is done by `onto_images`, as the released code does.
"""

import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pipeline.errors import UserError
from pipeline.seeding import Noise

Upstream = Callable[[Tensor], Tensor]


class PerturbationSet(Protocol):
    """A compact set of perturbations around zero, with radius `eps`."""

    eps: float

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        """A random point of the set for each row of `like`."""

    def direction(self, gradient: Tensor) -> Tensor:
        """The step of unit length (in the set's norm) that climbs `gradient` fastest."""

    def project(self, delta: Tensor) -> Tensor:
        """The nearest point of the set."""

    def norm(self, delta: Tensor) -> Tensor:
        """The set's norm of each row: (N,); at most eps exactly inside the set."""

    def squash(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map unbounded `u` into the open set: (delta, log |det d delta / d u| a row: (N,))."""


_OPERATIONS = ("start", "direction", "project", "norm", "squash")


class Linf:
    """The ball |delta_j| <= eps."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        """Uniform on the ball (Madry et al. 2018)."""
        return (2 * noise.uniform(*like.shape[1:]) - 1) * self.eps

    def direction(self, gradient: Tensor) -> Tensor:
        """The sign of the gradient."""
        return gradient.sign()

    def project(self, delta: Tensor) -> Tensor:
        """Clip each coordinate."""
        return delta.clamp(-self.eps, self.eps)

    def norm(self, delta: Tensor) -> Tensor:
        """Largest absolute coordinate."""
        return delta.abs().flatten(1).amax(1)

    def squash(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """delta = eps tanh(u), coordinate by coordinate (ADT, section 3.2)."""
        log_det = math.log(self.eps) + log_one_minus_tanh_squared(u)
        return self.eps * torch.tanh(u), log_det.flatten(1).sum(1)

    def pull_back(self, u: Tensor, upstream: Upstream, weight: float) -> Tensor:
        """`pull_back` in closed form: d delta / du = eps (1 - tanh^2), d log_det / du = -2 tanh."""
        squashed = torch.tanh(u)
        gradient = upstream(self.eps * squashed)
        return gradient.mul_(1 - squashed.square()).mul_(self.eps).sub_(squashed, alpha=2 * weight)


class L2:
    """The ball ||delta||_2 <= eps."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        """Random direction times a uniform radius (Rice, Wong, Kolter 2020)."""
        direction = self.direction(noise.normal(*like.shape[1:]))
        radius = noise.uniform(1, draw=1) * self.eps
        return direction * _per_row(radius[:, 0], like)

    def direction(self, gradient: Tensor) -> Tensor:
        """The gradient divided by its norm, however small; a zero gradient stays zero."""
        tiny = torch.finfo(gradient.dtype).tiny
        gradient = gradient / _per_row(gradient.abs().flatten(1).amax(1).clamp_min(tiny), gradient)
        return gradient / _per_row(self.norm(gradient).clamp_min(tiny), gradient)

    def project(self, delta: Tensor) -> Tensor:
        """Scale rows longer than eps back to eps."""
        return delta * _per_row((self.eps / self.norm(delta).clamp_min(1e-12)).clamp_max(1), delta)

    def norm(self, delta: Tensor) -> Tensor:
        """Euclidean norm."""
        return delta.flatten(1).norm(dim=1)

    def squash(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Radial map delta = eps tanh(||u|| / sqrt(d)) u / ||u||.

        The Jacobian has the eigenvalue d|delta|/d||u|| = eps (1 - tanh^2) / sqrt(d)
        along u and |delta| / ||u|| in the d - 1 directions across it.
        """
        d = u[0].numel()
        length = self.norm(u).clamp_min(1e-12)
        scaled = length / math.sqrt(d)
        radius = self.eps * torch.tanh(scaled)
        along = math.log(self.eps) - math.log(d) / 2 + log_one_minus_tanh_squared(scaled)
        across = (d - 1) * (radius.log() - length.log())
        return u * _per_row(radius / length, u), along + across


def pull_back(perturbations: PerturbationSet, u: Tensor, upstream: Upstream, weight: float) -> Tensor:
    """Gradient with respect to u of J(delta) + weight * log |det d delta / d u|, delta = squash(u): like u.

    `upstream` maps delta (N, C, H, W) to dJ / d delta. A set may have a method of this name that does the same
    with less work; else, or if a subclass has changed `squash` since, the map is differentiated.
    """
    kind = type(perturbations)
    if hasattr(kind, "pull_back") and issubclass(_owner(kind, "pull_back"), _owner(kind, "squash")):
        return perturbations.pull_back(u, upstream, weight)
    leaf = u.detach().requires_grad_()
    with torch.enable_grad():
        delta, log_det = perturbations.squash(leaf)
    gradient = upstream(delta.detach())
    return torch.autograd.grad((delta, log_det), leaf, (gradient, torch.full_like(log_det, weight)))[0]


def _owner(kind: type, name: str) -> type:
    return next(parent for parent in kind.__mro__ if name in vars(parent))


_SETS = {"linf": Linf, "l2": L2}


def build(name: str, eps: float) -> PerturbationSet:
    """The set called `name` with radius `eps`, in units of the image range.

    `name`: "linf", "l2", or the import path `package.module:Class` of a class that is called
    with eps and has the operations of `PerturbationSet`. Raises `UserError` where it cannot be
    imported or lacks one, and for a radius that is not positive.
    """
    if not eps > 0:
        raise UserError(f"params.yaml: threat.eps: should be greater than 0 (got {eps:g})")
    kind = _SETS.get(name) or _imported(name)
    return kind(eps)


def source(name: str) -> Path | None:
    """The file that defines a user's own set; None for the built-in ones."""
    return None if name in _SETS else Path(inspect.getfile(_imported(name)))


def _imported(name: str) -> type[PerturbationSet]:
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"params.yaml: threat.set: {name}: cannot be imported: {error}") from error
    missing = [operation for operation in _OPERATIONS if not callable(getattr(kind, operation, None))]
    if missing:
        raise UserError(f"params.yaml: threat.set: {name}: lacks {', '.join(missing)} (needs {', '.join(_OPERATIONS)})")
    return kind


def onto_images(x: Tensor, delta: Tensor) -> Tensor:
    """The perturbed images, clipped to the image range [0, 1]."""
    return (x + delta).clamp(0, 1)


def log_one_minus_tanh_squared(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), exact for large |u| where 1 - tanh^2 rounds to zero."""
    return 2 * (math.log(2) - u.abs() - softplus(-2 * u.abs()))


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
