"""FeaAttack: towards the features of images of other classes. It breaks defences that flatten the loss alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.losses import margin
from pipeline.models.features import features
from pipeline.perturbation import PerturbationSet, onto_images
from pipeline.seeding import Noise

TINY = 1e-6  # released: the least length of a feature vector in a cosine


@dataclass(frozen=True)
class Fea:
    """Copies of an image, each drawn towards the penultimate features of an image of another class.

    As in ADT's released feature_attack.py (after github Line290/FeatureAttack, 13531cf): `targets` images of
    other classes than the label are drawn from `pool` with replacement, and as many copies of the image start
    at random points of the set, clipped to [0, 1]. Each takes `steps` projected steps of `step_size` along the
    gradient of the cosine between its features and its target's. An example is broken where any copy is
    misclassified, as whatever class. The released code never looks at the copies after their last step; here
    every iterate counts.

    `pool`: the order of its examples does not matter. `group`: how many copies go through the model at once, or
    those of one example if they are more; it moves results by no more than the rounding of batched arithmetic.
    """

    steps: int
    step_size: float
    targets: int
    pool: Split
    group: int = 1024

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise
    ) -> Tensor:
        """Attacked images for x (N, C, H, W) in [0, 1]: of each example's copies the one of least margin.

        It is taken when the first copy is misclassified, else after all steps. An example that is broken leaves
        the batch, so robust examples alone cost all steps. `UserError` where the pool has no image of another
        class than a label, and where the model has no features.
        """
        found = x.clone()
        for rows in torch.arange(len(x), device=x.device).split(max(1, self.group // self.targets)):
            found[rows] = self._search(model, x[rows], labels[rows], perturbations, noise.rows(rows))
        return found

    def draw(self, labels: Tensor, noise: Noise) -> Tensor:
        """Places in the pool of each example's targets, none of its own class: int64 (N, targets).

        The first targets of many are those of few.
        """
        numbers = [noise.branch(copy).branch("target").uniform(1) for copy in range(self.targets)]
        # In float32 a number just below 1, times a large count, would round to the count.
        share = torch.cat(numbers, 1).double()
        order = self.pool.index.argsort()
        places = torch.empty(share.shape, dtype=torch.int64, device=labels.device)
        for label in labels.unique():
            others = order[self.pool.y[order] != label]
            if not len(others):
                raise UserError(f"attack fea: every image to draw targets from is of class {int(label)}")
            rows = labels == label
            places[rows] = others[(share[rows] * len(others)).long()]
        return places

    def _search(
        self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise
    ) -> Tensor:
        targets = self.pool.x[self.draw(labels, noise)]
        wanted = features(model, targets.flatten(0, 1))[1].unflatten(0, targets.shape[:2])
        starts = [perturbations.start(x, noise.branch(copy)) for copy in range(self.targets)]
        copies = onto_images(x[:, None], torch.stack(starts, 1))  # (N, targets, C, H, W)
        found, active = x.clone(), torch.arange(len(x), device=x.device)
        for step in range(self.steps + 1):
            margins, gradient = _look(model, copies, labels, wanted, climbs=step < self.steps)
            best = margins.argmin(1)
            found[active] = copies[torch.arange(len(best), device=x.device), best]
            holding = (margins > 0).all(1)
            if gradient is None or not holding.any():
                break
            active, x, labels, wanted = active[holding], x[holding], labels[holding], wanted[holding]
            copies = self._step(x, copies[holding], gradient[holding], perturbations)
        return found

    def _step(self, x: Tensor, copies: Tensor, gradient: Tensor, perturbations: PerturbationSet) -> Tensor:
        origins = x.repeat_interleave(self.targets, 0)
        climb = self.step_size * perturbations.direction(gradient.flatten(0, 1))
        delta = perturbations.project(copies.flatten(0, 1) - origins + climb)
        return onto_images(origins, delta).view_as(copies)


def _look(
    model: nn.Module, copies: Tensor, labels: Tensor, wanted: Tensor, climbs: bool
) -> tuple[Tensor, Tensor | None]:
    """Margins (N, T) of copies (N, T, C, H, W) and, if it `climbs`, the gradient of each one's cosine to `wanted`."""
    with torch.set_grad_enabled(climbs):
        images = copies.flatten(0, 1).requires_grad_(climbs)
        logits, reached = features(model, images)
        margins = margin(logits.detach(), labels.repeat_interleave(copies.shape[1])).view(copies.shape[:2])
        if not climbs:
            return margins, None
        cosines = cosine_similarity(reached, wanted.flatten(0, 1), dim=1, eps=TINY)
        return margins, torch.autograd.grad(cosines.sum(), images)[0].view_as(copies)
