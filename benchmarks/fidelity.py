"""How close our training steps are to the released ones: `python -m benchmarks.fidelity --reference DIR`.

The two sides run on the same weights (their ResNet-18, their generator), images and noise, for every
method and case of `benchmarks.steps`. Three comparisons stand side by side, each the largest
difference of a tensor's entries and, in brackets, the share of entries that differ by more than a
thousandth of the largest released entry:

float64   ours against released: whether the mathematics is the same
float32   ours against released: with rounding, which turns the sign of gradients near zero, moves
          single pixels by whole steps, and grows from step to step
rounding  released float32 against released float64: what rounding alone does to the released code
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import command
from benchmarks.reference import Reference
from benchmarks.setting import Setting
from benchmarks.steps import METHODS
from pipeline import machine
from pipeline.errors import UserError
from pipeline.files import write_json

COMPARISONS = ("float64", "float32", "rounding")


@dataclass(frozen=True)
class Distance:
    """The largest absolute difference of two tensors, and the share of entries that lie apart."""

    largest: float
    apart: float


@dataclass(frozen=True)
class Row:
    """One tensor of a step; `size` is its largest absolute entry in the released float64 step."""

    method: str
    case: str
    quantity: str
    size: float
    distances: dict[str, Distance]


def compare(name: str, reference: Reference, seed: int) -> Iterator[Row]:
    """Every tensor of every case of a method."""
    method = METHODS[name]
    for case in method.cases:
        mine, theirs = {}, {}
        for dtype in (torch.float64, torch.float32):
            setting = Setting(reference, dtype, seed)
            mine[dtype], noise = method.ours(setting, case)
            theirs[dtype] = method.released(setting, case, noise)
        for quantity, exact in theirs[torch.float64].items():
            rounded, size = theirs[torch.float32][quantity], float(exact.abs().max())
            pairs = ((mine[torch.float64][quantity], exact), (mine[torch.float32][quantity], rounded), (rounded, exact))
            distances = {c: distance(*pair, size) for c, pair in zip(COMPARISONS, pairs, strict=True)}
            yield Row(name, case, quantity, size, distances)


def distance(one: Tensor, other: Tensor, size: float) -> Distance:
    """How far apart two tensors of one shape are, `size` being the largest entry there is."""
    if one.shape != other.shape:
        raise ValueError(f"shapes differ: {tuple(one.shape)} and {tuple(other.shape)}")
    difference = (one.double() - other.double()).abs()
    return Distance(float(difference.max()), float((difference > 1e-3 * size).double().mean()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    command.run(_run, _parser(), arguments)


def prepare(name: str, threads: int) -> torch.device:
    """The device called `name`, with full float32 precision and repeatable convolutions; `UserError` if not here."""
    try:
        device = machine.resolve(name) if name == "auto" else torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError):
        raise UserError(f"--device {name}: no such device here, or it has no float64") from None
    if threads < 1:
        raise UserError(f"--threads {threads}: at least 1")
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return device


def conditions(reference: Reference, seed: int) -> dict[str, Any]:
    """What the numbers depend on."""
    device = reference.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "reference": reference.commit() or "not a git clone",
    }


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("fidelity", __doc__)
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR", help="a clone of the released code")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and noise (default 0)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the same numbers as JSON")
    return parser


def _run(parsed: argparse.Namespace) -> None:
    reference = Reference(parsed.reference, prepare(parsed.device, parsed.threads))
    facts = conditions(reference, parsed.seed)
    print("\n".join(f"{name:10} {value}" for name, value in facts.items()), end="\n\n")
    print(_line("method", "case", "quantity", "size", *COMPARISONS), flush=True)
    rows = []
    for method in parsed.methods:
        for row in compare(method, reference, parsed.seed):
            rows.append(row)
            shown = [f"{d.largest:.0e} ({d.apart:4.0%})" for d in row.distances.values()]
            print(_line(row.method, row.case, row.quantity, f"{row.size:.2g}", *shown), flush=True)
    if parsed.output:
        write_json(parsed.output, {"conditions": facts, "rows": [asdict(row) for row in rows]})


def _line(*cells: str) -> str:
    return "{:11}{:13}{:20}{:>6}{:>15}{:>15}{:>15}".format(*cells)


if __name__ == "__main__":
    main()
