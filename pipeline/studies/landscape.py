"""Loss surfaces in input space, as the authors drew them: a gradient-sign and a random direction."""

import torch
from torch import Tensor, nn

from pipeline.ascent import frozen, input_gradient
from pipeline.losses import cross_entropy
from pipeline.seeding import Noise


def rademacher_orthogonal(gradient_signs: Tensor, noise: Noise) -> Tensor:
    """A random +-1 vector a row, exactly orthogonal to the sign vector in that row.

    The authors redraw until the cosine vanishes. The same law is reached directly: half of
    the entries agree with the gradient's sign, half disagree, at random places. Zero
    entries of the gradient count as +1; with an odd number of pixels one entry is 0.
    Shapes (N, C, H, W).
    """
    signs = torch.where(gradient_signs >= 0, 1.0, -1.0).flatten(1)
    order = noise.uniform(signs.shape[1]).argsort(1)
    d = signs.shape[1]
    agree = torch.ones(d, device=signs.device)
    agree[: d // 2] = -1
    agree[d - d % 2 :] = 0
    flips = torch.zeros_like(signs).scatter(1, order, agree.expand_as(signs))
    return (signs * flips).view_as(gradient_signs)


def surface(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    noise: Noise,
    *,
    eps: float,
    points: int,
    radius: float,
    batch_size: int,
    clip: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on a grid around each image; returns (coordinates (P,), losses (N, P, P)), nats.

    Coordinates run from -radius to radius in units of eps. losses[n, i, j] is taken at
    x_n + eps * (c_i * d1 + c_j * d2), with d1 the sign of the image's own gradient on this
    model, as the authors took it, and d2 orthogonal to it, both of l-infinity norm 1: which pixels
    of d2 agree with d1 are the same random numbers on every model. `clip`: whether points are
    clipped to [0, 1]; the authors' are not. `batch_size`: images a forward pass, which bounds the memory.
    """
    coordinates = torch.linspace(-radius, radius, points, device=x.device)
    with frozen(model) as fast:
        d1 = torch.where(_gradients(fast, x, labels, batch_size) >= 0, 1.0, -1.0)
        d2 = rademacher_orthogonal(d1, noise)
        losses = torch.empty(len(x) * points**2)
        places = torch.arange(len(losses), device=x.device)
        with torch.no_grad():
            for part in places.split(batch_size):
                n, i, j = part // points**2, part // points % points, part % points
                a, b = (coordinates[k].view(-1, 1, 1, 1) for k in (i, j))
                images = x[n] + eps * (a * d1[n] + b * d2[n])
                losses[part] = cross_entropy(fast(images.clamp(0, 1) if clip else images), labels[n]).to(losses)
    return coordinates, losses.view(len(x), points, points)


def _gradients(model: nn.Module, x: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    parts = zip(x.split(batch_size), labels.split(batch_size), strict=True)
    return torch.cat([input_gradient(model, *part, cross_entropy) for part in parts])
