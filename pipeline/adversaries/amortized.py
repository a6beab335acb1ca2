"""ADT_EXP-AM and ADT_IMP-AM: one generator learns every image's distribution.

Both play the same game in one backward pass: the classifier descends the
cross-entropy, the generator ascends it through a reversed gradient, and each
method adds its own entropy penalty, which the generator descends.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.optim import Adam, Optimizer

from pipeline.adversaries.base import Adversary, Samples
from pipeline.adversaries.entropy import latent_code_length, reverse_gradient
from pipeline.adversaries.explicit import sample
from pipeline.ascent import frozen, input_gradient
from pipeline.losses import cross_entropy
from pipeline.models.encoder import Encoder
from pipeline.models.generator import Generator
from pipeline.perturbation import PerturbationSet, onto_images
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Amortized
    from pipeline.params import AmortizedImplicit as ImplicitSettings

_BETAS = (0.5, 0.999)  # Adam of the generator, as released; the encoder keeps torch's default


def generator_input(model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, mode: str) -> Tensor:
    """Channels [x, g1, g2]: the image, its input gradient, and the one at its FGSM example.

    `mode` is what becomes of the gradients: "raw" (of the batch-mean loss, as
    released), "sign", or "normalized" (mean absolute value 1 an image). x is
    (N, C, H, W); returns (N, 3C, H, W). Batch norm runs in evaluation mode.
    """
    with frozen(model) as fast:
        first = input_gradient(fast, x, labels, cross_entropy)
        fgsm = perturbations.project(perturbations.eps * perturbations.direction(first))
        second = input_gradient(fast, onto_images(x, fgsm), labels, cross_entropy)
    return torch.cat([x, _rescale(first, mode), _rescale(second, mode)], 1)


class AmortizedExplicit(Adversary):
    """EXP-AM: the generator gives (mu, rho) of the squashed Gaussian that ADT_EXP searches for."""

    settings: "Amortized"
    gradient_evaluations = 2

    def __init__(self, settings: "Amortized", perturbations: PerturbationSet, channels: int, size: int) -> None:
        super().__init__(settings, perturbations, channels, size)
        self.generator = Generator(3 * channels, 2 * channels, size, settings.width)

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """One sample an image; penalty -lam * entropy per dimension."""
        maps = generator_input(model, x, labels, self.perturbations, self.settings.gradient_input)
        mean, raw_scale = self.generator(maps).chunk(2, 1)
        delta, entropy = sample(self.perturbations, mean, raw_scale, noise.normal(*x.shape[1:]))
        images = reverse_gradient(onto_images(x, delta))
        return Samples(images, -self.settings.lam * entropy.mean(), {"entropy": entropy.mean().detach()})

    def optimizer(self) -> Optimizer:
        """Adam of the generator."""
        return Adam(self.generator.parameters(), lr=self.settings.generator_lr, betas=_BETAS)


class AmortizedImplicit(Adversary):
    """IMP-AM: delta = squash(g(x, z)), z ~ U(-1, 1)^L; entropy through the encoder's bound.

    penalty = lam * relu(mean code length - tau): the generator is pressed to keep z
    decodable, hence its samples distinct, only while q(z | delta) explains z worse
    than tau nats a dimension. A q that ignores delta (m = 0, v = 1/3) already has
    0.8696, so the released tau = 0.9 never binds once q has learnt that.
    """

    settings: "ImplicitSettings"
    gradient_evaluations = 2

    def __init__(self, settings: "ImplicitSettings", perturbations: PerturbationSet, channels: int, size: int) -> None:
        super().__init__(settings, perturbations, channels, size)
        self.generator = Generator(3 * channels, channels, size, settings.width, settings.latent)
        self.encoder = Encoder(channels, settings.encoder_width, settings.latent)

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """One sample an image; stats: the code length and the share of batches where the hinge binds."""
        maps = generator_input(model, x, labels, self.perturbations, self.settings.gradient_input)
        z = noise.uniform(self.settings.latent) * 2 - 1
        delta, _ = self.perturbations.squash(self.generator(maps, z))
        length = latent_code_length(z, *self.encoder(delta / self.perturbations.eps)).mean()
        excess = relu(length - self.settings.tau)
        stats = {"code_length": length.detach(), "hinge_active": (excess > 0).float()}
        return Samples(reverse_gradient(onto_images(x, delta)), self.settings.lam * excess, stats)

    def optimizer(self) -> Optimizer:
        """Adam of generator and encoder, each with its own betas."""
        groups = [
            {"params": self.generator.parameters(), "betas": _BETAS},
            {"params": self.encoder.parameters()},
        ]
        return Adam(groups, lr=self.settings.generator_lr)


def _rescale(gradient: Tensor, mode: str) -> Tensor:
    if mode == "sign":
        return gradient.sign()
    if mode == "normalized":
        return gradient / gradient.abs().flatten(1).mean(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return gradient / len(gradient)
