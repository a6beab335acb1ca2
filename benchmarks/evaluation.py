"""How fast our PGD evaluation is: `python -m benchmarks.evaluation --reference DIR`.

PGD-20 and PGD-100 on one batch (200 images): the released `_pgd_whitebox` as written (random start,
verdict on the last iterate) against ours as the pipeline runs it, gradients in float32 or bfloat16,
verdicts in float32. `last` takes the verdict on the last iterate too; under `any` an example leaves
the batch at the first iterate that breaks it, which is a stronger attack for less work. Both sides also
classify the images themselves. They run in one process with the same number of threads and the
same memory allocator settings, and take turns; a ratio is the median over the rounds.

How long `any` takes depends on how many examples break early, so there are two states of each
classifier, trained here for seconds by our loop: `standard` on the images, `robust` by AT_PGD. The data
are scikit-learn's digits (for 28x28: each pixel three times, with a margin of two), which 8/255 hardly
moves. So eps is 0.2 as in the digits preset, PGD-20 steps by 0.05 and PGD-100 by 0.02; the time of a
step depends on neither.

The percentage is the share of the batch that holds. Released and `last` differ by their random starts,
the released number being the mean over the turns, and by what misclassified images count for: ours stay
broken whatever the attack makes of them. There is no `bf16 any`: it would let an example go where bfloat16
first sees it broken, barely, and in float32 some of these still hold, so the pipeline runs that rule
in float32.
"""

import argparse
import copy
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import command, timing, training
from benchmarks.reference import Reference
from pipeline import adversaries, bare, machine
from pipeline.ascent import Inner
from pipeline.attacks import loop
from pipeline.attacks.catalogue import Attack
from pipeline.data import digits
from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.losses import cross_entropy
from pipeline.perturbation import Linf
from pipeline.seeding import Stream, seeded_globals
from pipeline.training.loop import Trainer

EPS = 0.2
IMAGES = 500  # in the test part
NETWORKS = ("digits", "28x28")
ATTACKS = {"pgd-20": (20, 0.05), "pgd-100": (100, 0.02)}
VARIANTS = {"fp32 last": ("fp32", "last"), "bf16 last": ("bf16", "last"), "fp32 any": ("fp32", "any")}
TRAININGS: dict[str, tuple[str, bare.Settings]] = {
    "standard": ("standard", bare.Settings()),
    "robust": ("at_pgd", bare.Settings(steps=7, step_size=0.05)),
}


@dataclass(frozen=True)
class Released:
    """The released evaluation of a batch; every turn draws its own random start."""

    reference: Reference
    model: nn.Module
    batch: Split
    steps: int
    step_size: float
    accuracies: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        """Attack and judge."""
        accuracy = self.reference.pgd_accuracy(self.model, self.batch.x, self.batch.y, EPS, self.steps, self.step_size)
        self.accuracies.append(accuracy)


@dataclass(frozen=True)
class Ours:
    """The same by our attack loop; its random starts belong to the examples."""

    model: nn.Module
    batch: Split
    attack: Attack
    inner: Inner
    accuracies: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        """Attack and judge."""
        stream = Stream.of(0, "benchmark attack")
        column = loop.run(self.attack, self.model, self.batch, Linf(EPS), stream, len(self.batch.x), self.inner)
        self.accuracies.append(float(1 - column.broken.mean()))


