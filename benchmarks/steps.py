"""One training step of each method, by our code and by the released code, as named tensors to compare.

A method is a class with `cases` and two functions. `default` is our code as it trains with
`as: released`. `guarded` takes away the one difference that we chose, to show what is left: the
released entropy has 1e-8 inside its logarithms (`ours.GuardedLinf`).

The released loss is the batch mean, summed over k samples; ours is the example's own, averaged over
them. Adam(0, 0)'s step g / (|g| + 1e-8) sees that through the 1e-8 alone: our `damping` is
1e-8 N / k, which at the released N = 64 and k = 5 is the value of `as: released`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from benchmarks import ours
from benchmarks.reference import pgd_loss
from benchmarks.setting import Setting
from pipeline.perturbation import Linf

WIDTH = 16  # of the generator, for speed; the released 256 has the same layers
Tensors = dict[str, Tensor]


class Method(Protocol):
    """The two sides of a comparison; `released` draws the noise that `ours` drew."""

    cases: tuple[str, ...]

    def ours(self, s: Setting, case: str) -> tuple[Tensors, list[Tensor]]:
        """What our step gives, and the noise it drew in the order in which the released code does."""

    def released(self, s: Setting, case: str, noise: list[Tensor]) -> Tensors:
        """What the released step gives."""


class ProjectedGradient:
    """AT_PGD; the other side is our transcription of the baseline, there is no released one."""

    cases = ("default",)

    def ours(self, s: Setting, case: str) -> tuple[Tensors, list[Tensor]]:
        """Images, loss, classifier gradient; the noise is the start in units of eps."""
        (x, y), model, noise = s.batch(4), s.classifier(), s.noise(4)
        images, loss = ours.step(ours.projected_gradient(Linf(ours.EPS)), model, x, y, noise)
        return _outcome(images, loss, model), [2 * noise.queue()[0] - 1]

    def released(self, s: Setting, case: str, noise: list[Tensor]) -> Tensors:
        """Likewise."""
        (x, y), model = s.batch(4), s.classifier()
        seen = _inputs(model)
        start = noise[0] * ours.EPS
        loss = pgd_loss(model, x, y, _sgd(model), ours.EPS, ours.PGD_STEPS, ours.PGD_STEP_SIZE, start)
        loss.backward()
        return _outcome(seen[-1], loss.detach(), model)


@dataclass(frozen=True)
class _ExplicitCase:
    images: int
    samples: int
    perturbations: Linf
    steps: tuple[int, ...] = tuple(range(1, ours.STEPS + 1))  # after which (mean, rho) are compared


class Explicit:
    """ADT_EXP: (mean, rho) after each inner step, then the training sample and the outer step."""

    _cases = {
        "default": _ExplicitCase(4, 2, Linf(ours.EPS)),
        "guarded": _ExplicitCase(4, 2, ours.GuardedLinf(ours.EPS), (ours.STEPS,)),
    }
    cases = tuple(_cases)

    def ours(self, s: Setting, case: str) -> tuple[Tensors, list[Tensor]]:
        """The search is run anew with 1, 2, ... steps to see its path."""
        c = self._cases[case]
        (x, y), model, noise = s.batch(c.images), s.classifier(), s.noise(c.images)
        path = {
            steps: ours.explicit(c.perturbations, c.images, c.samples, steps).fit(model, x, y, s.noise(c.images))
            for steps in c.steps
        }
        images, loss = ours.step(ours.explicit(c.perturbations, c.images, c.samples), model, x, y, noise)
        return _path(path) | _outcome(images, loss, model), noise.queue()

    def released(self, s: Setting, case: str, noise: list[Tensor]) -> Tensors:
        """The path is what its Adam held after each step."""
        c = self._cases[case]
        (x, y), model, trace = s.batch(c.images), s.classifier(), []
        seen = _inputs(model)
        numbers = {"lr": ours.INNER_LR, "eps": ours.EPS, "steps": ours.STEPS, "samples": c.samples, "lam": ours.LAM}
        loss = s.reference.explicit_loss(model, x, y, _sgd(model), **numbers, noise=noise, trace=trace)
        loss.backward()
        path = {steps: trace[steps - 1] for steps in c.steps}
        return _path(path) | _outcome(seen[-1], loss.detach(), model)


class AmortizedExplicit:
    """ADT_EXP-AM, with the weights of a released generator on both sides."""

    _sets = {"default": Linf(ours.EPS), "guarded": ours.GuardedLinf(ours.EPS)}
    cases = tuple(_sets)

    def ours(self, s: Setting, case: str) -> tuple[Tensors, list[Tensor]]:
        """What the generator answers, and what both players' optimisers see."""
        (x, y), model, noise = s.batch(4), s.classifier(), s.noise(4)
        adversary = ours.amortized(self._sets[case], self._generator(s), WIDTH).to(x)
        answers = _outputs(adversary.generator)
        images, loss = ours.step(adversary, model, x, y, noise)
        play = {"generator output": answers[0], "generator gradient": _gradient(adversary.generator)}
        return _outcome(images, loss, model) | play, noise.queue()

    def released(self, s: Setting, case: str, noise: list[Tensor]) -> Tensors:
        """Likewise."""
        (x, y), model, generator = s.batch(4), s.classifier(), self._generator(s)
        seen, answers = _inputs(model), _outputs(generator)
        numbers = {"eps": ours.EPS, "lam": ours.LAM}
        loss = s.reference.amortized_step(model, x, y, _sgd(model), generator, _adam(generator), **numbers, noise=noise)
        play = {"generator output": answers[0], "generator gradient": _gradient(generator)}
        return _outcome(seen[-1], loss, model) | play

    def _generator(self, s: Setting) -> nn.Module:
        return s.build(lambda: s.reference.generator(9, 6, WIDTH))


