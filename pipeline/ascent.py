"""Gradient ascent inside a perturbation set: the one loop behind FGSM, PGD, MIM, C&W and PGD training."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pipeline.models.folding import folded
from pipeline.perturbation import PerturbationSet, onto_images

Loss = Callable[[Tensor, Tensor], Tensor]


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no parameter gradients inside the block; every module as before after it.

    Yields the model with batch norm folded into its convolutions, for gradients with
    respect to inputs. Batch norm in evaluation mode is what the released code uses
    inside its inner loops; leaving out parameter gradients saves a third of the arithmetic.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        yield folded(model)
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def input_gradient(model: nn.Module, x: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """d loss(model(x_n), y_n) / d x_n for each example; the loss is per example, so no 1/N enters."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(model(x), labels).sum(), x)[0]


def ascend(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    delta: Tensor,
    *,
    loss: Loss,
    perturbations: PerturbationSet,
    steps: int,
    step_size: float,
    momentum: float | None = None,
) -> Tensor:
    """Climb `loss` from the start `delta` for `steps` projected steps; returns the last images.

    delta <- project(delta + step_size * direction(g)), with g the input gradient at
    clip(x + delta, 0, 1). With `momentum` (MIM, Dong et al. 2018) the direction is
    taken of the running sum m <- momentum * m + g / mean|g|. The caller freezes the model.
    """
    velocity = torch.zeros_like(x)
    for _ in range(steps):
        gradient = input_gradient(model, onto_images(x, delta), labels, loss)
        if momentum is not None:
            scale = gradient.abs().flatten(1).mean(1).clamp_min(1e-12)
            velocity = momentum * velocity + gradient / scale.view(-1, 1, 1, 1)
            gradient = velocity
        delta = perturbations.project(delta + step_size * perturbations.direction(gradient))
        delta = onto_images(x, delta) - x
    return onto_images(x, delta)
