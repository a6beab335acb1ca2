"""Gradient ascent inside a perturbation set: behind FGSM, PGD, MIM, C&W and PGD training alike."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.losses import margin
from pipeline.models.folding import folded
from pipeline.models.lowering import Lowered, is_wide
from pipeline.perturbation import PerturbationSet, onto_images

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Inner:
    """How a network runs while an adversary or an attack takes gradients with respect to images.

    `batch_norm`: "eval" (the released ADT code) or "train" (batch statistics, and the running
    ones move: Rice et al. 2020). `precision`: "fp32" or "bf16", of the network alone.
    """

    batch_norm: str = "eval"
    precision: str = "fp32"


EVALUATING = Inner()


@contextlib.contextmanager
def frozen(model: nn.Module, inner: Inner = EVALUATING) -> Iterator[nn.Module]:
    """No parameter gradients inside the block, and the mode that `inner` asks for; every module as before after it.

    Yields what gradients with respect to inputs go through: in evaluation mode batch norm is
    folded into the convolutions, wide networks run channels last, and with bf16 the network's
    arithmetic is bfloat16; images in and logits out stay as they are. Leaving out parameter
    gradients saves a third of the arithmetic.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.train(inner.batch_norm == "train")
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        view = model if inner.batch_norm == "train" else folded(model)
        if inner.precision == "bf16":
            view = Lowered(view, torch.bfloat16)
        elif is_wide(model):
            view = Lowered(view, next(model.parameters()).dtype)
        yield view
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Arithmetic of a network that is being trained: bfloat16 inside the block if `precision` is "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def input_gradient(model: nn.Module, x: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """d loss(model(x_n), y_n) / d x_n for each example; the loss is per example, so no 1/N enters."""
    return logits_and_gradient(model, x, labels, loss)[1]


def logits_and_gradient(model: nn.Module, x: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """The logits (N, K), detached, and the input gradient from one forward and one backward pass."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        return logits.detach(), torch.autograd.grad(loss(logits, labels).sum(), x)[0]


@dataclass(frozen=True)
class Ascent:
    """Projected steps on a loss; the start is clipped to images first.

    delta <- project(delta + step_size * direction(g)), with g the input gradient at x + delta, and
    x + delta is clipped to [0, 1] again. With `momentum` (MIM, Dong et al. 2018) the direction is
    taken of the running sum m <- momentum * m + g / mean|g|. The caller freezes the model.
    """

    loss: Loss
    perturbations: PerturbationSet
    steps: int
    step_size: float
    momentum: float | None = None

    def last(self, model: nn.Module, x: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
        """The images after all steps from the perturbation `delta`."""
        images, velocity = onto_images(x, delta), torch.zeros_like(x)
        for _ in range(self.steps):
            gradient = input_gradient(model, images, labels, self.loss)
            images, velocity = self._step(x, images, gradient, velocity)
        return images

    def first_broken(self, model: nn.Module, x: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
        """Each image at the first iterate that is misclassified, else after all steps.

        An example that is broken leaves the batch, so robust examples alone cost all steps.
        """
        images, velocity = onto_images(x, delta), torch.zeros_like(x)
        found, active = images.clone(), torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            logits, gradient = logits_and_gradient(model, images, labels, self.loss)
            holding = margin(logits, labels) > 0
            found[active] = images
            active, x, labels = active[holding], x[holding], labels[holding]
            if not len(active):
                return found
            images, velocity = self._step(x, images[holding], gradient[holding], velocity[holding])
        found[active] = images
        return found

    def _step(self, x: Tensor, images: Tensor, gradient: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        if self.momentum is not None:
            scale = gradient.abs().flatten(1).mean(1).clamp_min(1e-12)
            gradient = velocity = self.momentum * velocity + gradient / scale.view(-1, 1, 1, 1)
        p = self.perturbations
        delta = p.project(images - x + self.step_size * p.direction(gradient))
        return onto_images(x, delta), velocity
