"""Run an attack over a test set and take the verdicts."""

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.ascent import EVALUATING, Inner, frozen
from pipeline.attacks.catalogue import Perturb
from pipeline.data.store import Split
from pipeline.errors import VerdictError
from pipeline.losses import margin
from pipeline.parallel import ALONE, World
from pipeline.perturbation import PerturbationSet
from pipeline.seeding import Noise, Stream
from pipeline.verdicts import Column

TOLERANCE = 1e-6
# Logits of one image in two batch splits differ by rounding; a margin this small may change its sign with it.
ROUNDING = 1e-4


def identity(model: nn.Module, x: Tensor, labels: Tensor, perturbations: PerturbationSet, noise: Noise) -> Tensor:
    """The attack called `natural`: the images as they are."""
    return x


class Counted(nn.Module):
    """A view of a model that counts the images that go through it, with and without a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.gradient_evaluations = self.forward_passes = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, K)."""
        if torch.is_grad_enabled() and x.requires_grad:
            self.gradient_evaluations += len(x)
        else:
            self.forward_passes += len(x)
        return self.model(x)


def run(
    attack: Perturb,
    model: nn.Module,
    examples: Split,
    perturbations: PerturbationSet,
    stream: Stream,
    batch_size: int,
    inner: Inner = EVALUATING,
    natural: Column | None = None,
    world: World = ALONE,
) -> Column:
    """Attack every example and judge the attacked images themselves, in float32.

    Gradients run through the model with batch norm folded and in the precision of `inner`,
    verdicts through the model itself, each twice, in two splits of the batch. Random starts
    belong to the example's index, so the result does not depend on `batch_size` beyond the
    rounding of batched arithmetic. An attack never mends an example: where it turns a
    misclassified image into one that holds, the image itself is judged: by `natural`, the column of
    `identity` on the same model and examples, where the caller has it. Raises `VerdictError`,
    naming the example, where an image to attack leaves [0, 1], where an attack leaves [0, 1]
    or its perturbation set by more than 1e-6, and where the two verdicts disagree; and for
    images of another shape. The batches are shared out over the processes of `world`, each of which gets the
    whole column: that of one process to the bit, since the batches are the same.
    """
    _check_images(examples)
    known = None if natural is None else torch.from_numpy(natural.margin).to(examples.x.device)
    parts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    batches = torch.arange(len(examples.x), device=examples.x.device).split(batch_size)
    with frozen(model, inner) as fast:
        counted = Counted(fast)
        for number in range(world.rank, len(batches), world.size):
            part = batches[number]
            x, labels, index = examples.x[part], examples.y[part], examples.index[part]
            attacked = attack(counted, x, labels, perturbations, stream.at(index))
            if attacked.shape != x.shape:
                raise VerdictError(f"returns {tuple(attacked.shape)} for images of {tuple(x.shape)}")
            norm = perturbations.norm(attacked - x)
            _check(attacked, norm, perturbations.eps, index)
            distance = judge(model, attacked, labels, index)
            before = judge(model, x, labels, index) if known is None else known[part]
            mended = (distance > 0) & ~(before > 0)
            distance, norm = torch.where(mended, before, distance), torch.where(mended, 0 * norm, norm)
            parts[number] = distance.cpu().numpy(), norm.cpu().numpy()
    return _column(world.gather((parts, counted.gradient_evaluations, counted.forward_passes)))


def _column(shares: list[tuple[dict[int, tuple[np.ndarray, np.ndarray]], int, int]]) -> Column:
    """The column whose batches, by number, and costs lie with several processes."""
    batches = {number: part for parts, _, _ in shares for number, part in parts.items()}
    margins, norms = (np.concatenate([batches[n][which] for n in sorted(batches)]) for which in (0, 1))
    return Column(~(margins > 0), margins, norms, *(sum(share[which] for share in shares) for which in (1, 2)))


@torch.no_grad()
def judge(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
    """The margin of each image, float32 (N,), found alike in two batch splits, else `VerdictError`.

    The second time the batch is taken in two parts and backwards. Where the two differ about
    an example by no more than rounding, it counts as broken.
    """
    together = margin(model(images).float(), labels)
    apart = [margin(model(images[part]).float(), labels[part]) for part in _split_again(images)]
    again = torch.cat(apart).flip(0) if apart else together
    differs = (together > 0) != (again > 0)
    far = differs & ((together - again).abs() > ROUNDING)
    if far.any():
        raise VerdictError(
            f"example {int(index[far][0])}: the model says two things of one image: its margin is"
            f" {float(together[far][0]):.4g} in one batch and {float(again[far][0]):.4g} in another"
        )
    return torch.where(differs, torch.minimum(together, again), together)


def _split_again(images: Tensor) -> tuple[Tensor, ...]:
    """The places of a batch, backwards, in two parts of unequal size."""
    places = torch.arange(len(images) - 1, -1, -1, device=images.device)
    return places.split(max(1, len(images) * 2 // 3)) if len(images) else ()


def _check_images(examples: Split) -> None:
    flat = examples.x.flatten(1)
    outside = ~((flat >= 0) & (flat <= 1)).all(1)
    if outside.any():
        raise VerdictError(f"example {int(examples.index[outside][0])}: the image to attack leaves [0, 1]")


def _check(attacked: Tensor, norm: Tensor, eps: float, index: Tensor) -> None:
    flat = attacked.flatten(1)
    outside = (flat.amin(1) < 0) | (flat.amax(1) > 1) | ~(norm <= eps + TOLERANCE)
    if outside.any():
        example = int(index[outside][0])
        raise VerdictError(
            f"example {example}: the attacked image leaves [0, 1] or the perturbation set"
            f" (norm {float(norm[outside][0]):.7g}, allowed {eps:g})"
        )
