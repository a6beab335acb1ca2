"""Attacks made elsewhere: images of another model, and generators that another model was trained with."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.adversaries.amortized import Amortized
from pipeline.losses import margin
from pipeline.perturbation import PerturbationSet, onto_images
from pipeline.samplers import evaluating, generator_maps
from pipeline.seeding import Noise


@dataclass(frozen=True)
class Shown:
    """Finished images as an attack: whatever the model, example `index[n]` becomes `images[n]` (N, C, H, W)."""

    images: Tensor
    index: Tensor

    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise
    ) -> Tensor:
        """The images of the examples of x; all of them must be in `index`."""
        order = self.index.argsort()
        return self.images[order[torch.searchsorted(self.index[order], noise.index)]]


@dataclass(frozen=True)
class Generated:
    """A trained generator as an attack on any model: of `draws` samples, the first that is misclassified.

    The generator sees the gradients of the model it attacks, but has not been trained against it. Where every
    sample holds, the one with the least margin is judged. The ADT authors' development code (github
    thudzj/ADT, af3529d, expam_attack.py) counts samples alike, but fits a generator to the attacked model first.

    `batch_size`: that of the generator's training (see `generator_maps`).
    """

    adversary: Amortized
    draws: int
    batch_size: int

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise
    ) -> Tensor:
        """Attacked images for x (N, C, H, W) in [0, 1]; the caller freezes the model.

        The generator runs with the statistics of its batch norms, so samples do not depend on the batch.
        """
        found, least = x.clone(), x.new_full((len(x),), torch.inf)
        maps = generator_maps(self.adversary, model, x, labels, perturbations, self.batch_size)
        active = torch.arange(len(x), device=x.device)
        with evaluating(self.adversary):
            for draw in range(self.draws):
                if not len(active):
                    break
                delta, _, _ = self.adversary.perturb(maps[active], noise.rows(active).branch(draw), 1)
                images = onto_images(x[active], delta)
                distance = margin(model(images), labels[active])
                worse = ~(distance >= least[active])
                found[active[worse]], least[active[worse]] = images[worse], distance[worse]
                active = active[distance > 0]
        return found
