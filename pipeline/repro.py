"""`dvc repro` with cells in parallel: one process a cell, one device or core each.

DVC runs stages one after another. Here the graph that `dvc dag` prints is walked
instead, every stage starting as soon as the stages before it are done, each as
`dvc --wait-for-lock repro --single-item STAGE`; a plain `dvc repro` at the end has
the last word. Adds speed and nothing else: dvc.lock comes out the same.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import leash, live, signals, slots
from pipeline.graph import find_dvc, outdated, stage_graph
from pipeline.scheduler import QUIET, run_cells

if TYPE_CHECKING:
    from pipeline.params import Params

# What stages keep in .work to go on from: gone before everything is computed again.
RESUMABLE = ("train", "attack", "transfer", "ablation", "degeneracy", "landscape", "diversity", "search")


def reproduce(p: "Params", jobs: int | None, force: bool) -> int:
    """Reproduce everything, mirror it to MLflow, print the results; returns the exit status."""
    find_dvc()
    available = slots.of_this_machine(p, jobs)
    with signals.handled_by(signals.unwind):
        if force:
            for folder in RESUMABLE:
                shutil.rmtree(live.WORK / folder, ignore_errors=True)
        with live.presence():
            graph = stage_graph()
            status = run_cells(p, graph if force else outdated(graph), available, force)
            status = status or leash.run(["dvc", "repro", "--quiet"], env=os.environ | QUIET)
        if status == 0:
            conclude()
        return status


def conclude() -> None:
    """What follows a complete reproduction: the comparison and where the figures are; then MLflow is completed."""
    _report()
    _mirror()


def _report() -> None:
    """The comparison table and where the figures are."""
    results = Path("results")
    print("\n" + (results / "comparison.md").read_text())
    print(f"Everything on one page: {results / 'report.html'}\nFigures:")
    for figure in sorted(results.rglob("*.png")):
        print(f"  {figure}")


def _mirror() -> None:
    """Complete MLflow; a tracker that is away costs a message, never the results."""
    done = subprocess.run([sys.executable, "-m", "pipeline", "track"], capture_output=True, text=True)
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no answer"]
    print(said[-1])
    if done.returncode:
        print("MLflow was not completed; the results are safe in files: `python -m pipeline track` completes it later.")
