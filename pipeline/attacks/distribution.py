"""Samples of the explicit adversarial distribution as an attack: ADT_EXP's inner loop, on any model."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.distribution import Search, sample
from pipeline.losses import margin
from pipeline.perturbation import PerturbationSet, onto_images
from pipeline.seeding import Noise


@dataclass(frozen=True)
class ExplicitDistribution:
    """Find an image's adversarial distribution as the released ADT_EXP does, and try samples of it.

    The search takes `steps` steps of length `step_size` in mu and rho, with `samples` draws each and
    the entropy weighted by `lam` (see `Search`). Then up to `draws` fresh samples an image are
    judged: where a distribution is broad, one of many samples tells more than the mean of a few.
    """

    steps: int
    samples: int
    step_size: float
    lam: float
    draws: int

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise
    ) -> Tensor:
        """Attacked images for x (N, C, H, W) in [0, 1]: each the first misclassified sample, else that of least margin.

        An example that is broken leaves the batch, so robust examples alone cost all draws. One sample of the
        batch goes through the model at a time.
        """
        found, active = x.clone(), torch.arange(len(x), device=x.device)
        if not len(x):
            return found
        mean, raw_scale = Search(self.lam, self.steps, self.samples, self.step_size).fit(
            model, x, labels, perturbations, noise
        )
        least = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        for draw in range(self.draws):
            # The search took draws 0 to steps - 1; a draw a sample makes fewer samples a part of more.
            normal = noise.rows(active).normal(*x.shape[1:], draw=self.steps + draw)
            delta, _ = sample(perturbations, mean[active], raw_scale[active], normal)
            images = onto_images(x[active], delta)
            margins = margin(model(images), labels[active])
            nearer = ~(margins >= least[active])  # NaN counts as broken
            found[active[nearer]], least[active[nearer]] = images[nearer], margins[nearer]
            active = active[margins > 0]
            if not len(active):
                break
        return found
