"""Training against lambda: what a point of the study is, and how it is trained and measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline import samplers
from pipeline.adversaries import Adversary
from pipeline.adversaries.amortized import AmortizedImplicit
from pipeline.adversaries.profiles import resolve
from pipeline.ascent import frozen
from pipeline.attacks import suite
from pipeline.cell import TRAINING_CODE, Cell
from pipeline.data.store import Split, load_split
from pipeline.errors import UserError
from pipeline.files import digest, digest_code
from pipeline.seeding import Stream
from pipeline.studies.diversity import describe
from pipeline.verdicts import NATURAL, WORST_CASE

if TYPE_CHECKING:
    from pipeline.params import Params

REFERENCE = "at_pgd"
STUDY_CODE = (
    *TRAINING_CODE,
    "pipeline/attacks",
    "pipeline/studies/diversity.py",
    "pipeline/studies/lambda_study.py",
    "pipeline/samplers.py",
)
# What the samples of a method's own adversary are like on its own model; see `Study.measure`.
SAMPLES = ("entropy", "code_length", "adversarial_loss", "fooled", "diversity", "cosine")


@dataclass(frozen=True)
class Point:
    """One training: `lam` is None for the reference, `tau` for all but ADT_IMP-AM with lambda > 0.

    With lambda = 0 the threshold acts on nothing, so all thresholds share that point.
    """

    method: str
    seed: int
    lam: float | None = None
    tau: float | None = None

    def coordinates(self) -> dict[str, float | int]:
        """What is varied within the method, by name."""
        values = {"lam": self.lam, "tau": self.tau, "seed": self.seed}
        return {name: value for name, value in values.items() if value is not None}

    def settings(self, p: "Params") -> "Params":
        """The parameters of this training: the method's own but for lambda and tau, the loop's but for its length."""
        varied = {name: value for name, value in self.coordinates().items() if name != "seed"}
        methods = p.methods.model_copy(update={self.method: p.method(self.method).model_copy(update=varied)})
        train = p.train.model_copy(update={"epochs": p.ablation.epochs})
        return p.model_copy(update={"methods": methods, "train": train})


def columns(p: "Params") -> list[str]:
    """The columns of lambda.csv."""
    return ["method", "lam", "tau", "seed", "val_robust", NATURAL, p.ablation.attack, WORST_CASE, *SAMPLES]


def points(p: "Params") -> dict[str, list[Point]]:
    """By method, the reference first: its points by lambda, tau and seed.

    `UserError` where thresholds are asked for and the method has none.
    """
    found = {REFERENCE: [Point(REFERENCE, seed) for seed in sorted(p.ablation.seeds)]}
    for method, axes in p.ablation.chosen.methods().items():
        pairs = [(lam, tau) for lam in sorted(axes.lam) for tau in (_thresholds(p, method) if lam else [None])]
        found[method] = [Point(method, seed, lam, tau) for lam, tau in pairs for seed in sorted(p.ablation.seeds)]
    return found


def _thresholds(p: "Params", method: str) -> list[float] | list[None]:
    if method != "adt_imp_am":
        return [None]
    asked, own = p.ablation.chosen.adt_imp_am.tau, resolve(method, p.method(method))
    if own.hinge:
        return sorted(asked) if asked else [own.tau]
    if asked:
        raise UserError(
            f"params.yaml: ablation.grids.{p.ablation.grid}.adt_imp_am.tau: there is no threshold without the hinge;"
            " leave tau out, or set methods.adt_imp_am.hinge: true"
        )
    return [None]


@dataclass(frozen=True)
class Study:
    """How the points of one method are trained and measured; `work` keeps what was trained."""

    p: "Params"
    method: str
    device: torch.device
    work: Path

    def name(self) -> str:
        """A name that changes with everything a point's numbers depend on, except its coordinates."""
        a, varied = self.p.ablation, type(self.p.method(self.method)).model_fields
        lam, tau = (0.0 if name in varied else None for name in ("lam", "tau"))
        base = Point(self.method, 0, lam, tau).settings(self.p)
        studied = [suite.description(self.p.evaluation, a.attacks), a.attack, a.samples]
        key = digest([Cell(base, self.method, 0).fingerprint(), studied, digest_code(Path(), *STUDY_CODE)])
        return f"lambda {self.method} {key[:32]}"

    def evaluate(self, point: Point) -> tuple[float, dict[str, float]]:
        """Validation robust accuracy of the selected epoch, and the test measurements of that model."""
        cell = Cell(point.settings(self.p), point.method, point.seed)
        best, model, adversary = cell.trained(self.device, self.work)
        return best.robust, self.measure(point, cell, model, adversary)

    def measure(self, point: Point, cell: Cell, model: nn.Module, adversary: Adversary) -> dict[str, float]:
        """Test accuracies, and what the samples of the model's own adversary are like on the test images.

        Those of the reference are last iterates of PGD, a random start a sample; they never leave
        [0, 1], so their cosine and diversity are not on the same footing as those of a distribution.
        The code length is None with lambda = 0, which leaves the encoder untrained.
        """
        p, a = self.p, self.p.ablation
        test, batch = load_split(cell.data_folder, "test", self.device), p.train.batch_size
        accuracies = suite.verdicts(p.evaluation, a.attacks, model, test, adversary.perturbations).accuracies()
        measured = {name: accuracies[name] for name in (NATURAL, a.attack, WORST_CASE)}
        stream, sampler = Stream.of(p.evaluation.seed, "diversity"), samplers.of_adversary(adversary, batch)
        described = describe(
            sampler, model, test.x, test.y, adversary.perturbations, stream, a.samples, p.evaluation.batch_size
        ).means()
        if isinstance(adversary, AmortizedImplicit) and point.lam:
            described["code_length"] = code_length(
                adversary, model, test, stream, a.samples, p.evaluation.batch_size, batch
            )
        return measured | {name: described[name] for name in SAMPLES if name in described}


def code_length(
    adversary: AmortizedImplicit,
    model: nn.Module,
    examples: Split,
    stream: Stream,
    samples: int,
    batch_size: int,
    trained_batch: int,
) -> float:
    """Mean over images and samples of the encoder's code length of z, in nats a dimension.

    The samples are those that `FromGenerator` draws with this stream; `trained_batch` is the
    batch size of the generator's training (see `generator_maps`).
    """
    total = 0.0
    for rows in torch.arange(len(examples.x), device=examples.x.device).split(batch_size):
        x, noise = examples.x[rows], stream.at(rows)
        with frozen(model) as fast, torch.no_grad(), samplers.evaluating(adversary):
            maps = samplers.generator_maps(adversary, fast, x, examples.y[rows], adversary.perturbations, trained_batch)
            for draw in range(samples):
                _, _, stats = adversary.perturb(maps, noise.branch(draw), 1)
                total += float(stats["code_length"]) * len(rows)
    return total / (samples * len(examples.x))


def row(point: Point, found: dict[str, Any]) -> dict[str, Any]:
    """A row of lambda.csv from what the grid study keeps of a point; None where a column has no value."""
    return {"method": point.method, "lam": point.lam, "tau": point.tau} | dict.fromkeys(SAMPLES) | found
