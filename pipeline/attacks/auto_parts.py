"""The attacks of the library `pyautoattack`: what breaks an example is kept, and random numbers belong to the examples.

The loops are the library's own (`attack_single_run`); its seeding, restarts and bookkeeping (`perturb`)
are left out. Nothing here reads or moves a global random state.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence

import torch
from pyautoattack.autopgd_base import APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from pipeline.losses import margin
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Noise, Stream

ROUNDING = 5e-7  # by which the library's images may leave the set; half of what the attack loop allows
_QUIET = logging.Logger("pyautoattack", logging.CRITICAL)  # the library warns of images without a gradient


class AllBroken(Exception):
    """Ends a run: no example of the batch holds any longer."""


class Search:
    """A batch under attack: which examples hold, and for the others the first image that breaks them.

    `logits` (N, K): of the images themselves. `holding` (N,): not broken so far. `found` (N, C, H, W).
    `rows` (M,): the examples that the current run asks about, in its order; `x` and `labels` are theirs.
    """

    def __init__(self, model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet) -> None:
        self.model, self.perturbations = model, perturbations
        self.all_x, self.all_labels = x, labels
        self.logits, self.found = model(x), x.clone()
        self.holding = margin(self.logits, labels) > 0
        self.begin()

    def begin(self) -> int:
        """From now on ask about all examples that hold; how many."""
        self.ask(self.holding.nonzero()[:, 0])
        return len(self.rows)

    def ask(self, rows: Tensor) -> None:
        """From now on ask about these examples."""
        self.rows, self.x, self.labels = rows, self.all_x[rows], self.all_labels[rows]
        self.predicted = self.labels

    def towards(self, rank: int) -> Tensor:
        """Weights (M, K) that make z_t - z_y of logits z; t is the class of this rank, 2 the likeliest wrong one."""
        targets = self.logits[self.rows].argsort(1)[:, -rank]
        classes = torch.eye(self.logits.shape[1], device=targets.device)
        return classes[targets] - classes[self.labels]

    def evaluate(self, images: Tensor) -> Tensor:
        """Logits of any images, in their own format, which may not be the model's."""
        return self.model(images.to(self.all_x.dtype)).to(images.dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (M, K) of images of `rows`, all in the set; the first that breaks an example is kept."""
        logits = self.evaluate(images)
        predicted = logits.argmax(1)
        # Where all predictions are those of the call before, as most are late in a run, nothing new is broken.
        if not torch.equal(predicted, self.predicted):
            self.predicted = predicted
            self.keep(images.detach(), predicted != self.labels)
        return logits

    def keep(self, images: Tensor, broken: Tensor) -> None:
        """Of images (M, C, H, W) keep those marked `broken`, (M,), that lie in the set, for examples that hold."""
        images = images.to(self.all_x.dtype)
        inside = self.perturbations.norm(images - self.x) <= self.perturbations.eps + ROUNDING
        kept = broken & inside & self.holding[self.rows]
        if kept.any():
            rows = self.rows[kept]
            self.found[rows], self.holding[rows] = images[kept], False
            if not self.holding.any():
                raise AllBroken


class Apgd(APGDAttack_targeted):
    """Auto-PGD from one random start: on the cross-entropy (`rank` 1), or the DLR loss targeted at a class."""

    def __init__(self, search: Search, norm: str, steps: int, rank: int, noise: Noise) -> None:
        eps, device = search.perturbations.eps, search.x.device
        super().__init__(search, n_iter=steps, norm=norm, eps=eps, device=device, logger=_QUIET)
        self.search, self.noise = search, noise.rows(search.rows)
        self.loss, self.towards = ("ce", None) if rank == 1 else ("dlr-targeted", search.towards(rank))
        self.init_hyperparam(search.x)

    def run(self) -> None:
        """All steps, from a direction uniform in a cube (Linf) or normal (L2), scaled to length eps."""
        x, draw = self.search.x, self.noise.uniform if self.norm == "Linf" else self.noise.normal
        direction = draw(*x.shape[1:])
        start = x + self.eps * self.normalize(2 * direction - 1 if self.norm == "Linf" else direction)
        # The library draws a start of its own on the CPU, and then takes the one that it is given.
        with torch.random.fork_rng(devices=[]):
            self.attack_single_run(x, self.search.labels, x_init=start)

    def dlr_loss_targeted(self, x: Tensor, y: Tensor) -> Tensor:
        """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), z_(1) the greatest: as in the library, in faster steps."""
        ordered = x.sort(1).values
        return (x * self.towards).sum(1) / (ordered[:, -1] - (ordered[:, -3] + ordered[:, -4]) / 2 + 1e-12)


class Fab(FABAttack_PT):
    """FAB from the image itself towards one class: no random numbers. The library does it in float32."""

    def __init__(self, search: Search, norm: str, steps: int, rank: int) -> None:
        eps, device = search.perturbations.eps, search.x.device
        super().__init__(search.evaluate, norm=norm, n_iter=steps, eps=eps, device=device)
        self.search, self.target_class, self.is_first = search, rank, True
        self.towards = search.towards(rank)

    def run(self) -> None:
        """All iterations; an image counts after its step, not after the way back that follows a success."""
        with _cumulative_sums():
            self.attack_single_run(self.search.x, self.search.labels, is_targeted=True)

    def get_diff_logits_grads_batch_targeted(self, images: Tensor, *classes: Tensor) -> tuple[Tensor, Tensor]:
        """z_t - z_y, (M, 1), and its gradient, (M, 1, C, H, W); unlike the library's, never one for parameters."""
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            difference = (self.search.evaluate(images) * self.towards).sum(1)
            (gradient,) = torch.autograd.grad(difference.sum(), images)
        return difference.detach()[:, None], gradient[:, None]

    def _predict_fn(self, images: Tensor) -> Tensor:
        """Logits of the images themselves: the library asks here for the order of the classes alone."""
        return self.search.logits[self.search.rows]

    def _get_predicted_label(self, images: Tensor) -> Tensor:
        """Predictions; of the images themselves, asked about first, the labels: rounding must not drop a row."""
        if self.is_first:
            self.is_first = False
            return self.search.labels
        predicted = self.search.evaluate(images).argmax(1)
        self.search.keep(images, predicted != self.search.labels)
        return predicted


