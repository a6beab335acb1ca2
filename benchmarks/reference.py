"""The released training steps and PGD evaluation as functions of a model and a batch, from a clone the user names.

Adversarial-Distributional-Training of Dong et al. (be5464a): `adt_exp.py`, `adt_expam.py`,
`adt_impam.py`, `evaluate_attacks.py` and `models/`. Their arithmetic is untouched; what can be put in from outside
is the noise they draw and, for a look inside, a trace of ADT_EXP's inner optimiser. Called
without noise or trace they see torch itself, so they can be timed.
"""

import contextlib
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from benchmarks.instruments import Never, RecordedLosses, Trace, default_dtype, queued, traced
from benchmarks.released import Clone, replaced


class Reference:
    """The released code of a clone on one device; everything is loaded, and checked, at once.

    Images x are (N, 3, 32, 32) in [0, 1], labels y (N,) int64; eps is in units of that range.
    `noise`: the tensors that the released code shall draw, in its order; without it, it draws its own.
    Classifiers and generators are built on the CPU by the released initialisation (N(0, 0.02)
    for the generator) from torch's global generator, then moved. `UserError` where the clone is not one.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu") -> None:
        self.folder, self.device = Path(folder), torch.device(device)
        clone = Clone(self.folder, str(self.device))
        self._explicit = clone.module("adt_exp", "adt_loss")
        self._amortized = clone.module("adt_expam", "train", "generate_pert", "grad_inv")
        self._implicit = clone.module("adt_impam", "train", "grad_inv")
        arguments = Namespace(epsilon=8 / 255, num_steps=20, step_size=2 / 255, random=True)  # the released defaults
        self._attacks = clone.module("evaluate_attacks", "_pgd_whitebox", args=arguments, device=self.device)
        self._generators = clone.module("models.generator", "define_G", "Encoder")
        self._residual = clone.module("models.resnet", "ResNet18")
        self._wide = clone.module("models.wideresnet", "WideResNet")

    def commit(self) -> str | None:
        """The commit of the clone; None where the folder is not the root of a git clone, or git is not here."""
        if not (self.folder / ".git").exists() or shutil.which("git") is None:
            return None
        command = ["git", "-C", str(self.folder), "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return answer.stdout.strip() or None

    def resnet18(self) -> nn.Module:
        """Their ResNet-18 for 10 classes."""
        return self._residual.ResNet18().to(self.device)

    def wide_resnet(self, depth: int = 28) -> nn.Module:
        """Their WideResNet of widen factor 10 for 10 classes; its `sub_block1` is never used and gets no gradient."""
        return self._wide.WideResNet(depth=depth).to(self.device)

    def generator(self, inputs: int, outputs: int, width: int = 256, latent: int = 0) -> nn.Module:
        """Their residual generator (3 blocks). With a latent vector, `inputs` counts its channel, as released."""
        with contextlib.redirect_stdout(None):  # it announces its initialisation
            net = self._generators.define_G(inputs, outputs, width, "resnet_3blocks", gpu_ids=[], z_dim=latent)
        return net.to(self.device)

    def encoder(self, latent: int = 64) -> nn.Module:
        """Their encoder: (N, 3, 32, 32) in [-1, 1] to (N, 2 latent), mean and raw variance."""
        return self._generators.Encoder(latent).to(self.device)

    def explicit_loss(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        optimizer: Optimizer,
        lr: float,
        eps: float,
        steps: int,
        samples: int,
        lam: float,
        noise: Iterable[Tensor] | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """ADT_EXP's `adt_loss`: the classifier's loss with its graph; the caller steps, as their `train` does.

        Draws: standard normal (N, 3, 32, 32), `samples` a step for `steps` steps, then one for the
        training sample. `trace` receives (mean, rho) after every step.
        """
        with default_dtype(x.dtype), queued(self._explicit, noise), traced(self._explicit, trace):
            return self._explicit.adt_loss(
                model=model,
                x_natural=x,
                y=y,
                optimizer=optimizer,
                learning_rate=lr,
                epsilon=eps,
                perturb_steps=steps,
                num_samples=samples,
                lbd=lam,
            )

    def amortized_step(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        optimizer: Optimizer,
        generator: nn.Module,
        optimizer_g: Optimizer,
        eps: float,
        lam: float,
        noise: Iterable[Tensor] | None = None,
    ) -> Tensor:
        """One batch of EXP-AM's `train`: both optimisers step, gradients stay in `.grad`; returns the cross-entropy.

        Draws: one standard normal (N, 3, 32, 32).
        """
        args = Namespace(epsilon=eps, lbd=lam, log_interval=Never())
        players = (optimizer, 1, generator, optimizer_g)
        return self._train(self._amortized, args, model, x, y, players, noise)

    def implicit_step(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        optimizer: Optimizer,
        generator: nn.Module,
        optimizer_g: Optimizer,
        encoder: nn.Module,
        optimizer_e: Optimizer,
        eps: float,
        lam: float,
        tau: float,
        latent: int,
        noise: Iterable[Tensor] | None = None,
    ) -> Tensor:
        """One batch of IMP-AM's `train`, likewise. Draws: one uniform on [0, 1) of (N, latent)."""
        args = Namespace(epsilon=eps, lbd=lam, entropy_th=tau, z_dim=latent, log_interval=Never())
        players = (optimizer, 1, generator, optimizer_g, encoder, optimizer_e)
        return self._train(self._implicit, args, model, x, y, players, noise)

    def pgd_accuracy(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, alpha: float) -> float:
        """Share of a batch that holds on PGD's last iterate, as their evaluation of a batch computes it.

        Random start, drawn by itself. Like theirs it also classifies x itself, and leaves gradients in the weights.
        """
        model.eval()
        x = x.detach().requires_grad_()
        with contextlib.redirect_stdout(None):  # it prints every batch's errors
            _, errors = self._attacks._pgd_whitebox(model, x, y, epsilon=eps, num_steps=steps, step_size=alpha)
        return 1 - float(errors) / len(x)

    def _train(
        self,
        script: ModuleType,
        args: Namespace,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        players: tuple[Any, ...],
        noise: Iterable[Tensor] | None,
    ) -> Tensor:
        """Their epoch loop over a loader of one batch; its last cross-entropy is the training loss."""
        losses: list[Tensor] = []
        with default_dtype(x.dtype), queued(script, noise), replaced(script, F=RecordedLosses(losses)):
            script.train(args, model, self.device, [(x.detach(), y)], *players)
        return losses[-1].detach()


def pgd_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: Optimizer,
    eps: float,
    steps: int,
    alpha: float,
    start: Tensor | None = None,
) -> Tensor:
    """AT_PGD's loss with its graph, the caller steps: OUR transcription, not released code.

    The released repository trains no AT_PGD. This is the baseline that the authors' development
    repository (thudzj/ADT, af3529d) describes: a uniform start in the eps ball clipped to [0, 1],
    `steps` steps (7) of size `alpha` (2/255) along the sign, batch norm in evaluation mode meanwhile,
    then the training-mode loss. As in the released attacks and `adt_loss`, `backward()` also computes
    the weights' gradients in every step, which nobody reads. `start` (N, C, H, W) replaces the
    random start's perturbation.
    """
    model.eval()
    if start is None:
        start = torch.empty_like(x).uniform_(-eps, eps)
    x_adv = torch.clamp(x + start, 0.0, 1.0)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        functional.cross_entropy(model(x_adv), y).backward()
        stepped = x_adv.detach() + alpha * x_adv.grad.sign()
        x_adv = torch.clamp(torch.min(torch.max(stepped, x - eps), x + eps), 0.0, 1.0)
    model.train()
    optimizer.zero_grad()
    return functional.cross_entropy(model(x_adv), y)
