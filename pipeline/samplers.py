"""Where adversarial perturbations come from: a distribution, a generator, PGD with restarts, noise.

All are drawn the same way, so that whatever is asked of the samples is asked of every source alike.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.adversaries.amortized import Amortized, AmortizedExplicit, generator_input
from pipeline.adversaries.base import Adversary
from pipeline.adversaries.explicit import Explicit
from pipeline.adversaries.pgd import ProjectedGradient
from pipeline.ascent import Ascent, Inner, autocast
from pipeline.distribution import Search, sample
from pipeline.losses import cross_entropy
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Noise

if TYPE_CHECKING:
    from pipeline.params import Explicit as ExplicitSettings


@dataclass(frozen=True)
class Drawn:
    """S perturbations an image: `deltas` (N, S, C, H, W) inside the set; x + delta may leave [0, 1].

    `entropy`: mean over the draws of -log density of delta / eps, in nats per dimension (N,); None
    where the source has no density that can be written down.
    """

    deltas: Tensor
    entropy: Tensor | None = None


# sampler(model, x (N, C, H, W) in [0, 1], labels (N,), perturbations, noise, draws); the caller freezes the
# model. Row n depends on example n and its row of noise alone, and fewer draws are the first of more.
Sampler = Callable[[nn.Module, Tensor, Tensor, PerturbationSet, Noise, int], Drawn]


@dataclass(frozen=True)
class Learned:
    """ADT_EXP's distribution, searched for on the model at hand."""

    search: Search

    @classmethod
    def with_settings(cls, s: "ExplicitSettings") -> "Learned":
        """The search of the method's parameters `s`, every switch resolved."""
        return cls(Search(s.lam, s.steps, s.samples, s.inner_lr, s.initial_rho, s.accumulate, s.damping))

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise, draws: int
    ) -> Drawn:
        """The search takes draws 0 to T - 1 of `noise`, sample s draw T + s."""
        mean, raw_scale = self.search.fit(model, x, labels, perturbations, noise)
        normals = (noise.normal(*x.shape[1:], draw=self.search.steps + draw) for draw in range(draws))
        return _squashed(perturbations, mean, raw_scale, normals)


@dataclass(frozen=True)
class FromGenerator:
    """A trained generator, which sees the gradients of the model at hand: one forward pass a sample.

    `batch_size`: that of the generator's training (see `generator_maps`). The samples lie in the set that the
    generator was trained in.
    """

    adversary: Amortized
    batch_size: int

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise, draws: int
    ) -> Drawn:
        """Batch norms of the generator evaluate, so samples do not depend on the batch."""
        maps = generator_maps(self.adversary, model, x, labels, perturbations, self.batch_size)
        branches = [noise.branch(draw) for draw in range(draws)]
        with evaluating(self.adversary):
            if isinstance(self.adversary, AmortizedExplicit):
                with autocast(x.device, self.adversary.inner.precision):
                    parameters = self.adversary.generator(maps)
                mean, raw_scale = parameters.to(x.dtype).chunk(2, 1)
                normals = (branch.normal(*x.shape[1:]) for branch in branches)
                return _squashed(self.adversary.perturbations, mean, raw_scale, normals)
            return Drawn(torch.stack([self.adversary.perturb(maps, branch, 1)[0] for branch in branches], 1))


@dataclass(frozen=True)
class Restarts:
    """The last iterates of PGD on the cross-entropy, from a random start a draw; x + delta stays in [0, 1]."""

    steps: int
    step_size: float

    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise, draws: int
    ) -> Drawn:
        """Every restart costs `steps` gradient evaluations an image."""
        climb = Ascent(cross_entropy, perturbations, self.steps, self.step_size)
        starts = (perturbations.start(x, noise.branch(draw)) for draw in range(draws))
        return Drawn(torch.stack([climb.last(model, x, labels, start) - x for start in starts], 1))


@dataclass(frozen=True)
class Uniform:
    """The set's own random starts: uniform on the l-infinity ball, of uniform radius in the l2 ball."""

    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise, draws: int
    ) -> Drawn:
        """Neither the model nor the labels are looked at."""
        return Drawn(torch.stack([perturbations.start(x, noise.branch(draw)) for draw in range(draws)], 1))


def of_adversary(adversary: Adversary, batch_size: int) -> Sampler:
    """The samples that a training method's own adversary gives, at its own settings.

    `batch_size`: that of the training. `TypeError` for an adversary that is neither a distribution nor PGD.
    """
    s = adversary.settings
    if isinstance(adversary, Explicit):
        return Learned.with_settings(s)
    if isinstance(adversary, Amortized):
        return FromGenerator(adversary, batch_size)
    if isinstance(adversary, ProjectedGradient):
        return Restarts(s.steps, s.step_size)
    raise TypeError(f"{type(adversary).__name__} draws no samples")


def generator_maps(
    adversary: Amortized, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, batch_size: int
) -> Tensor:
    """What the generator is fed (N, 3C, H, W): two gradient evaluations of `model` an image.

    With `gradient_input: raw` the input scales with 1 / batch in training; it is fed here on the scale that the
    generator has learnt with `batch_size`, whatever the batch here.
    """
    mode, inner = adversary.settings.gradient_input, Inner(precision=adversary.inner.precision)
    maps = generator_input(model, x, labels, perturbations, mode, inner)
    if mode == "raw":
        maps[:, x.shape[1] :] *= len(x) / batch_size
    return maps


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, the mode it had after it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _squashed(perturbations: PerturbationSet, mean: Tensor, raw_scale: Tensor, normals: Iterable[Tensor]) -> Drawn:
    """Samples squash(mean + sigma r), one for each r of `normals`."""
    deltas, entropies = zip(*(sample(perturbations, mean, raw_scale, normal) for normal in normals), strict=True)
    return Drawn(torch.stack(deltas, 1), torch.stack(entropies, 1).mean(1))
