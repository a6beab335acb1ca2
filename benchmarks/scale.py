"""How far the tables scale: `python -m benchmarks.scale [PRESET ...] [--output FILE]`.

For several numbers of GPUs: makespan, GPU hours and idle share of all cells, placed by the scheduler's own rule with
a clock that jumps (`benchmarks.scale_plan`), first with one device a cell, then with those `train.devices` and
`evaluation.devices` that end first. GPU hours: what cells hold GPUs for. At least: what no placement of the same
cells undercuts. Above each table stands where its step times come from (`benchmarks.scale_speeds`); what several
devices cost one another is a model of stated assumptions (`benchmarks.scale_times`). No run of these sizes was
made. `--measure` holds the same way of predicting against runs that fit on two cores: trainings of the preset digits,
in one process and in two at once, and shared out over two processes (`benchmarks.scale_local`).
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import command, scale_local, timing
from benchmarks.scale_graph import COMPARISON, cell_graph
from benchmarks.scale_plan import Cluster, Plan, Rehearsal, least
from benchmarks.scale_speeds import RECORD, speeds
from benchmarks.scale_times import Assumptions, Times
from pipeline import presets
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.graph import Graph
from pipeline.needs import PIPELINE_FILE, needs
from pipeline.yaml_files import read_yaml

if TYPE_CHECKING:
    from pipeline.params import Params

PRESETS = ("cifar10-table-a", "cifar10-table-b")
GPUS = (1, 4, 8, 16, 64)
WIDTHS = (1, 2, 4, 8)
HEAD = ("GPUs", "devices: training", "evaluation", "makespan, h", "GPU hours", "idle, %", "at least, h")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: a number of GPUs, devices a training and an evaluation, and what comes of it."""

    gpus: int
    train: int
    evaluation: int
    plan: Plan
    least: float

    def cells(self) -> Iterator[str]:
        """As in the table."""
        hours = (self.plan.makespan / 3600, self.plan.work / 3600, 100 * self.plan.idle, self.least / 3600)
        yield from map(str, (self.gpus, self.train, self.evaluation))
        yield from (f"{value:.1f}" for value in hours)

    def record(self) -> dict[str, float]:
        """As in JSON."""
        return {
            "gpus": self.gpus,
            "train_devices": self.train,
            "evaluation_devices": self.evaluation,
            "makespan_hours": self.plan.makespan / 3600,
            "gpu_hours": self.plan.work / 3600,
            "idle_share": self.plan.idle,
            "least_hours": self.least / 3600,
        }


class Table:
    """A preset on clusters of several sizes; `only`: the stages that count, None for all."""

    def __init__(self, p: "Params", times: Times, only: Sequence[str] | None) -> None:
        self.p, self.times, self.only = p, times, only

    def rows(self, sizes: Sequence[int], widths: Sequence[int]) -> Iterator[Row]:
        """For each size one row with one device a cell, and the row of `widths` that ends first if that is earlier."""
        for gpus in sizes:
            alone = self.row(gpus, 1, 1)
            fitting = [width for width in widths if width <= gpus]
            trained = [width for width in fitting if self._divides(width)]
            rows = [self.row(gpus, *pair) for pair in itertools.product(trained, fitting)]
            best = min([alone, *rows], key=lambda row: (row.plan.makespan, row.plan.work))
            yield from [alone] if best.plan.makespan == alone.plan.makespan else [alone, best]

    def row(self, gpus: int, train: int, evaluation: int) -> Row:
        """So many GPUs, and devices a training and an evaluation."""
        p = self.p.model_copy(
            update={
                "train": self.p.train.model_copy(update={"devices": train}),
                "evaluation": self.p.evaluation.model_copy(update={"devices": evaluation}),
            }
        )
        slots = Cluster(gpus, self.times.assumed.node)
        devices = {cell: needs(p, cell, self._stages).devices for cell in self._graph}
        seconds = {cell: self.times.cell(cell, max(1, slots.wanted(devices[cell]))) for cell in self._graph}
        plan = Rehearsal(self._graph, slots, devices, seconds).plan()
        return Row(gpus, train, evaluation, plan, least(self._graph, plan))

    def _divides(self, width: int) -> bool:
        """Whether params.yaml would take it: see `train.devices`."""
        batch = self.p.train.batch_size
        return batch % width == 0 and batch >= 2 * width

    @cached_property
    def _stages(self) -> dict[str, Any]:
        return read_yaml(PIPELINE_FILE)["stages"]

    @cached_property
    def _graph(self) -> Graph:
        return cell_graph(self.p, self._stages, self.only)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    command.run(lambda parsed: _run(parsed, sys.argv[1:] if arguments is None else arguments), _parser(), arguments)


