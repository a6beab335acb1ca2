"""`python -m pipeline repro --ray ADDRESS --remote NAME`: each outdated cell is a task on a Ray cluster.

What needs no device and comes first is made here and pushed; then cells run where Ray has room for them
(`pipeline.cluster.node`), each pushing its results; at the end they are fetched, `dvc repro` restores every
cell from the run cache, and makes what needs no device and comes last. So dvc.lock is that of one machine.
"""

import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import leash, live, sharing, signals
from pipeline.cluster import commit, connection, placing
from pipeline.cluster.walk import Walk
from pipeline.errors import UserError
from pipeline.graph import Graph, cell_command, find_dvc, outdated, stage_graph
from pipeline.needs import PIPELINE_FILE, needs
from pipeline.repro import RESUMABLE
from pipeline.scheduler import LOGS, reason
from pipeline.yaml_files import read_yaml

if TYPE_CHECKING:
    from pipeline.params import Params

KEPT = live.WORK / "cluster"  # states to go on from, by cell
INTERVAL = 5.0  # seconds at least between two looks at a cell's states
TOOLS = ("pipeline/leash.py", "pipeline/cluster/guard.py")  # what the guard of a cell runs on a node
LAST = LOGS / "repro.log"


def reproduce(p: "Params", address: str, remote: str | None, jobs: int | None, interval: float = INTERVAL) -> int:
    """Reproduce everything with cells on the cluster at `address`; returns the exit status.

    At most `jobs` cells at once (None: as many as fit). 1: a cell failed twice, or the last stages did;
    what does not wait for it is done, and restored here. Bad input is refused before anything is done.
    """
    if remote is None:
        raise UserError("--ray: also needs --remote NAME, the DVC remote through which results travel")
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: must be at least 1 (got {jobs})")
    connection.check(address)
    find_dvc()
    sharing.check_remote(remote)
    commit.refuse_uncommitted()
    with connection.to(address), signals.handled_by(signals.unwind):
        there = placing.nodes()
        everything = stage_graph()
        pending = outdated(everything)
        first, cells = _divide(p, pending)
        asked = placing.requests(p, cells, there)
        for stage in first:
            if status := leash.run([*cell_command(stage), "--quiet"]):
                print(f"failed here: {stage}", file=sys.stderr)
                return status
        _forget(cells)
        lock = sharing.read_lock()
        walk = Walk(cells, asked, everything, _orders(p, remote, interval), lock)
        if cells:
            _share_what_is_here(remote, everything, cells)
            walk.run(jobs, KEPT.resolve(), LOGS.resolve())
        return _finish(remote, walk)


def _divide(p: "Params", pending: Graph) -> tuple[list[str], Graph]:
    """The outdated stages to make here before all others, and those for the cluster; the rest is for the end.

    Here: what computes on no device, before every cell that does, or after.
    """
    stages = read_yaml(PIPELINE_FILE)["stages"]
    computing = {stage for stage in pending if needs(p, stage, stages).devices}
    after, before = set(computing), set(computing)
    for _ in pending:  # as many rounds as the longest chain could need
        after |= {stage for stage, waits_for in pending.items() if waits_for & after}
        before |= {one for stage in before for one in pending[stage]}
    cells = {stage: waits_for & after for stage, waits_for in pending.items() if stage in after & before}
    return _in_order({stage: pending[stage] for stage in before - after}), cells


def _in_order(graph: Graph) -> list[str]:
    """The stages, each after those it waits for."""
    done: list[str] = []
    while len(done) < len(graph):
        done += [
            stage for stage, before in graph.items() if stage not in done and not (before & graph.keys()) - {*done}
        ]
    return done


def _forget(cells: Graph) -> None:
    """Remove states of cells that are not to be run now: nothing would ever go on from them."""
    for folder in KEPT.glob("*"):
        if folder.name not in cells:
            shutil.rmtree(folder)


def _share_what_is_here(remote: str, everything: Graph, cells: Graph) -> None:
    """Push results that cells depend on and that are up to date here already."""
    upstream = {one for cell in cells for one in everything[cell]} - cells.keys()
    if upstream:
        sharing.push(remote, sorted(upstream))


def _orders(p: "Params", remote: str, interval: float) -> dict[str, object]:
    """What all orders to nodes have in common."""
    tools = {name: (Path(__file__).parents[2] / name).read_text() for name in TOOLS}
    blanks = {"pipeline/__init__.py": "", "pipeline/cluster/__init__.py": ""}
    return {
        "commit": commit.head(),
        "remote": remote,
        "files": {
            ".dvc/config.local": sharing.config_text(core_remote=remote, core_no_scm="true"),
            "dvc.yaml": sharing.pipeline_text(),
        },
        "tools": tools | blanks,
        "resumable": list(RESUMABLE),
        "environment": {
            live.SWITCH: "0",
            "OMP_NUM_THREADS": str(p.runtime.threads),
            "DVC_NO_ANALYTICS": "1",
        },
        "interval": interval,
    }


def _finish(remote: str, walk: Walk) -> int:
    """Restore here what the cluster made, and make the rest where nothing failed; returns the exit status."""
    done = _in_order({cell: walk.graph[cell] for cell in walk.done})
    if done:
        sharing.fetch(remote, walk.lock, done)
    targets = ["--single-item", *done] if walk.failed else []
    status = _repro(targets, walk.done) if done or not walk.failed else 0
    for cell in walk.failed:
        print(f"failed twice: {cell}: {reason(cell)}; log: {LOGS / cell}.log", file=sys.stderr)
    if walk.failed and walk.waiting:
        print(f"not run, for they wait for what failed: {', '.join(walk.waiting)}", file=sys.stderr)
    return status or int(bool(walk.failed))


def _repro(targets: list[str], restored: set[str]) -> int:
    """`dvc repro`, ended where it starts to compute what the cluster has computed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    command = ["dvc", "--wait-for-lock", "repro", *targets]
    process = leash.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with contextlib.ExitStack() as stack:
        stack.callback(leash.let_go, process)
        log = stack.enter_context(open(LAST, "w"))
        for line in stack.enter_context(process.stdout):
            log.write(line.decode(errors="replace"))
            started = re.match(rb"Running stage '(.+)':", line)
            if started and started[1].decode() in restored:
                raise UserError(
                    f"{started[1].decode()}: was computed on the cluster, but from other files than this workspace has:"
                    " `dvc status` and `git status` tell; stopped instead of computing it again"
                )
        status = process.wait()
    if status:
        print("\n".join(LAST.read_text().splitlines()[-12:]), file=sys.stderr)
    return status
