"""The graph of stages as DVC sees it: what waits for what, and what is out of date."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from pipeline.errors import UserError

Graph = dict[str, set[str]]  # stage -> the stages it waits for, in the order of dvc.yaml


def stage_graph() -> Graph:
    """Every stage with the stages it depends on, as DVC sees them."""
    dot = dvc("dag", "--dot")
    graph: Graph = {stage: set() for stage in re.findall(r'^"([^"]+)";$', dot, re.MULTILINE)}
    for before, after in re.findall(r'"([^"]+)" -> "([^"]+)"', dot):
        graph[after].add(before)
    return graph


def outdated(graph: Graph, cells: Collection[str] | None = None) -> Graph:
    """The part of the graph that `dvc status` finds changed, with everything that follows from it.

    `cells`: of these and what they wait for only. DVC refuses to look at a file that is just being written, so
    this is how to ask while other cells run.
    """
    part = graph if cells is None else _upstream(graph, cells)
    pending = set(json.loads(dvc("status", "--json", *(() if cells is None else part))))
    grown = True
    while grown:
        after = {stage for stage, before in part.items() if before & pending}
        grown = not after <= pending
        pending |= after
    return {stage: before & pending for stage, before in part.items() if stage in pending}


def _upstream(graph: Graph, cells: Collection[str]) -> Graph:
    """The part of the graph that `cells` are and wait for."""
    found: set[str] = set()
    waiting = set(cells)
    while waiting:
        found |= waiting
        waiting = set().union(*(graph[cell] for cell in waiting)) - found
    return {cell: before for cell, before in graph.items() if cell in found}


def levels(graph: Graph) -> dict[str, int]:
    """The level of every stage: 0 where it waits for nothing, else one more than the highest it waits for."""
    found: dict[str, int] = {}
    while len(found) < len(graph):
        ready = [stage for stage, before in graph.items() if stage not in found and before <= found.keys()]
        found |= {stage: 1 + max((found[one] for one in graph[stage]), default=-1) for stage in ready}
    return {stage: found[stage] for stage in graph}


def dvc(*arguments: str) -> str:
    """What a `dvc` command prints; `UserError` with the line of its complaint that says what where it fails."""
    done = subprocess.run(["dvc", "--wait-for-lock", *arguments], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no answer"]
        what = next((line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")), said[-1])
        raise UserError(f"dvc {' '.join(arguments[:2])}: {what}")
    return done.stdout


def cell_command(stage: str, force: bool = False) -> list[str]:
    """What runs exactly this stage, whatever runs beside it; whether the stages before it are done is not checked."""
    return ["dvc", "--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), stage]


def find_dvc() -> None:
    """Without an activated environment, look for dvc and python where this interpreter lives."""
    if shutil.which("dvc") is None:
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if shutil.which("dvc") is None:
        raise UserError("dvc: not found; install the project first (`make repro` does)")
