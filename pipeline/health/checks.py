"""Checks on a model's probes and verdicts, each with a threshold and the reason for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.verdicts import NATURAL, Verdicts

if TYPE_CHECKING:
    from pipeline.params import Attack

CROSS_ENTROPY = ("fgsm", "pgd", "mim")


@dataclass(frozen=True)
class Evidence:
    """What is known of one checkpoint.

    `probe`: what `probes.probe` measured on some images; `broken`: for each white-box attack,
    from the verdict table and from the probe, the indices among these images that it breaks;
    `cross_entropy`: those of these attacks that climb the cross-entropy; `black_box`: the
    same for attacks that do not see the model's gradients.
    """

    probe: Mapping[str, Any]
    broken: Mapping[str, set[int]]
    cross_entropy: frozenset[str]
    black_box: Mapping[str, set[int]]

    @property
    def white_box(self) -> set[int]:
        """The images that some white-box attack breaks."""
        return set().union(*self.broken.values())

    def share(self, images: set[int]) -> float:
        """A set of images as a share of all that were probed."""
        return len(images) / self.probe["images"]


@dataclass(frozen=True)
class Check:
    """One question to the evidence.

    `figure` measures (None where a random model left nothing to measure); the check passes
    where it is at most, or with `least` at least, `threshold`.
    """

    name: str
    asks: str
    figure: Callable[[Evidence], float]
    threshold: float
    reason: str
    least: bool = False

    def judge(self, evidence: Evidence) -> dict[str, Any]:
        """The figure and whether it passes."""
        if evidence.probe["randomness"] and self.name != "repeatable":
            return {"figure": None, "passed": None}
        figure = self.figure(evidence)
        passed = figure >= self.threshold if self.least else figure <= self.threshold
        return {"figure": round(figure, 6), "passed": bool(passed)}


def rise(curve: Mapping[str, float]) -> float:
    """The greatest rise of a curve from an earlier to any later point, at least 0."""
    values = list(curve.values())
    return max(later - earlier for n, earlier in enumerate(values) for later in values[n:])


def _loss_gap(evidence: Evidence) -> float:
    climbing = set().union(*(evidence.broken[name] for name in evidence.cross_entropy))
    return evidence.share(evidence.white_box - climbing)


def _only_black_box(evidence: Evidence) -> set[int]:
    return set().union(*evidence.black_box.values()) - evidence.white_box


CHECKS = (
    Check(
        "repeatable",
        "greatest difference between logits of the same images in repeated passes",
        lambda e: e.probe["randomness"],
        0.0,
        "a random forward pass makes every verdict a draw; it needs attacks on its expectation, which these are not",
    ),
    Check(
        "iterated",
        "accuracy under the iterated attack minus that under FGSM",
        lambda e: e.probe["steps"][max(e.probe["steps"], key=int)] - e.probe["single_step"],
        0.01,
        "many small steps contain one large one; if they find less, gradients mislead (Athalye et al. 2018);"
        " an image in a hundred is left to chance",
    ),
    Check(
        "single-step",
        "accuracy under FGSM minus that under the iterated attack",
        lambda e: e.probe["single_step"] - e.probe["steps"][max(e.probe["steps"], key=int)],
        0.3,
        "adversarially trained networks lose 5 to 10 points between the two; where FGSM misses tens more, the"
        " gradient at the image is trained to mislead it: label leaking, catastrophic overfitting (Wong et al. 2020)",
    ),
    Check(
        "steps",
        "greatest rise of accuracy from fewer to more steps",
        lambda e: rise(e.probe["steps"]),
        0.02,
        "the last iterate of a converged attack moves by a few images; more is an attack that loses its way",
    ),
    Check(
        "restarts",
        "accuracy that further random starts take away",
        lambda e: max(e.probe["restarts"].values()) - min(e.probe["restarts"].values()),
        0.1,
        "on smooth surfaces all starts end alike (Madry et al. 2018); a large gain means that one start is luck",
    ),
    Check(
        "radius",
        "accuracy at the largest radius, plus any rise on the way to it",
        lambda e: list(e.probe["radii"].values())[-1] + max(0.0, rise(e.probe["radii"]) - 0.02),
        0.05,
        "in a large enough set every image can become another; what holds there, holds against a blind attack"
        " (a rise of 2 points is left to chance)",
    ),
    Check(
        "black-box",
        "share of images that only black boxes break (SPSA, Square, images made on other models)",
        lambda e: e.share(_only_black_box(e)),
        0.01,
        "whoever sees the gradients can do all that a black box can; an image in a hundred is left to chance",
    ),
    Check(
        "random-search",
        "share of images that random points of the set break and no white-box attack does",
        lambda e: e.share(set(e.probe["random_search"]) - e.white_box),
        0.0,
        "gradients that find less than chance point nowhere",
    ),
    Check(
        "zero-gradients",
        "share of images whose input gradient is exactly zero",
        lambda e: e.probe["zero_gradients"],
        0.05,
        "no step climbs a zero; logits that saturate float32 or rounded inputs cause it",
    ),
    Check(
        "losses",
        "share of images that no attack on the cross-entropy breaks, but one with another loss does",
        _loss_gap,
        0.1,
        "on adversarially trained networks AutoAttack finds 2 to 6 points more than PGD-20; on defences that bend"
        " the cross-entropy it finds tens (FeaScatter: 34; Croce and Hein 2020)",
    ),
    Check(
        "alignment",
        "mean cosine between the gradients at an image and at a random point of the set around it",
        lambda e: e.probe["alignment"],
        0.1,
        "steps along a gradient lead nowhere if it has turned by the time they are taken: near 0 after"
        " catastrophic overfitting on CIFAR-10 (Andriushchenko and Flammarion 2020)",
        least=True,
    ),
)


def evidence(
    probe: Mapping[str, Any],
    attacks: "Mapping[str, Attack]",
    further: "Mapping[str, Attack]",
    table: Verdicts | None,
    transferred: set[int],
) -> Evidence:
    """Join a probe, the verdict table of its checkpoint, and the images that others' attacks break.

    `attacks`: settings of the table's attacks; `further`: those of the probe's own. Attacks that
    are neither white nor black boxes are left out. A model whose forward pass is random has no table.
    """
    index, settings = set(probe.get("index", ())), {**attacks, **further}
    broken = {name: set(table.breaks(name)) & index for name in (table.attacks if table else ())}
    broken |= {name: set(images) for name, images in probe.get("breaks", {}).items()}
    seeing = {name for name in broken if name == NATURAL or sees_gradients(settings[name])}
    climbing = {name for name in seeing if name == NATURAL or settings[name].family in CROSS_ENTROPY}
    blind = {name for name in broken if name != NATURAL and settings[name].is_black_box}
    return Evidence(
        probe,
        {name: broken[name] for name in seeing},
        frozenset(climbing),
        {name: broken[name] for name in blind} | {"transfer": transferred & index},
    )


def sees_gradients(settings: "Attack") -> bool:
    """Whether an attack is a white box through and through: AutoAttack with Square among its parts is not."""
    mixed = settings.family == "autoattack" and "square" in (settings.parts or ("square",))
    return not settings.is_black_box and not mixed


def judge(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Every check's figure and verdict, and the images behind the one about black boxes."""
    verdicts = {check.name: check.judge(evidence) for check in CHECKS}
    only = sorted(_only_black_box(evidence))
    if only:
        verdicts["black-box"]["examples"] = only
    return verdicts