class AmortizedImplicit:
    """ADT_IMP-AM, with a released generator's weights and the released encoder on both sides."""

    cases = ("default",)

    def ours(self, s: Setting, case: str) -> tuple[Tensors, list[Tensor]]:
        """What the generator answers, and what all three players' optimisers see."""
        (x, y), model, noise = s.batch(4), s.classifier(), s.noise(4)
        adversary = ours.implicit(Linf(ours.EPS), self._generator(s), self._encoder(s), WIDTH).to(x)
        answers = _outputs(adversary.generator)
        images, loss = ours.step(adversary, model, x, y, noise)
        play = {"generator output": answers[0], "generator gradient": _gradient(adversary.generator)}
        return _outcome(images, loss, model) | play | {
            "encoder gradient": _gradient(adversary.encoder.encoder)
        }, noise.queue()

    def released(self, s: Setting, case: str, noise: list[Tensor]) -> Tensors:
        """Likewise."""
        (x, y), model = s.batch(4), s.classifier()
        generator, encoder = self._generator(s), self._encoder(s)
        seen, answers = _inputs(model), _outputs(generator)
        players = (_sgd(model), generator, _adam(generator), encoder, _adam(encoder))
        numbers = {"eps": ours.EPS, "lam": ours.LAM_IMPLICIT, "tau": ours.TAU, "latent": ours.LATENT}
        loss = s.reference.implicit_step(model, x, y, *players, **numbers, noise=noise)
        play = {"generator output": answers[0], "generator gradient": _gradient(generator)}
        return _outcome(seen[-1], loss, model) | play | {"encoder gradient": _gradient(encoder)}

    def _generator(self, s: Setting) -> nn.Module:
        return s.build(lambda: s.reference.generator(10, 3, WIDTH, ours.LATENT))

    def _encoder(self, s: Setting) -> nn.Module:
        return s.build(lambda: s.reference.encoder(ours.LATENT))


METHODS: dict[str, Method] = {
    "at_pgd": ProjectedGradient(),
    "adt_exp": Explicit(),
    "adt_exp_am": AmortizedExplicit(),
    "adt_imp_am": AmortizedImplicit(),
}


def _outcome(images: Tensor, loss: Tensor, model: nn.Module) -> Tensors:
    return {"images": images, "loss": loss, "classifier gradient": _gradient(model)}


def _path(path: dict[int, tuple[Tensor, Tensor]]) -> Tensors:
    names = [f"{name}, step {step}" for step in path for name in ("mean", "rho")]
    return dict(zip(names, (tensor for pair in path.values() for tensor in pair), strict=True))


def _gradient(model: nn.Module) -> Tensor:
    """All gradients in one row, ordered by our names, which both sides' generators can be brought to."""
    gradients = {ours.our_name(name): p.grad.flatten() for name, p in model.named_parameters()}
    return torch.cat([gradients[name] for name in sorted(gradients)])


def _sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)


def _adam(model: nn.Module) -> Adam:
    return Adam(model.parameters(), lr=ours.GENERATOR_LR, betas=ours.GENERATOR_BETAS)


def _inputs(model: nn.Module) -> list[Tensor]:
    """A list that receives what the model is applied to from now on."""
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    return seen


def _outputs(model: nn.Module) -> list[Tensor]:
    """A list that receives what the model answers from now on."""
    given: list[Tensor] = []
    model.register_forward_hook(lambda _, inputs, output: given.append(output.detach()))
    return given
