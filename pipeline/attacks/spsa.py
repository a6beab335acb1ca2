"""SPSA, an attack that sees logits but no gradients: it exposes models whose gradients are masked."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.losses import margin
from pipeline.perturbation import PerturbationSet, onto_images
from pipeline.seeding import Noise

BETAS = (0.9, 0.999)
TINY = 1e-8


@dataclass(frozen=True)
class Spsa:
    """Projected Adam on gradients estimated from pairs of model evaluations (Uesato et al. 2018).

    As in ADT's released spsa.py: from the image itself, `steps` steps of Adam with learning rate
    `step_size` that lower the margin, each projected onto the set and clipped to [0, 1]; an example
    stops where its label flips. The released loss, C&W with confidence 50, is the margin up to a
    constant until a wrong class leads by 50 logits; without the constant, differences in float32 are more exact.

    `samples`: evaluations an estimate, even: half as many random directions, each walked both ways by
    `sigma` a pixel. The evaluated points are not clipped to [0, 1], as released. `group`: how many
    images go through the model at once; it moves results by no more than the rounding of batched arithmetic.
    """

    steps: int
    step_size: float
    samples: int
    sigma: float
    group: int = 1024

    @property
    def queries_per_example(self) -> int:
        """Evaluations that estimate gradients for an example that holds; one more a step checks the label."""
        return self.steps * self.samples

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise
    ) -> Tensor:
        """Attacked images for x (N, C, H, W) in [0, 1]: each at its first misclassified iterate, else after all steps.

        An example that is broken leaves the batch, so robust examples alone cost all queries.
        """
        found, active = x.clone(), torch.arange(len(x), device=x.device)
        images, first, second = x, torch.zeros_like(x), torch.zeros_like(x)
        for step in range(self.steps):
            holding = self._margins(model, images, labels) > 0
            active, x, labels, noise = active[holding], x[holding], labels[holding], noise.rows(holding)
            if not len(active):
                break
            images, first, second = images[holding], first[holding], second[holding]
            gradient = self.estimate(model, images, labels, noise, step)
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
            mean, square = (m / (1 - b ** (step + 1)) for m, b in zip((first, second), BETAS, strict=True))
            delta = images - x - self.step_size * mean / (square.sqrt() + TINY)
            found[active] = images = onto_images(x, perturbations.project(delta))
        return found

    def estimate(self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise, step: int) -> Tensor:
        """An estimate of d margin / d image, like `images`; memory is that of `group` images or one example's samples.

        The mean over directions v in {-1, 1}^d of v (margin(image + sigma v) - margin(image - sigma v)) / (2 sigma).
        """
        pairs, parts = self.samples // 2, []
        for rows in torch.arange(len(images), device=images.device).split(max(1, self.group // self.samples)):
            signs = noise.rows(rows).signs(pairs, *images.shape[1:], draw=step).to(images.dtype)
            walks = self.sigma * torch.cat([signs, -signs], 1)
            points = (images[rows, None] + walks).flatten(0, 1)
            margins = self._margins(model, points, labels[rows].repeat_interleave(self.samples))
            ahead, back = margins.view(-1, 2, pairs).unbind(1)
            parts.append(torch.einsum("np,np...->n...", ahead - back, signs) / (2 * self.sigma * pairs))
        return torch.cat(parts)

    def _margins(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The margin of each image: (N,)."""
        parts = zip(images.split(self.group), labels.split(self.group), strict=True)
        return torch.cat([margin(model(some), own) for some, own in parts])
