"""What an explicit adversarial distribution is like: how harmful its samples are, and how varied."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.adversaries.explicit import Explicit
from pipeline.ascent import frozen
from pipeline.distribution import sample
from pipeline.losses import cross_entropy
from pipeline.perturbation import onto_images
from pipeline.seeding import Stream


@dataclass(frozen=True)
class Description:
    """Means over images.

    `entropy`: nats per dimension of delta / eps (uniform on the l-infinity set:
    0.693). `adversarial_loss`: cross-entropy of samples. `diversity`: variance over
    samples of each pixel of delta / eps, as in the authors' development code
    ("sample variance"), averaged over pixels.
    """

    entropy: float
    adversarial_loss: float
    diversity: float


def describe(
    adversary: Explicit, model: nn.Module, x: Tensor, labels: Tensor, samples: int, stream: Stream
) -> Description:
    """Fit a distribution to each image x (N, C, H, W) and draw `samples` >= 2 from it."""
    index = torch.arange(len(x), device=x.device)
    mean, raw_scale = adversary.fit(model, x, labels, stream.at(index))
    deltas, entropies, losses = [], [], []
    with frozen(model), torch.no_grad():
        for draw in range(samples):
            noise = stream.at(index).normal(*x.shape[1:], draw=adversary.settings.steps + draw)
            delta, entropy = sample(adversary.perturbations, mean, raw_scale, noise)
            deltas.append(delta / adversary.perturbations.eps)
            entropies.append(entropy.mean())
            losses.append(cross_entropy(model(onto_images(x, delta)), labels).mean())
    return Description(
        entropy=float(torch.stack(entropies).mean()),
        adversarial_loss=float(torch.stack(losses).mean()),
        diversity=float(torch.stack(deltas).var(0).mean()),
    )
