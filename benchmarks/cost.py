"""What a preset costs on one GPU, estimated from its arithmetic: `python -m benchmarks.cost [PRESET ...]`.

The unit is F, the arithmetic of one forward pass of the classifier on one image (2 operations a multiply-add, counted
by torch on the real network without weights). A gradient with respect to an image costs 2 F, a training step 3 F, a
generator's or encoder's step three of its own forward passes. Hours are that over what a card is assumed to sustain:
40 % of the bf16 peak that square products reached on an H200, and 40 Tflop/s in float32 without TF32. Half of the
test images are taken to hold until an attack that leaves broken ones early gives up. What is not counted (loading,
figures, diversity, curvature, health's own attacks on a few hundred images) is small beside it. Small networks do not
fill a card: there the estimate is a lower bound.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command
from pipeline import adversaries, models, perturbation, presets
from pipeline.adversaries import Adversary
from pipeline.adversaries.profiles import resolve
from pipeline.errors import UserError
from pipeline.params import Attack, Params

# flop/s: of 790 Tflop/s measured on an H200; and of its 67 Tflop/s by data sheet.
SUSTAINED = {"bf16": 0.4 * 790e12, "fp32": 40e12}
HOLDING = 0.5
# Shape, classes, training and test images of each source, before the split; the image folder is CIFAR-10 again.
SOURCES = {
    "cifar10": ((3, 32, 32), 10, 50000, 10000),
    "cifar100": ((3, 32, 32), 100, 50000, 10000),
    "svhn": ((3, 32, 32), 10, 73257, 26032),
    "image_folder": ((3, 32, 32), 10, 50000, 10000),
}


@dataclass(frozen=True)
class Cost:
    """Hours on one card: all trainings of the matrix; evaluation with transfer, and FeaAttack's part of it; studies."""

    training: float
    evaluation: float
    fea: float
    studies: float

    def said(self) -> str:
        """The line that presets carry."""
        return (
            f"one H200, estimated from the arithmetic: {_hours(self.training)} training, {_hours(self.evaluation)}"
            f" evaluation ({_hours(self.fea)} of it FeaAttack), {_hours(self.studies)} studies"
        )


