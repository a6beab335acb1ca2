"""Cells for other schedulers, such as Slurm: what there is to run, with which command and needs; and shares of it."""

import json
import re
import shlex
from typing import TYPE_CHECKING, Any

from pipeline import live, signals, slots
from pipeline.errors import UserError
from pipeline.graph import Graph, cell_command, find_dvc, levels, outdated, stage_graph
from pipeline.needs import PIPELINE_FILE, needs
from pipeline.scheduler import run_cells
from pipeline.yaml_files import read_yaml

if TYPE_CHECKING:
    from pipeline.params import Params


def listing(p: "Params", level: int | None, stage: str | None, everything: bool) -> str:
    """The chosen cells as JSON, in the order in which they can run: those that are out of date, or all of them.

    `level` chooses the cells whose longest way from a first stage has so many steps, `stage` a stage of dvc.yaml
    or one cell of it; neither: all levels, in order. Each is an object of `stage`, `level`, `waits_for` (cells),
    `command` (of a shell in this folder), `needs` and `outdated`; among its needs `device` is `runtime.device` of
    params.yaml, or "cpu" where `devices` is 0.
    """
    find_dvc()
    graph = stage_graph()
    cells = choose(graph, level, stage)
    old = outdated(graph, cells)
    chosen = [cell for cell in cells if everything or cell in old]
    level_of, stages = levels(graph), read_yaml(PIPELINE_FILE)["stages"]
    described = [
        {
            "stage": cell,
            "level": level_of[cell],
            "waits_for": sorted(graph[cell]),
            "command": shlex.join(cell_command(cell)),
            "needs": _needs(p, cell, stages),
            "outdated": cell in old,
        }
        for cell in chosen
    ]
    return json.dumps(described, indent=2)


def run_share(p: "Params", level: int | None, stage: str | None, share: str, jobs: int | None = None) -> int:
    """Run share `I/N` of the chosen cells on this machine's slots; 0, or 1 where one failed.

    All chosen cells are dealt out in turn, up to date or not, so that N shares at N times are all of them and
    none twice; what is up to date is then left out. A cell whose upstream is out of date and not in the share is
    refused: it would be computed from old files.
    """
    part, parts = _parse(share)
    find_dvc()
    available = slots.of_this_machine(p, jobs)
    with signals.handled_by(signals.unwind), live.presence():
        graph = stage_graph()
        dealt = choose(graph, level, stage)[part - 1 :: parts]
        old = outdated(graph, dealt) if dealt else {}
        mine = [cell for cell in dealt if cell in old]
        for cell in mine:
            for before in sorted(old[cell] - set(mine)):
                raise UserError(f"{cell}: waits for {before}, which is out of date; run that first")
        return run_cells(p, {cell: old[cell] for cell in mine}, available)


def choose(graph: Graph, level: int | None, stage: str | None) -> list[str]:
    """The cells of a level, or of a stage, or all; by levels, and within one in the order of `graph`."""
    if level is not None and stage is not None:
        raise UserError("--level, --stage: give one of the two")
    level_of = levels(graph)
    cells = sorted(graph, key=level_of.__getitem__)
    if stage is not None:
        chosen = [cell for cell in cells if stage in (cell, cell.partition("@")[0])]
        names = ", ".join(dict.fromkeys(cell.partition("@")[0] for cell in cells))
        problem = f"--stage: no stage {stage!r} in {PIPELINE_FILE}; there are: {names}"
    elif level is not None:
        chosen = [cell for cell in cells if level_of[cell] == level]
        problem = f"--level: no level {level}; there are 0 to {max(level_of.values())}"
    else:
        return cells
    if not chosen:
        raise UserError(problem)
    return chosen


def _parse(share: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", share, re.ASCII)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--shard: must be I/N with 1 <= I <= N, such as 2/12 (got {share!r})")
    return part, parts


def _needs(p: "Params", cell: str, stages: dict[str, Any]) -> dict[str, Any]:
    needed = needs(p, cell, stages)
    return {
        "devices": needed.devices,
        "device": p.runtime.device if needed.devices else "cpu",
        "cores": needed.cores,
        "memory_gib": needed.memory_gib,
    }
