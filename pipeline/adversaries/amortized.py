"""ADT_EXP-AM and ADT_IMP-AM: one generator learns every image's distribution.

Both play the same game in one backward pass: the classifier descends the
cross-entropy, the generator ascends it through a reversed gradient, and each
method adds its own entropy penalty, which the generator descends.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from pipeline.adversaries.base import Adversary, Samples, repeat
from pipeline.adversaries.entropy import latent_code_length, reverse_gradient
from pipeline.ascent import EVALUATING, Inner, autocast, frozen, input_gradient
from pipeline.distribution import sample
from pipeline.losses import cross_entropy
from pipeline.models.encoder import Encoder
from pipeline.models.generator import Generator
from pipeline.perturbation import PerturbationSet, onto_images
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Amortized as Settings
    from pipeline.params import AmortizedImplicit as ImplicitSettings

_BETAS = (0.5, 0.999)  # Adam of the generator, as released; the encoder keeps torch's default
_DIAGNOSTIC_SAMPLES = 10


class Amortized(Adversary):
    """What both methods share: the generator's input, its reversed gradient and its optimiser."""

    settings: "Settings"
    gradient_evaluations = 2

    @property
    def training_evaluations(self) -> int:
        """One a training sample."""
        return self.settings.outer_samples

    @abstractmethod
    def perturb(self, maps: Tensor, noise: Noise, count: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Perturbations (count N, C, H, W) drawn for generator inputs `maps`, the penalty, and statistics."""

    def forward(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> Samples:
        """`outer_samples` samples an image, the penalty that the generator descends, and its parts."""
        mode, batch = self.settings.gradient_input, len(x) * self.world.size
        maps = generator_input(model, x, labels, self.perturbations, mode, self.inner, batch)
        delta, penalty, stats = self.perturb(maps, noise, self.settings.outer_samples)
        images = reverse_gradient(onto_images(repeat(x, delta), delta))
        return Samples(images, penalty, {name: value.detach() for name, value in stats.items()})

    def diagnose(self, model: nn.Module, x: Tensor, labels: Tensor, noise: Noise) -> dict[str, float]:
        """Diversity: variance over 10 samples of each pixel of delta / eps, averaged (batch norm evaluating)."""
        training = self.training
        inner = Inner(precision=self.inner.precision)
        maps = generator_input(model, x, labels, self.perturbations, self.settings.gradient_input, inner)
        with torch.no_grad():
            delta, _, _ = self.eval().perturb(maps, noise, _DIAGNOSTIC_SAMPLES)
        self.train(training)
        scaled = (delta / self.perturbations.eps).view(len(x), _DIAGNOSTIC_SAMPLES, -1)
        return {"diversity": float(scaled.var(1).mean())}


class AmortizedExplicit(Amortized):
    """EXP-AM: the generator gives (mu, rho) of the squashed Gaussian that ADT_EXP searches for."""

    def __init__(
        self, settings: "Settings", perturbations: PerturbationSet, channels: int, size: int, inner: Inner = EVALUATING
    ) -> None:
        super().__init__(settings, perturbations, channels, size, inner)
        self.generator = Generator(3 * channels, 2 * channels, size, settings.width)

    def perturb(self, maps: Tensor, noise: Noise, count: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Penalty: -lam * entropy per dimension."""
        with autocast(maps.device, self.inner.precision):
            parameters = self.generator(maps)
        mean, raw_scale = parameters.to(maps.dtype).chunk(2, 1)
        draws = noise.normal(count, *mean.shape[1:]).flatten(0, 1)
        delta, entropy = sample(self.perturbations, repeat(mean, draws), repeat(raw_scale, draws), draws)
        return delta, -self.settings.lam * entropy.mean(), {"entropy": entropy.mean()}

    def optimizer(self) -> Optimizer:
        """Adam of the generator."""
        return Adam(self.generator.parameters(), lr=self.settings.generator_lr, betas=_BETAS)


class AmortizedImplicit(Amortized):
    """IMP-AM: delta = squash(g(x, z)), z ~ U(-1, 1)^L; entropy through the encoder's bound.

    penalty = lam * relu(mean code length - tau) with the hinge, as released, else lam * mean
    code length: the generator is pressed to keep z decodable, hence its samples distinct. A q
    that ignores delta (m = 0, v = 1/3) already has 0.8696 nats a dimension, so a hinge at
    the released tau = 0.9 acts only until q has learnt that, and on batches that chance to be
    longer; a tau below 0.8696 acts as long as z is not decoded. The history's columns
    `code_length`, `hinge_active` and `diversity` show which it was.
    """

    settings: "ImplicitSettings"

    def __init__(
        self,
        settings: "ImplicitSettings",
        perturbations: PerturbationSet,
        channels: int,
        size: int,
        inner: Inner = EVALUATING,
    ) -> None:
        super().__init__(settings, perturbations, channels, size, inner)
        self.generator = Generator(3 * channels, channels, size, settings.width, settings.latent)
        self.encoder = Encoder(channels, settings.encoder_width, settings.latent)

    def perturb(self, maps: Tensor, noise: Noise, count: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Statistics: the code length, and whether the hinge lets it count."""
        s, p = self.settings, self.perturbations
        z = (noise.uniform(count, s.latent) * 2 - 1).flatten(0, 1)
        with autocast(maps.device, self.inner.precision):
            u = self.generator(repeat(maps, z), z)
        delta, _ = p.squash(u.to(maps.dtype))
        with autocast(maps.device, self.inner.precision):
            mean, variance = self.encoder(delta / p.eps)
        length = latent_code_length(z, mean, variance).mean()
        # The hinge is one of the batch, so of all processes that share it.
        active = self.world.mean(length) > s.tau if s.hinge else torch.ones_like(length, dtype=torch.bool)
        counted = torch.where(active, length - s.tau, 0 * length) if s.hinge else length
        return delta, s.lam * counted, {"code_length": length, "hinge_active": active.float()}

    def optimizer(self) -> Optimizer:
        """Adam of generator and encoder, each with its own betas."""
        groups = [
            {"params": self.generator.parameters(), "betas": _BETAS},
            {"params": self.encoder.parameters()},
        ]
        return Adam(groups, lr=self.settings.generator_lr)


def generator_input(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    perturbations: PerturbationSet,
    mode: str,
    inner: Inner = EVALUATING,
    batch: int | None = None,
) -> Tensor:
    """Channels [x, g1, g2]: the image, its input gradient, and the one at its FGSM example.

    `mode` is what becomes of the gradients: "raw" (of the batch-mean loss, as
    released), "sign", or "normalized" (mean absolute value 1 an image). x is
    (N, C, H, W); returns (N, 3C, H, W). `batch`: size of the batch that x is a part of (none: x is all of it).
    """
    with frozen(model, inner) as fast:
        first = input_gradient(fast, x, labels, cross_entropy)
        fgsm = perturbations.project(perturbations.eps * perturbations.direction(first))
        second = input_gradient(fast, onto_images(x, fgsm), labels, cross_entropy)
    return torch.cat([x, *(_rescale(gradient, mode, batch or len(x)) for gradient in (first, second))], 1)


def _rescale(gradient: Tensor, mode: str, batch: int) -> Tensor:
    if mode == "sign":
        return gradient.sign()
    if mode == "normalized":
        return gradient / gradient.abs().flatten(1).mean(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return gradient / batch