@dataclass
class Estimate:
    """The arithmetic of one preset."""

    p: Params

    def __post_init__(self) -> None:
        self.forward = self._forward()
        self.networks = {method: self._networks(method) for method in self.p.matrix.methods}

    @property
    def images(self) -> tuple[int, int]:
        """Training and test images."""
        split, (_, _, train, test) = self.p.data.split, SOURCES[self.p.data.name]
        return split.train or train - split.validation, split.test or test

    def _forward(self) -> float:
        """F."""
        shape, classes, *_ = SOURCES[self.p.data.name]
        with torch.device("meta"):
            network = models.classifier(self.p.model, {"shape": shape, "classes": range(classes)})
            return flops(network, torch.empty(1, *shape))

    def adversary(self, method: str) -> Adversary:
        """The method's adversary, without weights."""
        threat, (channels, size, _) = self.p.threat, SOURCES[self.p.data.name][0]
        settings = resolve(method, self.p.method(method))
        with torch.device("meta"):
            return adversaries.build(method, settings, perturbation.build(threat.set, threat.eps), channels, size)

    def _networks(self, method: str) -> tuple[float, float]:
        """A forward pass of an adversary's generator, and of its encoder; 0 where it has none."""
        adversary, (channels, size, _) = self.adversary(method), SOURCES[self.p.data.name][0]
        generator, encoder = (getattr(adversary, name, None) for name in ("generator", "encoder"))
        with torch.device("meta"):
            image, maps = torch.empty(1, channels, size, size), torch.empty(1, 3 * channels, size, size)
            inputs = (maps, torch.empty(1, adversary.settings.latent)) if encoder else (maps,)
            return flops(generator, *inputs) if generator else 0.0, flops(encoder, image) if encoder else 0.0

    def training(self, method: str, epochs: float, inner: float | None = None) -> float:
        """Seconds of one training; `inner`: gradient evaluations while samples are made, where not the method's."""
        adversary = self.adversary(method)
        gradients = adversary.gradient_evaluations if inner is None else inner
        own = sum(self.networks.get(method, (0.0, 0.0)))
        an_image = (2 * gradients + 3 * adversary.training_evaluations) * self.forward + 3 * own
        train, validation = self.images[0], self.p.data.split.validation
        validating = validation * (2 * self.p.train.selection.steps + 2) * self.forward
        return epochs * (train * an_image + validating) / SUSTAINED[self.p.train.precision]

    def attack(self, settings: Attack) -> float:
        """Seconds of one attack on one model."""
        # AutoAttack: APGD once and at 9 targets; FAB at 9 targets, two gradients a step; Square.
        autoattack = 2 * settings.steps * (1 + 9 + 2 * 9) + (settings.queries or 0)
        passes = {
            "autoattack": HOLDING * autoattack,
            "fea": HOLDING * 2 * settings.steps * (settings.targets or 0),
            "spsa": HOLDING * settings.steps * (settings.samples or 0),
        }.get(settings.family, 2 * settings.steps)
        return self.images[1] * passes * self.forward / SUSTAINED["fp32"]

    def transfer(self) -> float:
        """Seconds of every model attacking every other: generators make their images anew for each target."""
        p, seeds = self.p, len(self.p.matrix.seeds)
        models_, made = seeds * len(p.matrix.methods), 0.0
        for method in p.matrix.methods:
            generator, _ = self.networks[method]
            if generator:
                made += 2 * 2 * self.forward + p.transfer.draws * (generator + self.forward)
        own = sum(self.attack(p.evaluation.attacks[name]) for name in p.transfer.attacks)
        return models_ * own + seeds * models_ * made * self.images[1] / SUSTAINED["fp32"]

    def studies(self) -> float:
        """Seconds of the lambda study, the search, lambda = 0, and the loss surfaces."""
        p, a, d = self.p, self.p.ablation, self.p.degeneracy

        def judged(names: Sequence[str]) -> float:
            return sum(self.attack(p.evaluation.attacks[name]) for name in names)

        grid = a.chosen.methods()
        points = {"at_pgd": 1} | {m: _points(axes.lam, getattr(axes, "tau", None)) for m, axes in grid.items()}
        ablation = sum(n * (self.training(m, a.epochs) + judged(a.attacks)) for m, n in points.items()) * len(a.seeds)
        degeneracy = len(d.seeds) * (self.training("adt_exp", p.train.epochs) + 2 * judged(d.attacks))
        middle = {name: (limits.low + limits.high) / 2 for name, limits in p.search.space.items()}
        inner = middle.get("steps", p.methods.adt_exp.steps) * middle.get("samples", p.methods.adt_exp.samples)
        search = p.search.trials * self.training(p.search.method, middle.get("epochs", p.train.epochs), inner)
        surfaces = len(p.matrix.methods) * len(p.matrix.seeds[: p.landscape.seeds]) * p.landscape.images
        landscape = surfaces * p.landscape.points**2 * self.forward / SUSTAINED["fp32"]
        return ablation + degeneracy + search + landscape

    def cost(self) -> Cost:
        """All of it in hours."""
        p, seeds = self.p, len(self.p.matrix.seeds)
        training = seeds * sum(self.training(method, p.train.epochs) for method in p.matrix.methods)
        checkpoints, attacks = seeds * len(p.matrix.methods), p.evaluation.attacks.values()
        fea = checkpoints * sum(self.attack(attack) for attack in attacks if attack.family == "fea")
        evaluation = checkpoints * sum(map(self.attack, attacks)) + self.transfer()
        return Cost(*(seconds / 3600 for seconds in (training, evaluation, fea, self.studies())))


def flops(network: nn.Module, *inputs: torch.Tensor) -> float:
    """Operations of a forward pass, two a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return float(counter.get_total_flops())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = command.parser("cost", __doc__)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help="default: all whose data are colour images")
    command.run(body, parser, arguments)


def body(parsed: argparse.Namespace) -> None:
    """Print the line of every preset that is named."""
    for name in parsed.presets or presets.names():
        p = presets.load(name)
        if p.data.name in SOURCES:
            print(f"{name:24} {Estimate(p).cost().said()}")
        elif parsed.presets:
            raise UserError(f"{name}: no estimate for {p.data.called}; it is made for a CPU")


def _points(lams: Sequence[float], taus: Sequence[float] | None) -> int:
    """Points of a grid; lambda 0 has no threshold."""
    return len(lams) if not taus else 1 + (len(lams) - 1) * len(taus)


def _hours(hours: float) -> str:
    """Two digits, and minutes below an hour."""
    value, unit = (hours, "h") if hours >= 1 else (60 * hours, "min")
    return f"{float(f'{value:.2g}'):g} {unit}"


if __name__ == "__main__":
    main()
