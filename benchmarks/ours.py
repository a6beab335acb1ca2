"""Our side of a comparison with the released code: the same settings, weights and noise, and one training step."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from pipeline import params
from pipeline.adversaries import Adversary
from pipeline.adversaries.amortized import AmortizedExplicit, AmortizedImplicit
from pipeline.adversaries.explicit import Explicit
from pipeline.adversaries.pgd import ProjectedGradient
from pipeline.perturbation import Linf, PerturbationSet, Upstream
from pipeline.seeding import Noise

EPS = 8 / 255
PGD_STEPS, PGD_STEP_SIZE = 7, 2 / 255
STEPS, INNER_LR = 7, 0.3
LAM, LAM_IMPLICIT, TAU, LATENT = 0.01, 1.0, 0.9, 64
GENERATOR_LR, GENERATOR_BETAS = 2e-4, (0.5, 0.999)
IMAGE = (3, 32)  # channels and size; the released encoder and latent channel take no other


def projected_gradient(perturbations: PerturbationSet) -> ProjectedGradient:
    """AT_PGD-7."""
    settings = params.ProjectedGradient(steps=PGD_STEPS, step_size=PGD_STEP_SIZE)
    return ProjectedGradient(settings, perturbations, *IMAGE)


def explicit(perturbations: PerturbationSet, batch: int, samples: int, steps: int = STEPS) -> Explicit:
    """ADT_EXP with the released switches; the released batch mean sets the scale of Adam's 1e-8."""
    settings = params.Explicit(
        lam=LAM,
        steps=steps,
        samples=samples,
        inner_lr=INNER_LR,
        initial_rho=0.0,
        accumulate=True,
        damping=1e-8 * batch / samples,
        outer_samples=1,
    )
    return Explicit(settings, perturbations, *IMAGE)


def amortized(perturbations: PerturbationSet, generator: nn.Module, width: int) -> AmortizedExplicit:
    """ADT_EXP-AM with the released switches and the weights of a released generator."""
    settings = params.Amortized(lam=LAM, width=width, gradient_input="raw", generator_lr=GENERATOR_LR, outer_samples=1)
    adversary = AmortizedExplicit(settings, perturbations, *IMAGE)
    adversary.generator.load_state_dict(renamed(generator.state_dict()))
    return adversary


def implicit(perturbations: PerturbationSet, generator: nn.Module, encoder: nn.Module, width: int) -> AmortizedImplicit:
    """ADT_IMP-AM with the released switches, generator weights and encoder: our own encoder is another network."""
    settings = params.AmortizedImplicit(
        lam=LAM_IMPLICIT,
        width=width,
        gradient_input="raw",
        generator_lr=GENERATOR_LR,
        outer_samples=1,
        latent=LATENT,
        encoder_width=1,
        hinge=True,
        tau=TAU,
    )
    adversary = AmortizedImplicit(settings, perturbations, *IMAGE)
    adversary.generator.load_state_dict(renamed(generator.state_dict()))
    adversary.encoder = ReleasedEncoder(encoder)
    return adversary


def step(adversary: Adversary, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """One batch as the training loop does it, up to the optimisers: (samples, loss); gradients are in `.grad`."""
    adversary.train()
    samples = adversary(model, x, y, noise)
    for parameter in (*model.parameters(), *adversary.parameters()):
        parameter.grad = None
    model.train()
    loss = cross_entropy(model(samples.x), y)
    (loss if samples.penalty is None else loss + samples.penalty).backward()
    return samples.x.detach(), loss.detach()


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A released generator's tensors under our names: the layout is the same, layer by layer."""
    return {our_name(name): value for name, value in state.items()}


def our_name(name: str) -> str:
    """Our name of a tensor of the released generator: model.3.conv_block.0.weight is blocks.0.body.0.weight.

    Names that are no released generator's stay as they are.
    """
    for theirs, mine in _RENAMED.items():
        if name.startswith(theirs):
            return (mine + name.removeprefix(theirs)).replace("conv_block", "body").replace("short_cut", "shortcut")
    return name


_RENAMED = {
    "model.0.": "stem.0.",
    "model.1.": "stem.1.",
    "model.3.": "blocks.0.",
    "model.4.": "blocks.1.",
    "model.5.": "blocks.2.",
    "model.6.": "head.",
    "z_encoder.": "embed.",
}


class ReleasedEncoder(nn.Module):
    """A released encoder with our encoder's interface: mean and variance of z."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The raw variance goes through softplus, as the released training step does."""
        mean, raw = self.encoder(delta).chunk(2, 1)
        return mean, softplus(raw)


class GuardedLinf(Linf):
    """The l-infinity ball with the released guard in the density: log(1 - tanh^2 + 1e-8), constant beyond |u| = 9."""

    def squash(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Linf`, up to a constant."""
        squashed = torch.tanh(u)
        return self.eps * squashed, (1 - squashed**2 + 1e-8).log().flatten(1).sum(1)

    def pull_back(self, u: Tensor, upstream: Upstream, weight: float) -> Tensor:
        """As in `Linf`, with the guard in the derivative of the density."""
        squashed = torch.tanh(u)
        slope = 1 - squashed**2
        return upstream(self.eps * squashed) * self.eps * slope - 2 * weight * squashed * slope / (slope + 1e-8)


@dataclasses.dataclass(frozen=True)
class RecordedNoise(Noise):
    """Our noise in a dtype of choice (float32 bits, converted before use), with a record of what was drawn."""

    dtype: torch.dtype = torch.float32
    drawn: list[Tensor] = dataclasses.field(default_factory=list)

    def uniform(self, *shape: int, draw: int = 0) -> Tensor:
        """As in `Noise`, recorded."""
        self.drawn.append(super().uniform(*shape, draw=draw).to(self.dtype))
        return self.drawn[-1]

    def normal(self, *shape: int, draw: int = 0) -> Tensor:
        """As in `Noise`; the record holds the normal numbers, not the uniform ones they come from."""
        values = super().normal(*shape, draw=draw)
        self.drawn[-1] = values
        return values

    def queue(self) -> list[Tensor]:
        """What was drawn, one tensor a sample, in the released order.

        Images are (N, C, H, W) and latent vectors (N, L); k samples of either have one more dimension, the second.
        """
        return [part for t in self.drawn for part in (t.unbind(1) if t.dim() in (3, 5) else (t,))]
