"""The graph of stages as DVC sees it: what waits for what, and what is out of date."""

import json
import re
import subprocess

from pipeline.errors import UserError

Graph = dict[str, set[str]]  # stage -> the stages it waits for, in the order of dvc.yaml


def stage_graph() -> Graph:
    """Every stage with the stages it depends on, as DVC sees them."""
    dot = dvc("dag", "--dot")
    graph: Graph = {stage: set() for stage in re.findall(r'^"([^"]+)";$', dot, re.MULTILINE)}
    for before, after in re.findall(r'"([^"]+)" -> "([^"]+)"', dot):
        graph[after].add(before)
    return graph


def outdated(graph: Graph) -> Graph:
    """The part of the graph that `dvc status` finds changed, with everything that follows from it."""
    pending = set(json.loads(dvc("status", "--json")))
    grown = True
    while grown:
        after = {stage for stage, before in graph.items() if before & pending}
        grown = not after <= pending
        pending |= after
    return {stage: before & pending for stage, before in graph.items() if stage in pending}


def levels(graph: Graph) -> dict[str, int]:
    """The level of every stage: 0 where it waits for nothing, else one more than the highest it waits for."""
    found: dict[str, int] = {}
    while len(found) < len(graph):
        ready = [stage for stage, before in graph.items() if stage not in found and before <= found.keys()]
        found |= {stage: 1 + max((found[one] for one in graph[stage]), default=-1) for stage in ready}
    return {stage: found[stage] for stage in graph}


def dvc(*arguments: str) -> str:
    """What a `dvc` command prints; `UserError` with the last line of its complaint where it fails."""
    done = subprocess.run(["dvc", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"dvc {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout
