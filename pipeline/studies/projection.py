"""Perturbations of one image seen in a plane, with the loss of the model in that plane."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.losses import cross_entropy, margin
from pipeline.perturbation import PerturbationSet, onto_images

_PASS = 512  # points of a plane that go through the model at once


@dataclass(frozen=True)
class Plane:
    """A plane through the image itself: `basis` (2, D) float64, orthonormal; `share` of the perturbations in it.

    `share`: how much of the squared length of the perturbations that it was made of lies in the plane, 0 to 1.
    """

    basis: Tensor
    share: float

    @classmethod
    def of(cls, deltas: Tensor) -> "Plane":
        """The two directions that hold most of the squared length of deltas (M, C, H, W).

        They are the first two principal components about the image (delta = 0), not about the mean, so that the
        plane contains the image. Each points to where its largest component is positive.
        """
        flat = deltas.flatten(1).cpu().double()
        _, lengths, directions = torch.linalg.svd(flat, full_matrices=False)
        basis = directions[:2]
        largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
        squares = lengths.square()
        return cls(basis * largest.sign(), float(squares[:2].sum() / squares.sum().clamp_min(1e-300)))

    def coordinates(self, deltas: Tensor) -> Tensor:
        """Where deltas (M, C, H, W) are in the plane, by orthogonal projection: (M, 2) float64, in units of the image.

        What lies off the plane is dropped, so two perturbations at one place may differ.
        """
        return deltas.flatten(1).cpu().double() @ self.basis.T


@dataclass(frozen=True)
class Surface:
    """On a square grid of a plane, rows along the second direction, columns along the first: (P, P) each.

    `loss`: the model's cross-entropy; `margin`: its margin, positive where it is right; `norm`: the set's norm of
    the grid point itself, over eps, so 1 is the edge of the set.
    """

    loss: Tensor
    margin: Tensor
    norm: Tensor


@torch.no_grad()
def surface(
    model: nn.Module, x: Tensor, label: Tensor, perturbations: PerturbationSet, plane: Plane, axes: Tensor
) -> Surface:
    """The loss of one image x (C, H, W) with its label () on the grid of a plane that `axes` (2, P) span.

    A point outside the set is projected into it, and x + delta is clipped to [0, 1], so every loss shown is one
    that an adversary can reach. The caller freezes the model.
    """
    along, across = torch.meshgrid(*axes.cpu().double(), indexing="xy")
    points = along.reshape(-1, 1) * plane.basis[0] + across.reshape(-1, 1) * plane.basis[1]
    deltas = points.to(x.dtype).view(-1, *x.shape).to(x.device)
    losses, margins = [], []
    for part in deltas.split(_PASS):
        logits = model(onto_images(x[None], perturbations.project(part)))
        labels = label.expand(len(part))
        losses.append(cross_entropy(logits, labels))
        margins.append(margin(logits, labels))
    norm = perturbations.norm(deltas) / perturbations.eps
    return Surface(*(values.view(along.shape).cpu() for values in (torch.cat(losses), torch.cat(margins), norm)))


def window(places: Tensor, eps: float, points: int) -> Tensor:
    """The coordinates (2, points), first and second, of a square grid that holds all places (M, 2) and the image at 0.

    With a margin of a tenth; of half width eps where all places are 0.
    """
    low, high = places.amin(0).clamp_max(0), places.amax(0).clamp_min(0)
    half = 0.6 * float((high - low).max()) or eps
    return (low + high)[:, None] / 2 + torch.linspace(-half, half, points, dtype=places.dtype)