class Square(SquareAttack):
    """Square on the margin: the squares from a stream of `noise`, the signs of an example from its own numbers."""

    def __init__(self, search: Search, norm: str, queries: int, noise: Noise) -> None:
        eps, device = search.perturbations.eps, search.x.device
        super().__init__(search, norm, n_queries=queries, eps=eps, seed=0, resc_schedule=False, device=device)
        self.search, self.noise = search, noise
        self.shared, self.draws = Stream(noise.key).generator(), itertools.count()
        self.patterns: dict[int, Tensor] = {}
        self.init_hyperparam(search.x)

    def run(self) -> None:
        """All queries; an example that is broken leaves."""
        self.attack_single_run(self.search.x, self.search.labels)

    def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The margin, twice: the library asks no more about examples whose margin is not positive."""
        margins = margin(self.search.evaluate(x), y)
        stay = margins > 0
        if not stay.all():
            self.search.keep(x, ~stay)
            self.search.ask(self.search.rows[stay])
        return margins, margins.clone()

    def random_choice(self, shape: Sequence[int]) -> Tensor:
        """Signs: with four dimensions a row for each example asked about, else of the iteration."""
        if len(shape) == 4:
            return self.noise.rows(self.search.rows).signs(*shape[1:], draw=next(self.draws))
        return self._uniform(shape).sub(0.5).sign().to(self.device)

    def random_int(self, low: int = 0, high: int = 1, shape: Sequence[int] = (1,)) -> Tensor:
        """Where a square begins: from low to below high, or low where they are equal; on the CPU, for slices."""
        return (low + (high - low) * self._uniform(shape)).long()

    def eta(self, s: int) -> Tensor:
        """The pattern of unit length in an s by s square of Square in L2, a hill and a hollow: upright or turned."""
        if s not in self.patterns:
            upright = torch.cat([self.eta_rectangles(s // 2, s), -self.eta_rectangles(s - s // 2, s)])
            self.patterns[s] = upright / upright.norm()
        return self.patterns[s].T if self._uniform((1,)) > 0.5 else self.patterns[s]

    def _uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=self.shared)


@contextlib.contextmanager
def _cumulative_sums() -> Iterator[None]:
    """Allow `torch.cumsum` on CUDA, which deterministic mode refuses whatever the shape; FAB's run along rows.

    The model's convolutions stay deterministic by cuDNN's own switch.
    """
    mode, cudnn = torch.get_deterministic_debug_mode(), torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = cudnn or mode > 0
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.deterministic = cudnn
