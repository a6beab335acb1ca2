"""`dvc repro` with cells in parallel: one process a cell, one device or core each.

DVC runs stages one after another. Here the graph that `dvc dag` prints is walked
instead, every stage starting as soon as the stages before it are done, each as
`dvc --wait-for-lock repro --single-item STAGE`; a plain `dvc repro` at the end has
the last word. Adds speed and nothing else: dvc.lock comes out the same.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline import live, machine
from pipeline.errors import UserError
from pipeline.graph import Graph, outdated, stage_graph
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.params import Params

LOGS = live.WORK / "logs"
# What stages keep in .work to go on from: gone before everything is computed again.
RESUMABLE = ("train", "attack", "transfer", "ablation", "degeneracy", "landscape", "diversity", "search")


def reproduce(p: "Params", jobs: int | None, force: bool) -> int:
    """Reproduce everything, mirror it to MLflow, print the results; returns the exit status."""
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: must be at least 1 (got {jobs})")
    _find_tools()
    if force:
        for folder in RESUMABLE:
            shutil.rmtree(live.WORK / folder, ignore_errors=True)
    slots = _slots(p, jobs)
    with live.presence():
        graph = stage_graph()
        failed = Scheduler(graph if force else outdated(graph), slots, force).run()
        if failed:
            for stage in failed:
                print(f"failed: {stage}; log: {LOGS / stage}.log", file=sys.stderr)
            return 1
        status = subprocess.run(["dvc", "repro", "--quiet"], check=False).returncode
    if status == 0:
        _report()
        _mirror()
    return status


@dataclass
class Running:
    """A stage at work: its process, device slot and start."""

    stage: str
    process: subprocess.Popen[bytes]
    slot: dict[str, str]
    started: float = field(default_factory=time.monotonic)


class Scheduler:
    """Walks a stage graph with as many processes as there are slots (environments, one a device or core)."""

    def __init__(self, graph: Graph, slots: list[dict[str, str]], force: bool = False) -> None:
        self.graph, self.free, self.force = graph, slots, force
        self.waiting = list(graph)
        self.done: set[str] = set()
        self.failed: list[str] = []
        self.running: list[Running] = []
        self.interrupted = False

    def run(self) -> list[str]:
        """Run everything that can run; returns the stages that failed (what waits for them is not run)."""
        LOGS.mkdir(parents=True, exist_ok=True)
        # Signals are noted, not raised: an exception between a fork and its bookkeeping would leave an orphan.
        previous = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with Progress("stages", len(self.graph), interval=0) as bar:
                while self._start() or self.running:
                    if self.interrupted:
                        raise KeyboardInterrupt
                    for finished in self._finished():
                        seconds = time.monotonic() - finished.started
                        outcome = "failed" if finished.stage in self.failed else "done"
                        bar.step(f"{finished.stage} {outcome}, {seconds:.1f} s")
                    time.sleep(0.05)
        except BaseException:
            self._stop()
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.failed

    def _interrupt(self, number: int, frame: object) -> None:
        self.interrupted = True

    def _start(self) -> bool:
        """Start waiting stages, in the order of dvc.yaml, while slots are free."""
        ready = [stage for stage in self.waiting if self.graph[stage] <= self.done]
        for stage in ready[: len(self.free)]:
            self.waiting.remove(stage)
            self.running.append(self._launch(stage, self.free.pop()))
        return bool(ready)

    def _launch(self, stage: str, slot: dict[str, str]) -> Running:
        command = ["dvc", "--wait-for-lock", "repro", "--single-item", *(["--force"] if self.force else []), stage]
        with open(LOGS / f"{stage}.log", "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | slot,
                start_new_session=True,
            )
        return Running(stage, process, slot)

    def _finished(self) -> list[Running]:
        over = [r for r in self.running if r.process.poll() is not None]
        for r in over:
            self.running.remove(r)
            self.free.append(r.slot)
            if r.process.returncode == 0:
                self.done.add(r.stage)
            else:
                self.failed.append(r.stage)
                _show_tail(r)
        return over

    def _stop(self) -> None:
        """End every running stage with its children."""
        for r in self.running:
            os.killpg(r.process.pid, signal.SIGTERM)
        for r in self.running:
            r.process.wait()


def _find_tools() -> None:
    """Without an activated environment, look for dvc and python where this interpreter lives."""
    if shutil.which("dvc") is None:
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if shutil.which("dvc") is None:
        raise UserError("dvc: not found; install the project first (`make repro` does)")


def _slots(p: "Params", jobs: int | None) -> list[dict[str, str]]:
    """One environment a parallel cell: a GPU each, or a share of the cores."""
    threads = {"OMP_NUM_THREADS": str(p.runtime.threads)}
    if machine.resolve(p.runtime.device).type == "cuda":
        gpus = torch.cuda.device_count()
        return [threads | {"CUDA_VISIBLE_DEVICES": str(n % gpus)} for n in range(jobs or gpus)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [threads] * (jobs or max(1, cores // p.runtime.threads))


def _show_tail(running: Running, lines: int = 12) -> None:
    text = (LOGS / f"{running.stage}.log").read_text(errors="replace").rstrip().splitlines()
    print(f"\n{running.stage} failed with status {running.process.returncode}:", file=sys.stderr)
    print("\n".join(f"    {line}" for line in text[-lines:]), file=sys.stderr)


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
