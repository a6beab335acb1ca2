"""What our AutoAttack costs and finds beside the library it wraps: `python -m benchmarks.autoattack`.

The library pyautoattack as its users call it (`run_standard_evaluation`), against the attack of
`pipeline/attacks/auto.py`, which runs the library's loops with random numbers that belong to the examples.
All four parts together, which is the standard version, and each part alone. Both sides get the same images
in one batch and the same model, frozen and with batch norm folded as the pipeline hands it to attacks, in one
process, and take turns; every turn has its own random numbers. A ratio is the median over the rounds.

The model is the digits preset's classifier, trained here for seconds by AT_PGD, and the set is l-infinity
with eps 0.2. A percentage is the share of the images that holds, mean over the rounds. `agreement` is the
share of examples about which both sides say the same, least over the rounds; `of itself` is that of the
library with itself, one round and the next: what random numbers alone change.
"""

import argparse
import itertools
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyautoattack
import torch
from torch import Tensor, nn

from benchmarks import command, evaluation, timing, training
from pipeline import machine, params
from pipeline.ascent import frozen
from pipeline.attacks.auto import PARTS, AutoAttack
from pipeline.data.store import Split
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.losses import margin
from pipeline.perturbation import Linf
from pipeline.seeding import Stream

EPS = evaluation.EPS
STEPS, QUERIES = 100, 5000
SELECTIONS = (PARTS, *((part,) for part in PARTS))


def unwrapped(
    model: nn.Module, norm: str, eps: float, attack: AutoAttack, device: torch.device, seed: int
) -> pyautoattack.AutoAttack:
    """The library's own AutoAttack, standard but for the budgets and parts of `attack`."""
    library = pyautoattack.AutoAttack(
        model, norm=norm, eps=eps, seed=seed, version="custom", attacks=list(attack.parts), device=device
    )
    budget = {"n_iter": attack.steps, "norm": norm, "eps": eps, "seed": seed, "device": device}
    # Auto-PGD plans its step sizes when it is built.
    library.apgd = type(library.apgd)(model, logger=library.logger, **budget)
    library.apgd_targeted = type(library.apgd_targeted)(model, logger=library.logger, **budget)
    library.fab.n_iter, library.fab.n_restarts = attack.steps, 1
    library.square.n_queries = attack.queries
    return library


@dataclass(frozen=True)
class Library:
    """A turn of the library; `broken`: its verdicts, (N,) a turn."""

    model: nn.Module
    batch: Split
    attack: AutoAttack
    broken: list[Tensor] = field(default_factory=list)

    def __call__(self) -> None:
        """Attack; the library tells what the model says of its images."""
        x, y = self.batch.x, self.batch.y
        library = unwrapped(self.model, "Linf", EPS, self.attack, x.device, len(self.broken))
        _, predicted = library.run_standard_evaluation(x, y, batch_size=len(x))
        self.broken.append(predicted != y)


@dataclass(frozen=True)
class Ours:
    """A turn of ours."""

    model: nn.Module
    batch: Split
    attack: AutoAttack
    broken: list[Tensor] = field(default_factory=list)

    def __call__(self) -> None:
        """Attack and judge."""
        x, y, noise = self.batch.x, self.batch.y, Stream.of(len(self.broken), "benchmark attack").at(self.batch.index)
        images = self.attack(self.model, x, y, Linf(EPS), noise)
        with torch.no_grad():
            self.broken.append(~(margin(self.model(images), y) > 0))


def measure(model: nn.Module, batch: Split, attack: AutoAttack, rounds: int) -> dict[str, Any]:
    """Seconds and robust accuracy of both sides, how many times faster ours is, and how far they agree."""
    theirs, ours = Library(model, batch, attack), Ours(model, batch, attack)
    seconds = timing.interleaved({"library": theirs, "ours": ours}, rounds, batch.x.device, warmup=1)

    def side(name: str, contender: Library | Ours) -> dict[str, float]:
        held = statistics.mean(1 - float(broken.float().mean()) for broken in contender.broken)
        return {"seconds": statistics.median(seconds[name]), "accuracy": held}

    return {
        "library": side("library", theirs),
        "ours": side("ours", ours),
        "times_faster": timing.ratio(seconds["library"], seconds["ours"]),
        "agreement": min(map(_agreement, theirs.broken, ours.broken)),
        "library_agreement_of_itself": min(itertools.starmap(_agreement, itertools.pairwise(theirs.broken))),
    }


def _agreement(one: Tensor, other: Tensor) -> float:
    return float((one == other).float().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    command.run(_run, _parser(), arguments)


def _run(parsed: argparse.Namespace) -> None:
    if not 1 <= parsed.examples <= evaluation.IMAGES:
        raise UserError(f"--examples {parsed.examples}: from 1 to {evaluation.IMAGES}")
    device = machine.prepare(params.Runtime(device=parsed.device, threads=parsed.threads))
    logging.getLogger("auto-attack").setLevel(logging.ERROR)  # the library's advice about the model
    facts = timing.conditions(device) | {
        "pyautoattack": pyautoattack.__version__,
        **{name: getattr(parsed, name) for name in ("rounds", "examples", "steps", "queries", "epochs")},
    }
    print("\n".join(f"{name:13} {value}" for name, value in facts.items()), end="\n\n")
    print(f"{'parts':34}{'library':>16}{'ours':>16}{'faster':>22}{'agreement':>11}{'of itself':>11}")
    network = training.NETWORKS["digits"]
    batch = evaluation.data(network.size, "test", device).head(parsed.examples)
    rows = []
    with frozen(evaluation.trained(network, "robust", device, parsed.epochs)) as model:
        for parts in SELECTIONS:
            row = measure(model, batch, AutoAttack(parsed.steps, parsed.queries, parts), parsed.rounds)
            rows.append({"parts": list(parts)} | row)
            print(_line(rows[-1]), flush=True)
    if parsed.output:
        write_json(parsed.output, {"conditions": facts, "rows": rows})


def _line(row: dict[str, Any]) -> str:
    sides = (f"{row[name]['seconds']:.2f} s {row[name]['accuracy']:6.1%}".rjust(16) for name in ("library", "ours"))
    faster = "{median:.2f}x [{least:.2f}, {greatest:.2f}]".format(**row["times_faster"])
    agreement = f"{row['agreement']:>11.1%}{row['library_agreement_of_itself']:>11.1%}"
    return f"{' '.join(row['parts']):34}{''.join(sides)}{faster:>22}{agreement}"


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("autoattack", __doc__)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, default=1, help="torch threads on both sides (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default 3)")
    parser.add_argument(
        "--examples", type=int, default=200, help=f"images in the batch, up to {evaluation.IMAGES} (default 200)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"iterations of APGD and FAB (default {STEPS})")
    parser.add_argument("--queries", type=int, default=QUERIES, help=f"queries of Square (default {QUERIES})")
    parser.add_argument("--epochs", type=int, default=8, help="epochs that train the classifier (default 8)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the same numbers as JSON")
    return parser


if __name__ == "__main__":
    main()
