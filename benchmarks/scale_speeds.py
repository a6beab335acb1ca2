"""How fast one GPU makes training steps and attacks: `benchmarks.gpu` measured it, or `benchmarks.cost` assumes it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.cost import SUSTAINED, flops
from benchmarks.gpu_steps import SMOKE, SUBJECTS
from pipeline.errors import UserError
from pipeline.files import read_json

if TYPE_CHECKING:
    from pipeline.params import Params

RECORD = Path("benchmarks/results/gpu.json")


@dataclass(frozen=True)
class Step:
    """Seconds of a training step on one device; `fixed`: those that a smaller batch does not save, where known."""

    whole: float
    fixed: float | None = None


class Assumed:
    """What `benchmarks.cost` takes a card to sustain."""

    def __init__(self, why: str) -> None:
        rates = " and ".join(f"{rate / 1e12:.0f} Tflop/s in {name}" for name, rate in SUSTAINED.items())
        self.said = f"estimated from the arithmetic, at {rates} ({why})"

    def step(self, p: "Params", method: str, image: float) -> Step:
        """A step on a batch of the preset; `image`: its arithmetic, floating-point operations an image."""
        return Step(image * p.train.batch_size / SUSTAINED[p.train.precision])

    def attacking(self) -> float:
        """Operations a second of gradient attacks."""
        return SUSTAINED["fp32"]


class Measured:
    """What a record of `benchmarks.gpu` says of one network, for all presets that train it or a deeper one like it.

    Steps are scaled by their arithmetic: where network, method and hyper-parameters are those measured, the factor is
    one. With two batch sizes or more a line through the smallest and the greatest tells what a smaller batch does
    not save; its slope gives batches in between or beyond.
    """

    def __init__(self, record: dict[str, Any], network: str, wanted: str, file: Path) -> None:
        self.steps = [row for row in record["steps"] if row["network"] == network]
        self.attack = next(row for row in record["attacks"] if row["network"] == network)
        where = record["conditions"]["device"]
        scaled = "" if network == wanted else f"; {network}, scaled by the arithmetic to {wanted}"
        self.said = f"measured on {where} ({file}{scaled})"
        self.network = network

    def step(self, p: "Params", method: str, image: float) -> Step:
        """As in `Assumed`."""
        rows = {row["batch"]: row for row in self.steps if row["method"] == method}
        seconds = {n: n * image / row[p.train.precision]["flops_per_second"] for n, row in sorted(rows.items())}
        (least, *_), (*_, most) = seconds, seconds
        batch = p.train.batch_size
        if least == most:
            return Step(seconds[least] * batch / least)
        slope = (seconds[most] - seconds[least]) / (most - least)
        fixed = max(0.0, seconds[least] - slope * least)
        whole = seconds.get(batch, fixed + slope * batch)
        return Step(whole, min(fixed, whole))

    def attacking(self) -> float:
        """As in `Assumed`: of PGD in float32 as measured."""
        network = (SUBJECTS | SMOKE)[self.network].network
        with torch.device("meta"):
            forward = flops(network.build(None), torch.empty(1, network.channels, network.size, network.size))
        return 2 * self.attack["steps"] * forward / (1e-3 * self.attack["fp32"]["ms_per_image"])


Speeds = Assumed | Measured


def speeds(p: "Params", file: Path = RECORD) -> Speeds:
    """The measured speeds where `file` has them for the network and every method of `p`, else the assumed ones.

    `UserError` where `file` is there, but no record of `benchmarks.gpu`.
    """
    if not file.exists():
        return Assumed(f"{file} is not there: nothing was measured on a GPU")
    record, wanted = read_record(file), p.model.name.replace("_", "-")
    methods = set(p.matrix.methods)
    there = {row["network"] for row in record["attacks"]}
    for network in sorted(there, key=lambda name: (name != wanted, name)):
        measured = {row["method"] for row in record["steps"] if row["network"] == network and p.train.precision in row}
        if network.partition("-")[0] == wanted.partition("-")[0] and methods <= measured:
            return Measured(record, network, wanted, file)
    return Assumed(f"{file} does not have every method on a network like {wanted}")


def read_record(file: Path) -> dict[str, Any]:
    """The content of a record; `UserError` where it is none."""
    try:
        record = read_json(file)
        rates = [cell["flops_per_second"] for row in record["steps"] for cell in _ours(row)]
        rates += [row["fp32"]["ms_per_image"] for row in record["attacks"]]
        if not all(math.isfinite(rate) and rate > 0 for rate in rates) or not record["conditions"]["device"]:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: no record of benchmarks.gpu, which --output writes") from None
    return record


def _ours(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a row that time our own steps."""
    return [cell for name, cell in row.items() if isinstance(cell, dict) and not name.startswith("released")]