def data(size: int, part: str, device: torch.device) -> Split:
    """One part of the digits preset's split as images of `size` by `size`, 8 or 28."""
    source = digits.load(bare.Settings(split={"validation": 200, "test": IMAGES, "seed": 0, "train": None}))
    index = source.parts[part]
    images, margin = source.images[index].repeat(size // 8, 2).repeat(size // 8, 3), size % 8 // 2
    images = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    x = torch.from_numpy(images).to(device).float() / 255
    return Split(x, torch.from_numpy(source.labels[index]).to(device), torch.from_numpy(index).to(device))


def trained(network: training.Network, by: str, device: torch.device, epochs: int) -> nn.Module:
    """A classifier after a few epochs of our training loop, in float32; `by`: how, a key of `TRAININGS`."""
    with seeded_globals(Stream.of(0, "benchmark classifier")):
        model = network.build(None).to(device)
    method, settings = TRAININGS[by]
    adversary = adversaries.build(method, settings, Linf(EPS), network.channels, network.size)
    train = data(network.size, "train", device)
    trainer = Trainer(model, adversary.to(device), Linf(EPS), training.loop(network.batch, "fp32"), 0, Path(), "")
    for epoch in range(1, epochs + 1):
        for index in Stream.of(0, "benchmark order", epoch).permutation(len(train.x)).split(network.batch):
            trainer.step(epoch, train, index.to(device))
    return model.eval()


def measure(model: nn.Module, batch: Split, attack: str, reference: Reference, rounds: int) -> dict[str, Any]:
    """Milliseconds and accuracy of the released attack and of ours, and how many times faster ours is."""
    steps, step_size = ATTACKS[attack]
    theirs = Released(reference, copy.deepcopy(model), batch, steps, step_size)
    mine = {
        name: Ours(
            copy.deepcopy(model),
            batch,
            Attack(cross_entropy, steps, step_size, random_start=True, any_iterate=rule == "any"),
            Inner(precision=precision),
        )
        for name, (precision, rule) in VARIANTS.items()
    }
    seconds = timing.interleaved({"released": theirs} | mine, rounds, reference.device, warmup=1)

    def cell(name: str, contender: Released | Ours) -> dict[str, Any]:
        return {"ms": 1e3 * statistics.median(seconds[name]), "accuracy": statistics.mean(contender.accuracies)}

    faster = {name: {"times_faster": timing.ratio(seconds["released"], seconds[name])} for name in mine}
    return {
        "released": cell("released", theirs),
        "ours": {name: cell(name, contender) | faster[name] for name, contender in mine.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    command.run(_run, _parser(), arguments)


def _run(parsed: argparse.Namespace) -> None:
    if not 1 <= parsed.images <= IMAGES:
        raise UserError(f"--images {parsed.images}: from 1 to {IMAGES}")
    device = machine.prepare(bare.Settings(device=parsed.device, threads=parsed.threads))
    reference = Reference(parsed.reference, device)
    facts = timing.conditions(device) | {
        "reference": reference.commit() or "not a git clone",
        "rounds": parsed.rounds,
        "images": parsed.images,
        "epochs": parsed.epochs,
    }
    print("\n".join(f"{name:12} {value}" for name, value in facts.items()), end="\n\n")
    print(f"{'network':9}{'training':10}{'attack':8}{'released':>18}", *(f"{name:>24}" for name in VARIANTS), sep="")
    rows = []
    for name in parsed.networks:
        network = training.NETWORKS[name]
        batch = data(network.size, "test", device).head(parsed.images)
        for by in TRAININGS:
            model = trained(network, by, device, parsed.epochs)
            for attack in parsed.attacks:
                row = measure(model, batch, attack, reference, parsed.rounds)
                rows.append({"network": name, "training": by, "attack": attack} | row)
                print(f"{name:9}{by:10}{attack:8}", *_cells(row), sep="", flush=True)
    if parsed.output:
        write_json(parsed.output, {"conditions": facts, "rows": rows})


def _cells(row: dict[str, Any]) -> Iterator[str]:
    yield f"{row['released']['ms']:.0f} ms {row['released']['accuracy']:6.1%}".rjust(18)
    for cell in row["ours"].values():
        yield f"{cell['ms']:.0f} ms {cell['times_faster']['median']:5.2f}x {cell['accuracy']:6.1%}".rjust(24)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("evaluation", __doc__)
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR", help="a clone of the released code")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, default=1, help="torch threads on both sides (default 1)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender (default 9)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="ATTACK")
    parser.add_argument("--images", type=int, default=200, help=f"images in the batch, up to {IMAGES} (default 200)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs that train each classifier (default 8)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the same numbers as JSON")
    return parser


if __name__ == "__main__":
    main()