def _run(parsed: argparse.Namespace, arguments: Sequence[str]) -> None:
    assumed = _assumptions(parsed)
    if min(*parsed.gpus, *parsed.widths) < 1:
        raise UserError("--gpus, --devices: must be at least 1")
    if parsed.repeats < 1:
        raise UserError(f"--repeats: must be at least 1 (got {parsed.repeats})")
    content: dict[str, Any] = {
        "conditions": timing.conditions(torch.device("cpu")) | {"threads": 1},  # of each process that is measured
        "command": " ".join(["python -m benchmarks.scale", *arguments]),
        "assumptions": dataclasses.asdict(assumed),
        "tables": [],
    }
    for name in parsed.presets or PRESETS:
        p = presets.load(name)
        times = Times(p, speeds(p, parsed.steps), assumed)
        table = Table(p, times, COMPARISON if parsed.stages == "comparison" else None)
        rows = list(table.rows(parsed.gpus, parsed.widths))
        print("\n".join(_lines(name, parsed.stages, times, rows)), end="\n\n", flush=True)
        made = {"preset": name, "stages": parsed.stages, "step_times": times.speeds.said}
        content["tables"].append(made | {"rows": [row.record() for row in rows]})
    if parsed.measure:
        content["local"] = scale_local.measure(parsed.repeats, lambda line: print(line, flush=True))
    if parsed.output:
        write_json(parsed.output, content)


def _lines(name: str, stages: str, times: Times, rows: Sequence[Row]) -> Iterator[str]:
    a = times.assumed
    yield f"{name}, {'all stages' if stages == 'all' else 'stages ' + ', '.join(COMPARISON)}"
    yield f"Step times: {times.speeds.said}."
    yield (
        f"Assumed: {a.cell:g} s a cell beside its arithmetic; of a step {100 * a.fixed:g} % that a smaller part of the"
        f" batch does not save and {100 * a.efficiency:g} % of the efficiency kept at each halving, unless measured;"
        f" gradients over {a.within / 1e9:g} GB/s inside nodes of {a.node} GPUs and {a.between / 1e9:g} GB/s between."
    )
    yield "| " + " | ".join(HEAD) + " |"
    yield "|" + "--:|" * len(HEAD)
    yield from ("| " + " | ".join(row.cells()) + " |" for row in rows)


def _assumptions(parsed: argparse.Namespace) -> Assumptions:
    """The options; `UserError` where one is out of its range."""
    limits: dict[str, tuple[Callable[[float], bool], str]] = {
        "fixed": (lambda v: 0 <= v < 1, "in [0, 1)"),
        "efficiency": (lambda v: 0 < v <= 1, "in (0, 1]"),
        "within": (lambda v: v > 0, "more than 0"),
        "between": (lambda v: v > 0, "more than 0"),
        "node": (lambda v: v >= 1, "at least 1"),
        "cell": (lambda v: v >= 0, "at least 0"),
    }
    for name, (allowed, range_) in limits.items():
        if not allowed(getattr(parsed, name)):
            raise UserError(f"--{name}: must be {range_} (got {getattr(parsed, name):g})")
    links = {name: 1e9 * getattr(parsed, name) for name in ("within", "between")}
    return Assumptions(**{name: getattr(parsed, name) for name in limits} | links)


def _parser() -> argparse.ArgumentParser:
    a, parser = Assumptions(), command.parser("scale", __doc__)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"default: {' '.join(PRESETS)}")
    parser.add_argument("--stages", default="comparison", choices=("comparison", "all"), help="all: with the studies")
    parser.add_argument("--gpus", nargs="+", type=int, default=GPUS, help=f"default: {' '.join(map(str, GPUS))}")
    parser.add_argument("--devices", dest="widths", nargs="+", type=int, default=WIDTHS, help="a cell, to choose from")
    parser.add_argument("--steps", type=Path, default=RECORD, metavar="FILE", help="a record of benchmarks.gpu")
    parser.add_argument("--fixed", type=float, default=a.fixed, help="share of a step that does not shrink")
    parser.add_argument("--efficiency", type=float, default=a.efficiency, help="kept at each halving of the batch")
    parser.add_argument("--within", type=float, default=a.within / 1e9, help="GB/s between two GPUs of a node")
    parser.add_argument("--between", type=float, default=a.between / 1e9, help="GB/s between two nodes")
    parser.add_argument("--node", type=int, default=a.node, help="GPUs of a node")
    parser.add_argument("--cell", type=float, default=a.cell, help="seconds of a cell beside its arithmetic")
    parser.add_argument("--measure", action="store_true", help="predict trainings on this machine, then run them")
    parser.add_argument("--repeats", type=int, default=2, help="of what is measured (default 2)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the same numbers as JSON")
    return parser


if __name__ == "__main__":
    main()
