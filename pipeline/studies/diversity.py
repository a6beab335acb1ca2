"""What the samples of an adversarial distribution are like: how harmful, and how varied."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from pipeline.ascent import frozen
from pipeline.losses import cross_entropy, margin
from pipeline.perturbation import PerturbationSet, onto_images
from pipeline.samplers import Drawn, Sampler
from pipeline.seeding import Stream

_HELD = 2**25  # values of perturbations held at once, unless the samples of one image have more


@dataclass(frozen=True)
class Judged:
    """A model on perturbed images, each (N, S) on the CPU: `loss` (cross-entropy) float64, `fooled`, `predicted` int64.

    A tie of two logits fools the model, as in a table of verdicts.
    """

    loss: Tensor
    fooled: Tensor
    predicted: Tensor

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, labels: Tensor, deltas: Tensor) -> "Judged":
        """The model, frozen by the caller, on clip(x + delta, 0, 1) for deltas (N, S, C, H, W), a sample a pass."""
        parts = []
        with torch.no_grad():
            for delta in deltas.unbind(1):
                logits = model(onto_images(x, delta))
                holding = margin(logits, labels) > 0
                parts.append((cross_entropy(logits, labels).cpu().double(), ~holding.cpu(), logits.argmax(1).cpu()))
        return cls(*(torch.stack(part, 1) for part in zip(*parts, strict=True)))

    @classmethod
    def join(cls, parts: Sequence["Judged"]) -> "Judged":
        """The verdicts of several batches, one after the other."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True)
class Description:
    """Of each image, over its S samples; float64 on the CPU, each (N,).

    `adversarial_loss`, `worst_loss`: mean and maximum of the samples' cross-entropy.
    `fooled`: share of the samples that are misclassified; `broken`: 1 where at least one is, else 0.
    `cosine`: mean cosine similarity of two samples' perturbations (a zero perturbation has 0 with all).
    `diversity`: variance over samples (ddof 1) of each pixel of delta / eps, averaged over pixels, as in the
    authors' development code ("sample variance"): 1/3 for the uniform distribution on the l-infinity set.
    `seen_cosine`, `seen_diversity`: the same of clip(x + delta, 0, 1) - x, which is what the model sees. Sources
    compare by these: PGD clips at every step, while a distribution may spread where it is clipped away.
    `classes`: number of distinct predicted classes.
    `entropy`: nats per dimension of delta / eps (uniform on the l-infinity set: 0.693); None where the source
    has no density that can be written down.
    """

    adversarial_loss: Tensor
    worst_loss: Tensor
    fooled: Tensor
    broken: Tensor
    cosine: Tensor
    diversity: Tensor
    seen_cosine: Tensor
    seen_diversity: Tensor
    classes: Tensor
    entropy: Tensor | None

    def means(self) -> dict[str, float]:
        """Means over images by name, without the entropy where there is none."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: float(value.mean()) for name, value in values if value is not None}


def describe(
    sampler: Sampler,
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    perturbations: PerturbationSet,
    stream: Stream,
    samples: int,
    batch_size: int = 250,
) -> Description:
    """Draw `samples` >= 2 perturbations for each image x (N, C, H, W) in [0, 1], and describe them.

    Image n is example n of `stream`, so neither the batch nor the other images matter.
    """
    batches = drawn(sampler, model, x, labels, perturbations, stream, samples, batch_size)
    parts = [described(judged, draws, x[rows], perturbations.eps) for rows, draws, judged in batches]
    joined = {}
    for field in fields(Description):
        values = [getattr(part, field.name) for part in parts]
        joined[field.name] = None if values[0] is None else torch.cat(values)
    return Description(**joined)


def drawn(
    sampler: Sampler,
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    perturbations: PerturbationSet,
    stream: Stream,
    samples: int,
    batch_size: int = 250,
) -> Iterator[tuple[Tensor, Drawn, Judged]]:
    """Batches (rows of x, what was drawn for them, the model's verdicts on it); the model is as before at the end.

    Gradients run through the folded model, verdicts are taken by the model itself. A batch has fewer images where
    their samples would be too large to hold.
    """
    held = max(1, _HELD // (samples * x[0].numel()))
    for rows in torch.arange(len(x), device=x.device).split(min(batch_size, held)):
        with frozen(model) as fast:
            draws = sampler(fast, x[rows], labels[rows], perturbations, stream.at(rows), samples)
            judged = Judged.of(model, x[rows], labels[rows], draws.deltas)
        yield rows, draws, judged


def seen(x: Tensor, deltas: Tensor) -> Tensor:
    """What of perturbations (N, S, C, H, W) arrives at the model: clip(x + delta, 0, 1) - x."""
    return onto_images(x[:, None], deltas) - x[:, None]


def cosine(deltas: Tensor) -> Tensor:
    """Mean cosine similarity (N,) of the S (S - 1) / 2 pairs of deltas (N, S, C, H, W), by |sum of unit vectors|^2."""
    flat = deltas.flatten(2)
    unit = flat / flat.norm(dim=2, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    count, own = deltas.shape[1], unit.square().sum((1, 2))
    return (unit.sum(1).square().sum(1) - own) / (count * (count - 1))


def variance(deltas: Tensor) -> Tensor:
    """Variance over samples (ddof 1) of every value of deltas (N, S, C, H, W), averaged over the values: (N,)."""
    return deltas.flatten(2).var(1).mean(1)


def described(judged: Judged, draws: Drawn, x: Tensor, eps: float) -> Description:
    """The description of what was drawn for x (N, C, H, W)."""
    free = draws.deltas.cpu().double() / eps
    clipped = seen(x, draws.deltas).cpu().double() / eps
    fooled = judged.fooled.double()
    ordered = judged.predicted.sort(1).values
    return Description(
        adversarial_loss=judged.loss.mean(1),
        worst_loss=judged.loss.amax(1),
        fooled=fooled.mean(1),
        broken=fooled.amax(1),
        cosine=cosine(free),
        diversity=variance(free),
        seen_cosine=cosine(clipped),
        seen_diversity=variance(clipped),
        classes=1.0 + (ordered.diff(dim=1) != 0).sum(1).double(),
        entropy=None if draws.entropy is None else draws.entropy.cpu().double(),
    )
